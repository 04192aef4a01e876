"""Shards to losses to checkpoints: BERT in Keras 3.

The modules in the order of the flow::

    config           BertConfig and its presets
    input            shards -> batches, a dict with the names of `pipeline.records`
    bert             BertModel: tokens -> sequence and pooled output
    pretraining      BertForPreTraining: its heads for masked words and next sentences
    losses           outputs -> sums that add up over batches -> losses and accuracies
    optimization     AdamW, clipping, warm-up and decay
    tensorflow_step  one update of the weights, one evaluation of a batch
    run              the run's directory: config, vocabulary, manifest
    checkpoints      all that is needed to go on, in one directory
    metrics          what is told of a run while it goes
    training         the loop
    evaluation       losses and accuracies on the eval shards
    huggingface      the checkpoint that `transformers` opens

Of `pipeline`, only the record contract is imported: `records`, `manifest` and `errors`.
"""
