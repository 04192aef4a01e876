"""The command line: one module a verb, and the only place with flags.

The verbs, in the order in which a user needs them::

    vocab       raw text -> a WordPiece vocabulary
    generate    raw text -> a data set
    adopt       TFRecords of other software -> a data set
    inspect     a data set -> instances as text
    verify      a data set -> whether its files are intact
    pretrain    a data set -> a trained BERT
    sweep       `pretrain` at each point of a grid of flags
    launch      `pretrain` by several processes on this machine
    slurm       `pretrain` or `generate` by the nodes of a Slurm cluster
    kubernetes  `pretrain` or `generate` by the pods of a Kubernetes Job
    evaluate    a run -> losses and accuracies on the eval shards
    export      a trained BERT -> a directory for other software

Modules that verbs share::

    __main__      starts the command, as the program `clozemill` does
    command_line  finds the verb, parses its flags, turns errors into exit codes
    stopping      ends a verb on Ctrl-C and SIGTERM
    messages      errors as lines on stderr
    flag_files    flag files, checks of flags, and flags as help text
    file_lists    flags that name files, and files with lists of them
    input_flags   flags of the verbs that read text
    mixture_file  the file of --mixture: several corpora, and their shares
    config_flags  flags of the model's config
    cache_flags   flags of the cache of shards from a store
    checkpoint_flags  flags that name a trained BERT
    backend       the --backend flag, which must be read before Keras is imported
    banners       hides what libraries print while they start
    job           flags of a process's place in a job, and the environment variables instead of them

Modules that start `pretrain` or `generate` as other processes::

    pretrain_command  checks the `pretrain` command after `--` before a job waits in a queue
    grid              the --grid flag, and the command of each of its points
    gpus              divides this machine's GPUs between processes
    processes         processes that start and end together, or run in turn
    sweep_report      the table and the picture of a sweep
    generate_command  checks the command after `--` of the verbs that write jobs
    cluster_flags     flags that `slurm` and `kubernetes` share
    spark_process     a process of a job that runs `generate` on Spark
    worker            a Beam worker that a runner starts as a process
"""
