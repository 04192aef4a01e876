"""Shards to batches to logits to losses to trained weights: BERT in Keras 3.

Fourteen files are the spine, in reading order::

    config                the size and shape of a BERT
    masking_schedule      the share of tokens to mask, which may change while a model trains
    training_options      how to train: batch size, learning rate, steps, precision
    shard_cache           shards on a store -> files on this machine, ahead of their reading
    batches               shards -> batches, dicts with the feature names of `pipeline.records`
    training_masks        batches without masks -> batches with masks that are drawn while training
    dropout               dropout whose masks follow from a seed, a step and a position alone
    attention             which kernel computes attention, and which tokens see each other
    jax_gpu               what JAX computes in its own way on NVIDIA GPUs: fused attention
    bert                  BertModel: token ids -> sequence output and pooled output
    bert_for_pretraining  BertForPreTraining: BertModel with the two pretraining heads -> logits
    losses                logits and labels -> sums -> losses and accuracies
    context               what several devices compute that divide the positions of a sequence
    optimization          AdamW and LAMB, gradient clipping, loss scale, warm-up and decay

Five rooms do the rest. A room imports the spine and the rooms above it, never one below::

    job          the processes of one training job: how they meet, agree and end together
    step         one weight update, compiled by TensorFlow or JAX, on all devices
    checkpoints  trained weights on disk: ours, the original's, Hugging Face's
    training     a run: the loop, how it resumes, its metrics and its evaluation
    export       trained weights in the formats that other software opens

Of `pipeline`, it imports the contract of a data set, `sentence_pairs`, `records`, `manifest` and
`vocabulary`; the rules of masks, `options`, `draws`, `masking`, `ngrams`, `instances` and `rows`;
`tokenization`, for the pieces of new words; and what all packages share: `storage`, `files`,
`errors` and `templates`.
"""
