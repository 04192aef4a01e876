"""Shards to losses to checkpoints: BERT in Keras 3.

The modules in the order of the flow, from a shard to an update of the weights::

    config            BertConfig and its presets
    training_options  how to train
    input             shards -> batches, a dict with the names of `pipeline.records`
    dropout           dropout whose masks follow from a key
    bert              BertModel: tokens -> sequence and pooled output
    pretraining       BertForPreTraining: its heads for masked words and next sentences
    losses            outputs -> sums that add up over batches -> losses and accuracies
    optimization      AdamW and LAMB, clipping, loss scale, warm-up and decay
    update            one update of the weights, but for what a backend does its own way:
    tensorflow_step   its gradients and its compilation by TensorFlow
    jax_step          and by JAX
    step              the one in use
    devices           what it computes on

The processes of a job, which make one update together::

    job_place         a process's place among them
    process_group     all of them, as one sees them
    coordinator       what process 0 does for them
    termination       SIGTERM, upon which all stop

A run, made of many updates::

    run               the run's directory: config, vocabulary, manifest
    checkpoints       all that is needed to go on, in one directory
    metrics           what is told of a run while it goes, with `summaries` for TensorBoard
    loss_plot         a picture of it
    start             where training begins, or goes on
    training          the loop
    dry_run           what a run would be
    evaluation        losses and accuracies on the eval shards

A trained BERT, wherever it comes from and wherever it goes::

    original            checkpoints of the original BERT: reading and writing
    huggingface         the directory that `transformers` opens: reading and writing
    tokenizer_settings  its vocabulary and lower-casing: reading, and writing for `transformers`
    pretrained          a trained BERT from a run or any of these, and a model that starts with it
    model_card          what is told of it
    onnx_graph          it as an ONNX model
    saved_model         and as a SavedModel
    export              to a directory in one of these formats

Of `pipeline`, only the record contract is imported: `records`, `manifest`, `files` and `errors`.
"""
