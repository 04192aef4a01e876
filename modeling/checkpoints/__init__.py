"""Trained weights on disk: ours, the original's, Hugging Face's.

::

    run_checkpoints     checkpoints of a run: weights, optimizer moments, the data's position
    foreign_files       what is checked of files that anybody may have written
    foreign_config      the model config that comes with weights of others
    model_garden        names and shapes in checkpoints of the TensorFlow Model Garden
    tensorflow1         checkpoints of the original BERT, in TensorFlow 1's format
    huggingface         the directory that `transformers` opens: config and weights
    tokenizer_settings  vocabulary and lower-casing of a trained BERT
    pretrained          a trained BERT read from any of these
    extension           a trained BERT with new words and more positions
"""
