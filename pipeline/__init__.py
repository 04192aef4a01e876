"""Raw text to TFRecord shards of BERT pretraining instances, with Apache Beam.

The files that text goes through, in the order of the flow::

    options            what to read, where to write, how instances are made
    sentence_pairs     what an instance holds; part of the contract with `modeling`
    trees              what is in a folder, of a disk or of a store
    patterns           paths, URLs and globs -> the files that they name
    inputs             these files, and what the first bytes of each say that it is
    mixtures           several corpora, and the share of each
    signatures         the first bytes of files that are no text
    compression        compressed files as streams
    encodings          text of any encoding as UTF-8, and the check that it is text
    portions           the corpus cut into portions at document boundaries
    formats            lines or records of a file -> the lines of each document
    documents          lines of a document -> Document(file, offset, sentences)
    sentences          running text -> sentences
    vocabulary         vocab.txt: tokens and their ids; part of the contract with `modeling`
    tokenization       text -> WordPiece ids
    pre_tokenizers     what finds the words before WordPiece; part of the contract with `modeling`
    pre_tokenization   Japanese text -> its words -> WordPiece ids
    word_segmentation  text without spaces -> words that are masked together
    piece_offsets      where in a text each of its pieces begins
    segmenters         the packages that find words in Chinese, Japanese, Korean and Thai
    buckets            the bucket of each document; documents are paired within a bucket
    corpus             tokenized documents, as arrays and as Parquet files
    duplicates         documents with the same text, and the lists of what is dropped
    minhash            documents -> short arrays that tell how much of their text they share
    near_duplicates    documents with nearly the same text
    mixing             which documents of a mixture each pass reads, and how often
    segment_pairs      documents -> plans of [CLS] A [SEP] B [SEP], as in the original
    segments           plans of other pairs, or of single segments, for --sentence_pairs
    draws              random numbers for masks, from a generator or from a hash
    masking            the choice of masked words and of their replacements
    ngrams             n-grams of words to mask, for --max_ngram_size
    instances          plans -> arrays [N, S] of masked instances
    packing            which sequences share a row, for --packed_row_length
    rows               instances -> packed rows, and back
    records            arrays -> tf.train.Example bytes; part of the contract with `modeling`
    shards             one bucket of documents, one pass -> one TFRecord file
    statistics         the workers' counts -> the figures in the manifest
    health             the figures out of bounds, and what mends each
    manifest           the description of a finished data set; part of the contract with `modeling`
    stages             the work of the workers: tokenize, build
    duplicate_stages   their work between these: find duplicates
    mixture_stages     their work for a mixture: measure documents, plan passes
    graph              the stages as a Beam graph
    spark              the stages as jobs of a Spark cluster
    generate           the whole job: raw text -> finished data set
    foreign_records    records of other programs -> checks and counts
    adoption           records of other programs -> finished data set

Files beside the flow::

    foreign_vocabularies  vocabularies of other software -> a vocab.txt
    errors               UserError, the error that a user can fix
    failures             exceptions of Beam and its workers -> errors that a user can fix
    paths                pipes, sockets and devices, which are no files
    storage              where bytes are: paths on a disk, and objects of a store
    stores               requests to object stores: options, retries, and errors in one line
    store_locks          the lock of a folder on a store, which its owner renews
    files                whole files and directories, SHA-256, and the lock of a directory
    json_files           JSON files with a digest of themselves, checked when they are read
    directories          the places of finished and unfinished files of a data set
    parts                files whose parts are for different workers
    receipts             the record of a finished file, which is not made again
    runner               the choice of Beam's runner, and a guard around all
    portable_runner      checks and guards for runners whose workers others start
    worker_processes     processes of this machine, forked before Beam is imported
    sample               a part of the text, read first to see what the options make of it
    disk_space           the size that is expected, and whether the disks have room for it
    progress             progress bars and log lines
    inspection           instances as text that a person can check
    report               a data set as an HTML page that a person can check
    templates            Jinja templates, filled
    verification         the check of a data set's files against its manifest
    vocabulary_training  text -> a WordPiece vocabulary
    vocabulary_extension  text and a vocabulary -> that vocabulary with new words

The words of the code::

    portion   a part of the input that one worker tokenizes at a time
    split     the train part or the eval part of a data set
    bucket    documents that are paired with each other and shuffled together
    pass      one reading of the corpus, of `dupe_factor`, with its own pairs and masks
    shard     the file of one bucket's instances in one pass
    receipt   the counts and the SHA-256 of a finished file
"""
