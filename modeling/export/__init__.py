"""Trained weights in the formats that other software opens.

::

    formats           the names of the formats
    export            a trained BERT to a directory in one of the formats
    output_directory  that directory: complete, absent or as before
    model_card        the README of an export for Hugging Face
    onnx_graph        BERT as an ONNX graph
    saved_model       BERT as a SavedModel
"""
