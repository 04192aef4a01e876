"""A run: the loop, how it resumes, its metrics and its evaluation.

::

    run_directory   the files of a run, and whether a model and a data set fit it
    resume          the first step: from the newest checkpoint, another run's, or other weights
    workload        the sequences, tokens and FLOPs of an update
    metrics         metrics.jsonl and the line on the terminal
    tensorboard     the same metrics as TensorBoard's event file
    tracking        the same metrics for Weights & Biases or MLflow
    tracker_sender  the process that sends them
    loss_plot       loss.png and sweep.png
    run_writer      where a run is written; what sends it to a store while training goes on
    shard_verifier  the SHA-256 of the shards that are read, in the background
    evaluation      losses and accuracies on the eval shards
    loop            train: the loop over steps, which logs, evaluates and saves
    dry_run         size, cost and two steps of a run, without writing anything
"""
