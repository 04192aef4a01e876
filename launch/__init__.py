"""The command line, the only place with flags: a module a verb, and what they share.

The verbs, in the order in which one needs them::

    vocab, generate, inspect, verify     text -> data set
    pretrain                             data set -> trained BERT
    launch, slurm, kubernetes            the same by several processes: each starts `pretrain` on them
    evaluate, export                     what it has learnt, and where it goes

What verbs share::

    __main__          finds the verb, parses its flags, turns errors into exit codes
    flag_files        flags as help and as a file
    input_flags       of verbs that read text
    config_flags      of the model's config
    backend           of the backend, which is chosen before Keras is imported
    banners           what libraries write while they start, hidden
    job               of a process's place in a job, and where it is found without flags

What starts jobs of several processes::

    pretrain_command  the command behind `--`, checked before a job waits in a queue
    gpus, processes   of `launch`: GPUs divided, and processes that start and end together
    cluster_flags     of `slurm` and `kubernetes`, whose templates stand beside them
    worker            a worker of Beam's, where a runner starts it as a process
"""
