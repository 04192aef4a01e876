"""Raw text to TFRecord shards of BERT pretraining instances, with Apache Beam.

The modules in the order of the flow::

    options        what to read, where to write, how instances are made
    inputs         the files that match, cut into splits at document boundaries
    documents      a split's bytes -> Document(file, offset, sentences)
    sentences      running text -> sentences
    tokenization   text -> WordPiece ids
    corpus         tokenized documents, as arrays and as Parquet files
    segment_pairs  documents -> plans of [CLS] A [SEP] B [SEP]
    masking        which words of an instance are masked, and by what
    instances      plans -> arrays [N, S]
    records        arrays -> tf.train.Example bytes (the contract with `modeling`)
    shards         one bucket of documents, one pass -> one TFRecord file
    manifest       what a finished data set says of itself (the contract with `modeling`)
    inspection     instances as text that a person can check
    verification   whether a data set's files are still what the manifest says
    directories    where unfinished and finished parts of a data set lie
    progress       how far a run has come
    runner         Beam's runner: which one, and what it needs watching for
    errors         what a user can put right
    statistics     the workers' counts -> the facts in the manifest
    generate       the Beam pipeline that runs all of this
"""
