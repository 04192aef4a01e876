"""Raw text to TFRecord shards of BERT pretraining instances, with Apache Beam.

The modules in the order of the flow::

    options        what to read, where to write, and how instances are made
    inputs         the files that match, and the format of each
    compression    compressed files as streams
    splits         files cut at document boundaries
    documents      a split's lines or records -> Document(file, offset, sentences)
    sentences      running text -> sentences
    tokenization   text -> WordPiece ids
    word_segmentation  which ideographs are one word
    buckets        which documents are paired with each other
    corpus         tokenized documents, as arrays and as Parquet files
    duplicates     documents with the same text
    segment_pairs  documents -> plans of [CLS] A [SEP] B [SEP]
    masking        which words of an instance are masked, and by what
    instances      plans -> arrays [N, S]
    records        arrays -> tf.train.Example bytes (the contract with `modeling`)
    shards         one bucket of documents, one pass -> one TFRecord file
    statistics     the workers' counts -> the facts in the manifest
    manifest       what a finished data set says of itself (the contract with `modeling`)
    graph          the Beam graph: tokenize, then build
    generate       raw text to a finished data set: runs all of this

Beside the flow::

    files          files that are whole or not there, and their SHA-256
    directories    where unfinished and finished parts of a data set lie
    errors         what a user can put right
    inspection     instances as pieces and as text that a person can check
    progress       how far a run has come
    report         a data set as a page that a person can check
    runner         Beam's runner: which one, and what it needs watching for
    verification   whether a data set's files are still what the manifest says
    vocabulary_training  texts -> a WordPiece vocabulary

The words of the code::

    split          a part of the input that one worker tokenizes at a time; of a data set, its train
                   or its eval part (`Bucket.split`, `Shard.split`)
    bucket         the documents that are paired with each other and shuffled together
    pass           one reading of the corpus, of `dupe_factor`, with pairs and masks of its own
    shard          the file of one bucket's instances in one pass
    receipt        what was counted while a file was made; what has one is not made again
"""
