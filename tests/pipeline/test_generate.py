import bz2
import gzip
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import zstandard
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

import pipeline.graph
from pipeline.buckets import BucketPlan
from pipeline.documents import BadRecord, ReadOptions, Sentences, read_documents
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inputs import InputFormat, match_files
from pipeline.manifest import Manifest
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.portions import plan_portions
from pipeline.shards import plan_shards
from pipeline.tokenization import Vocabulary
from pipeline.word_segmentation import describe_segmenter

NUM_DOCUMENTS = 40
BESIDE_SHARDS = ("manifest.json", "report.html", "vocab.txt")
TWO_PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
INSTANCES = InstanceOptions(
    max_seq_length=16, max_predictions_per_seq=3, short_seq_prob=0.0, dupe_factor=2
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, write_vocabulary):
    """Two files of documents of four sentences; each document has a word of its own."""
    folder = tmp_path_factory.mktemp("corpus")
    documents = [f"w{number} w{number} w{number}\n" * 4 + "\n" for number in range(NUM_DOCUMENTS)]
    (folder / "a.txt").write_text("".join(documents[:15]))
    (folder / "b.txt").write_text("\u200b\n\n" + "".join(documents[15:]))
    vocab_file = write_vocabulary(*(f"w{number}" for number in range(NUM_DOCUMENTS)))
    return GenerateOptions(
        input_patterns=[f"{folder}/a.txt", f"{folder}/b.txt"],
        input_format=InputFormat.TEXT,
        vocab_file=vocab_file,
        output_dir=folder / "data",
        instances=INSTANCES,
        eval_fraction=0.3,
        num_shards=3,
    )


@pytest.fixture
def options(corpus, tmp_path):
    """The options of `corpus`, with an output directory of the test's own."""
    return replace(corpus, output_dir=tmp_path / "data")


@pytest.fixture(scope="module")
def data_set(corpus):
    manifest = generate(corpus, PipelineOptions([]))
    return corpus.output_dir, manifest


def records_of(path):
    return [
        tf.train.Example.FromString(record)
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    ]


def documents_of_shard(path):
    """The document that A comes from, for every record: the first two tokens show it."""
    documents = Counter()
    for example in records_of(path):
        features = {
            name: list(feature.int64_list.value)
            for name, feature in example.features.feature.items()
        }
        labels = zip(features["masked_lm_positions"], features["masked_lm_ids"], strict=True)
        first_token = dict(labels).get(1, features["input_ids"][1])
        documents[first_token - 5] += 1
    return documents


def sha256s(manifest):
    return {shard.name: shard.sha256 for shard in manifest.shards}


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_folder_holds_what_the_manifest_says_and_nothing_else(data_set):
    folder, manifest = data_set
    shards = [*(f"train-0000{number}-of-00006.tfrecord" for number in range(6))]
    shards.append("eval-00000-of-00001.tfrecord")
    assert [shard.name for shard in manifest.shards] == shards
    assert names_in(folder) == sorted([*shards, *BESIDE_SHARDS])
    assert Manifest.read(folder) == manifest
    for shard in manifest.shards:
        content = (folder / shard.name).read_bytes()
        assert (shard.bytes, shard.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        examples = records_of(folder / shard.name)
        assert shard.instances == len(examples)
        assert shard.tokens == sum(
            sum(example.features.feature["input_mask"].int64_list.value) for example in examples
        )


def test_the_manifest_says_how_the_data_set_was_made(data_set, corpus):
    folder, manifest = data_set
    vocabulary = Vocabulary(folder / "vocab.txt")
    assert (manifest.vocab_sha256, manifest.vocab_size) == (vocabulary.sha256, len(vocabulary))
    assert (folder / "vocab.txt").read_bytes() == corpus.vocab_file.read_bytes()
    assert (manifest.max_seq_length, manifest.max_predictions_per_seq) == (16, 3)
    assert manifest.do_lower_case
    assert asdict(INSTANCES).items() <= manifest.options.items()
    assert asdict(ReadOptions()).items() <= manifest.options.items()
    assert manifest.options["input_format"] == "text"
    assert manifest.options["word_segmenter"] is None
    assert manifest.options["drop_duplicates"] is False


def test_statistics_add_up(data_set):
    folder, manifest = data_set
    counts = manifest.statistics["corpus"]
    assert counts["documents_read"] == NUM_DOCUMENTS + 1
    assert counts["documents_without_tokens"] == counts["sentences_without_tokens"] == 1
    assert counts["documents_tokenized"] == NUM_DOCUMENTS
    assert counts["sentences_read"] == NUM_DOCUMENTS * 4 + 1
    assert counts["tokens"] == NUM_DOCUMENTS * 12
    assert counts["input_files"] == 2
    assert counts["unknown_tokens"] == counts["share_unknown"] == 0
    for reason in ("records_skipped", "documents_too_short", "documents_duplicate"):
        assert counts[reason] == 0
    for split in ("train", "eval"):
        shards = manifest.shards_of(split)
        for name in ("instances", "tokens"):
            total = sum(getattr(shard, name) for shard in shards)
            assert manifest.statistics[split][name] == total
        documents = sum(shard.documents for shard in shards if shard.pass_index == 0)
        assert manifest.statistics[split]["documents"] == documents
        labels = [
            example.features.feature["next_sentence_labels"].int64_list.value[0]
            for shard in shards
            for example in records_of(folder / shard.name)
        ]
        assert manifest.statistics[split]["random_next"] == sum(labels) > 0
        lengths = manifest.statistics[split]["instances_by_length"]
        assert sum(lengths.values()) == manifest.statistics[split]["instances"]
        masked = manifest.statistics[split]["most_masked_tokens"]
        assert list(masked.values()) == sorted(masked.values(), reverse=True)
        assert 0 < sum(masked.values()) <= manifest.statistics[split]["masked"]


def test_no_document_is_in_both_splits_and_each_is_in_one_bucket_of_every_pass(data_set):
    folder, manifest = data_set
    shards_of_document = defaultdict(list)
    for shard in manifest.shards:
        documents = documents_of_shard(folder / shard.name)
        assert len(documents) == shard.documents
        for document in documents:
            shards_of_document[document].append((shard.split, shard.pass_index))
    assert sorted(shards_of_document) == list(range(NUM_DOCUMENTS))
    kinds = Counter(map(tuple, shards_of_document.values()))
    assert kinds.keys() == {(("train", 0), ("train", 1)), (("eval", 0),)}
    assert 4 <= kinds[("eval", 0),] <= 20


def test_copies_of_a_document_stay_in_its_bucket_and_differ_between_passes(data_set):
    folder, manifest = data_set
    train = manifest.shards_of("train")
    for first, second in zip(train[:3], train[3:], strict=True):
        assert (first.pass_index, second.pass_index) == (0, 1)
        paths = folder / first.name, folder / second.name
        assert set(documents_of_shard(paths[0])) == set(documents_of_shard(paths[1]))
        assert first.sha256 != second.sha256


def test_a_second_run_gives_the_same_bytes(data_set, options):
    assert generate(options, PipelineOptions([])) == data_set[1]
    for name in names_in(data_set[0]):
        assert (options.output_dir / name).read_bytes() == (data_set[0] / name).read_bytes()


def test_the_order_of_the_files_does_not_matter(data_set, options):
    reordered = replace(options, input_patterns=options.input_patterns[::-1])
    assert generate(reordered, PipelineOptions([])) == data_set[1]


@pytest.mark.parametrize("portion_bytes", [1, 150])
def test_the_cuts_of_the_portions_do_not_matter(portion_bytes, data_set, options, monkeypatch):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", portion_bytes)
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", portion_bytes)
    assert generate(options, PipelineOptions([])) == data_set[1]


@pytest.mark.slow
def test_shards_have_the_same_bytes_from_several_processes(data_set, options, monkeypatch):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 100)
    manifest = generate(options, PipelineOptions(TWO_PROCESSES))
    assert sha256s(manifest) == sha256s(data_set[1])
    assert names_in(options.output_dir) == names_in(data_set[0])


def test_shards_stay_when_the_corpus_moves(data_set, options, tmp_path):
    (tmp_path / "moved").mkdir()
    patterns = [str(shutil.copy(path, tmp_path / "moved")) for path in options.input_patterns]
    manifest = generate(replace(options, input_patterns=patterns), PipelineOptions([]))
    assert sha256s(manifest) == sha256s(data_set[1])


def test_another_seed_gives_other_shards_of_the_same_documents(data_set, options):
    instances = replace(INSTANCES, random_seed=1, dupe_factor=1)
    manifest = generate(replace(options, instances=instances), PipelineOptions([]))
    first_pass = [shard for shard in data_set[1].shards if shard.pass_index == 0]
    assert len(first_pass) == len(manifest.shards)
    for shard, other in zip(first_pass, manifest.shards, strict=True):
        assert shard.documents == other.documents
        assert shard.sha256 != other.sha256


def test_wikiextractor_and_compressed_files_become_the_same_shards(options, tmp_path):
    text = "".join(
        f'<doc id="{number}" url="u" title="w0">\nw0\n\nW{number} w1. W2.\nW3 w{number}.\n</doc>\n'
        for number in range(10)
    )
    manifests = []
    for name, content in (("wiki_00", text.encode()), ("wiki_00.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(content)
        wiki = replace(
            options,
            input_patterns=[str(tmp_path / name)],
            input_format=InputFormat.WIKIEXTRACTOR,
            output_dir=tmp_path / f"data of {name}",
            eval_fraction=0.0,
            num_shards=1,
        )
        manifests.append(generate(wiki, PipelineOptions([])))
    plain, compressed = manifests
    assert plain.statistics["corpus"]["sentences_read"] == 30
    assert sha256s(plain) == sha256s(compressed)


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents", "unknown"),
    [(True, None, 6), (True, False, 0), (False, None, 3)],
)
def test_case_and_accents_are_treated_as_asked(
    do_lower_case, strip_accents, unknown, options, tmp_path, write_vocabulary
):
    (tmp_path / "accents.txt").write_text("é É\n" * 3)
    accents = replace(
        options,
        input_patterns=[f"{tmp_path}/accents.txt"],
        vocab_file=write_vocabulary("é"),
        do_lower_case=do_lower_case,
        strip_accents=strip_accents,
        eval_fraction=0.0,
    )
    manifest = generate(accents, PipelineOptions([]))
    assert manifest.statistics["corpus"]["unknown_tokens"] == unknown
    assert (manifest.do_lower_case, manifest.strip_accents) == (do_lower_case, strip_accents)


def test_a_data_set_is_not_overwritten_unless_asked(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    with pytest.raises(UserError, match="already holds a data set"):
        generate(options, PipelineOptions([]))
    assert Manifest.read(options.output_dir) == data_set[1]

    smaller = replace(
        options, overwrite=True, num_shards=1, instances=replace(INSTANCES, dupe_factor=1)
    )
    manifest = generate(smaller, PipelineOptions([]))
    assert names_in(options.output_dir) == sorted([*sha256s(manifest), *BESIDE_SHARDS])
    assert len(manifest.shards) == 2


def test_a_data_set_can_be_made_again_with_its_own_vocabulary(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    again = replace(options, overwrite=True, vocab_file=options.output_dir / "vocab.txt")
    assert generate(again, PipelineOptions([])) == data_set[1]


def test_what_a_killed_run_left_is_removed(data_set, options):
    left = options.output_dir / "clozemill_in_progress" / "tokenized"
    left.mkdir(parents=True)
    (left / "split-00000.tmp").write_text("half")
    (options.output_dir / "train-00007-of-00009.tfrecord").write_text("old")
    assert generate(options, PipelineOptions([])) == data_set[1]
    assert names_in(options.output_dir) == names_in(data_set[0])


@pytest.mark.parametrize("text", ["\n \n\n", "\u200b\n\n\ufeff\n", "w1 w2\n"])
def test_a_corpus_without_instances_is_an_error_and_leaves_nothing(text, options, tmp_path):
    (tmp_path / "empty.txt").write_text(text)
    empty = replace(options, input_patterns=[f"{tmp_path}/empty.txt"])
    with pytest.raises(UserError, match=r"no training instance came out of .*empty\.txt"):
        generate(empty, PipelineOptions([]))
    assert names_in(options.output_dir) == []


def fail_at_call(number, error, monkeypatch, name):
    """Makes a step of the workers fail when it is called for the `number`th time."""
    step = getattr(pipeline.graph, name)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise error
        return step(*arguments)

    monkeypatch.setattr(pipeline.graph, name, fail)
    return calls


@pytest.mark.parametrize("step", ["tokenize_document", "build_shard"])
def test_a_failure_in_a_worker_leaves_no_data_set_and_can_be_repeated(
    step, data_set, options, monkeypatch
):
    with monkeypatch.context() as patch:
        calls = fail_at_call(4, ValueError("the disk is on fire"), patch, step)
        with pytest.raises(Exception, match="the disk is on fire") as raised:
            generate(options, PipelineOptions([]))
    assert not isinstance(raised.value, UserError)
    assert len(calls) == 4
    assert "manifest.json" not in names_in(options.output_dir)
    assert generate(options, PipelineOptions([])) == data_set[1]
    assert names_in(options.output_dir) == names_in(data_set[0])


def test_a_users_error_in_a_worker_comes_through(options, monkeypatch):
    message = "the file /x/a.txt (of 3) is [unusable]: do something"
    fail_at_call(1, UserError(message), monkeypatch, "tokenize_document")
    with pytest.raises(UserError) as raised:
        generate(options, PipelineOptions([]))
    assert str(raised.value) == message
    assert names_in(options.output_dir) == ["clozemill_in_progress"]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param([], id="one process"),
        pytest.param(TWO_PROCESSES, id="two processes", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_input_file_is_named_and_leaves_no_data_set(flags, options, tmp_path):
    damaged = tmp_path / "damaged.txt.gz"
    damaged.write_bytes(gzip.compress(Path(options.input_patterns[0]).read_bytes())[:-20])
    with pytest.raises(UserError, match=r"damaged\.txt\.gz") as raised:
        generate(replace(options, input_patterns=[str(damaged)]), PipelineOptions(flags))
    assert "while running" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert names_in(options.output_dir) == ["clozemill_in_progress"]


def test_a_failed_overwrite_can_be_repeated(data_set, options, monkeypatch):
    """The command line leaves a file of flags beside a data set."""
    shutil.copytree(data_set[0], options.output_dir)
    (options.output_dir / "flags.txt").write_text("--overwrite")
    overwrite = replace(options, overwrite=True)
    with monkeypatch.context() as patch:
        fail_at_call(1, ValueError("on fire"), patch, "build_shard")
        with pytest.raises(Exception, match="on fire"):
            generate(overwrite, PipelineOptions([]))
    assert generate(overwrite, PipelineOptions([])) == data_set[1]


def test_documents_that_a_runner_loses_are_noticed(options, monkeypatch):
    step = pipeline.graph.read_documents_of_bucket
    monkeypatch.setattr(
        pipeline.graph,
        "read_documents_of_bucket",
        lambda pieces, *others: step(pieces[1:], *others),
    )
    with pytest.raises(RuntimeError, match="lost"):
        generate(options, PipelineOptions([]))
    assert names_in(options.output_dir) == []


@pytest.mark.parametrize("lost", ["train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"])
def test_a_shard_that_a_runner_loses_is_noticed(lost, options, monkeypatch):
    pair_plans_with_pieces = pipeline.graph._pair_plans_with_row_groups

    def pair_others(grouped):
        return (pair for pair in pair_plans_with_pieces(grouped) if pair[0].name != lost)

    monkeypatch.setattr(pipeline.graph, "_pair_plans_with_row_groups", pair_others)
    with pytest.raises(RuntimeError, match=f"{lost} was never finished: the runner has lost"):
        generate(replace(options, eval_fraction=0.0, num_shards=1), PipelineOptions([]))
    assert "manifest.json" not in names_in(options.output_dir)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"vocab_file": Path("missing_vocab.txt")}, "missing_vocab"),
        ({"input_patterns": ["missing_corpus*.txt"]}, "missing_corpus"),
    ],
    ids=["vocabulary", "input"],
)
def test_missing_files_are_named_before_anything_is_written(wrong, name, options):
    with pytest.raises(UserError, match=name):
        generate(replace(options, **wrong), PipelineOptions([]))
    assert not options.output_dir.exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=DaskRunner"],
        ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"],
        ["--direct_running_mode=multi_threading"],
        ["--experiments=data_buffer_time_limit_ms=100"],
    ],
)
def test_runners_that_lose_records_are_refused(flags, options):
    with pytest.raises(UserError, match=flags[0].partition("=")[0]):
        generate(options, PipelineOptions(flags))
    assert not options.output_dir.exists()


@pytest.fixture
def interrupted_job(monkeypatch):
    """The job of a runner that is elsewhere, in which the user presses Ctrl-C."""

    class Job:
        is_cancelled = False

        def wait_until_finish(self):
            raise KeyboardInterrupt

        def cancel(self):
            self.is_cancelled = True

    class Runner(PortableRunner):
        def run_portable_pipeline(self, pipeline, options):
            job.pipeline = self._optimize_pipeline(pipeline, options)
            return job

    job = Job()
    monkeypatch.setattr("apache_beam.pipeline.create_runner", lambda _: Runner())
    return job


def test_an_interrupted_run_cancels_its_job(interrupted_job, options):
    with pytest.raises(KeyboardInterrupt):
        generate(options, PipelineOptions(["--runner=FlinkRunner"]))
    assert interrupted_job.is_cancelled


def test_a_job_is_made_of_what_every_portable_runner_has(interrupted_job, options):
    with pytest.raises(KeyboardInterrupt):
        generate(replace(options, drop_duplicates=True), PipelineOptions(["--runner=FlinkRunner"]))
    transforms = interrupted_job.pipeline.components.transforms.values()
    urns = {transform.spec.urn for transform in transforms if not transform.subtransforms}
    kinds = {urn.split(":")[2] for urn in urns}
    assert {kind for kind in kinds if not kind.startswith("combine")} == {
        *("impulse", "pardo", "group_by_key", "flatten")
    }
    assert not interrupted_job.pipeline.requirements  # such as state, timers, splittable DoFns


def test_more_shards_than_documents_are_fine(options):
    many = replace(options, num_shards=60, eval_fraction=0.0)
    manifest = generate(many, PipelineOptions([]))
    plans = plan_shards(BucketPlan(1, 0.0, 60), dupe_factor=2)
    assert [shard.name for shard in manifest.shards] == [plan.name for plan in plans]
    assert sum(shard.documents for shard in manifest.shards) == 2 * NUM_DOCUMENTS
    assert any(shard.instances == 0 for shard in manifest.shards)


def test_the_manifest_on_disk_is_the_returned_one(data_set):
    folder, manifest = data_set
    assert json.loads((folder / "manifest.json").read_text()) == json.loads(
        json.dumps(asdict(manifest))
    )


# Other formats than text, and several at once.


def texts_of(numbers):
    """Documents of four lines; each has a word of its own."""
    return [f"w{number} w{number} w{number}\n" * 4 for number in numbers]


def write_as(path, texts):
    """Writes the documents in the format that the file's name stands for."""
    records = "".join(
        json.dumps({"id": str(number), "title": "T", "text": f"T\n\n{text}"}) + "\n"
        for number, text in enumerate(texts)
    )
    if path.name.endswith(".txt"):
        path.write_text("\n".join(texts))
    elif path.name.endswith(".parquet"):
        pq.write_table(pa.table({"text": texts}), path, row_group_size=3)
    elif path.name.endswith(".zst"):
        path.write_bytes(zstandard.ZstdCompressor().compress(records.encode()))
    elif path.name.endswith(".bz2"):
        pages = (f'<doc id="1" url="u" title="T">\nT\n\n{text}\n</doc>\n' for text in texts)
        path.write_bytes(bz2.compress("".join(pages).encode()))
    else:
        path.write_text(records)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, corpus):
    """Five files of eight documents each, every one in another format."""
    folder = tmp_path_factory.mktemp("mixed")
    names = ["a.txt", "b.jsonl", "c.parquet", "d.jsonl.zst", "wiki_00.bz2"]
    for number, name in enumerate(names):
        write_as(folder / name, texts_of(range(8 * number, 8 * number + 8)))
    options = replace(
        corpus,
        input_patterns=[f"{folder}/{name}" for name in names],
        input_format=InputFormat.AUTO,
        output_dir=folder / "data",
    )
    return options, generate(options, PipelineOptions([]))


def documents_of_first_pass(folder, manifest):
    return sum(
        (
            documents_of_shard(folder / shard.name)
            for shard in manifest.shards
            if shard.pass_index == 0
        ),
        Counter(),
    )


def test_files_of_all_formats_together_are_one_corpus(mixed):
    options, manifest = mixed
    counts = manifest.statistics["corpus"]
    assert (counts["documents_read"], counts["sentences_read"]) == (40, 160)
    assert (counts["tokens"], counts["unknown_tokens"], counts["input_files"]) == (480, 0, 5)
    assert manifest.options["input_format"] == "auto"
    assert set(documents_of_first_pass(options.output_dir, manifest)) == set(range(40))


@pytest.mark.parametrize("portion_bytes", [1, 300])
def test_order_and_cuts_of_files_of_all_formats_do_not_matter(
    portion_bytes, mixed, tmp_path, monkeypatch
):
    options, manifest = mixed
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", portion_bytes)
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", portion_bytes)
    patterns = [*options.input_patterns[::-1], options.input_patterns[2]]
    again = replace(options, input_patterns=patterns, output_dir=tmp_path / "data")
    assert generate(again, PipelineOptions([])) == manifest
    for name in names_in(options.output_dir):
        assert (tmp_path / "data" / name).read_bytes() == (options.output_dir / name).read_bytes()


def test_files_of_all_formats_have_the_same_bytes_from_several_processes(
    mixed, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 100)
    options, manifest = mixed
    again = replace(options, output_dir=tmp_path / "data")
    assert generate(again, PipelineOptions(TWO_PROCESSES)) == manifest


@pytest.mark.parametrize(
    ("name", "input_format"),
    [
        ("corpus.jsonl", InputFormat.JSONL),
        ("corpus.parquet", InputFormat.PARQUET),
        ("wiki_00", InputFormat.WIKIEXTRACTOR),
        ("corpus.ndjson.zst", InputFormat.AUTO),
    ],
)
def test_every_format_gives_the_documents_of_text(name, input_format, options, tmp_path):
    write_as(tmp_path / name, texts_of(range(NUM_DOCUMENTS)))
    other = replace(
        options, input_patterns=[f"{tmp_path}/{name}"], input_format=input_format, eval_fraction=0.0
    )
    manifest = generate(other, PipelineOptions([]))
    assert set(documents_of_first_pass(options.output_dir, manifest)) == set(range(NUM_DOCUMENTS))
    assert manifest.statistics["corpus"]["sentences_read"] == 4 * NUM_DOCUMENTS
    assert manifest.options["input_format"] == input_format


def test_records_left_out_and_short_documents_are_in_the_manifest(options, tmp_path):
    lines = [json.dumps({"body": text}) for text in (*texts_of(range(30)), "w1", "\u200b" * 9)]
    (tmp_path / "corpus.jsonl").write_text("\n".join([*lines[:7], "{", "[]", *lines[7:]]))
    reading = ReadOptions("body", on_bad_record=BadRecord.SKIP, min_document_characters=3)
    other = replace(
        options,
        input_patterns=[f"{tmp_path}/corpus.jsonl"],
        input_format=InputFormat.AUTO,
        reading=reading,
    )
    manifest = generate(other, PipelineOptions([]))
    counts = manifest.statistics["corpus"]
    assert counts["records_skipped"] == 2
    assert counts["documents_read"] == 32
    assert counts["documents_too_short"] == counts["documents_without_tokens"] == 1
    assert counts["documents_tokenized"] == 30
    assert asdict(reading).items() <= manifest.options.items()


def test_a_bad_record_is_named_and_leaves_no_data_set(options, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"text": "w1"}\n{"body": "w2"}\n')
    other = replace(
        options, input_patterns=[f"{tmp_path}/corpus.jsonl"], input_format=InputFormat.AUTO
    )
    with pytest.raises(UserError, match=r"/corpus\.jsonl, line 2: .*'text', of \['body'\]"):
        generate(other, PipelineOptions([]))
    assert "manifest.json" not in names_in(options.output_dir)


# Duplicates.


@pytest.fixture(scope="module")
def doubled(tmp_path_factory, corpus):
    """Documents 0 to 29 in three files of different formats, most of them more than once."""
    folder = tmp_path_factory.mktemp("doubled")
    for name, numbers in {
        "a.jsonl": [*range(20), 3, 4, 3],
        "b.txt": [5, 3, *range(10, 25), 24],
        "c.parquet": [*range(22, 30), 29, 0, 7],
    }.items():
        write_as(folder / name, texts_of(numbers))
    return replace(
        corpus,
        input_patterns=[f"{folder}/*"],
        input_format=InputFormat.AUTO,
        output_dir=folder / "data",
        drop_duplicates=True,
    )


@pytest.fixture(scope="module")
def without_duplicates(doubled):
    return generate(doubled, PipelineOptions([]))


def test_every_text_is_there_once_in_all_passes_of_train_and_eval(doubled, without_duplicates):
    manifest = without_duplicates
    for pass_index in range(2):
        shards = [*manifest.shards_of("eval")]
        shards += [s for s in manifest.shards_of("train") if s.pass_index == pass_index]
        documents = [
            document
            for shard in shards
            for document in documents_of_shard(doubled.output_dir / shard.name)
        ]
        assert sorted(documents) == list(range(30))
        assert sum(shard.documents for shard in shards) == 30


def test_the_manifest_counts_the_duplicates(without_duplicates):
    counts = without_duplicates.statistics["corpus"]
    assert counts["documents_read"] == counts["documents_tokenized"] == 23 + 18 + 11
    assert counts["documents_duplicate"] == 52 - 30
    documents = [without_duplicates.statistics[split]["documents"] for split in ("train", "eval")]
    assert sum(documents) == 30
    assert min(documents) > 0
    assert without_duplicates.options["drop_duplicates"] is True


def test_the_first_of_equal_documents_decides_where_its_text_goes(doubled, without_duplicates):
    files = match_files(doubled.input_patterns)
    plan = BucketPlan.for_corpus(sum(file.text_bytes for file in files), 0.3, 3)
    first = {}
    for portion in plan_portions(files):
        for file_range in portion:
            for document in read_documents(file_range, ReadOptions(), Counter()):
                bucket = plan.bucket_of(file_range.file, document)
                first.setdefault(document.sentences[0].split()[0], bucket)
    found = {}
    for shard in without_duplicates.shards:
        if shard.pass_index == 0:
            for document in documents_of_shard(doubled.output_dir / shard.name):
                found[f"w{document}"] = shard.name
    plans = {plan.bucket: plan.name for plan in plan_shards(plan, dupe_factor=1)}
    names = {bucket: name.replace("-of-00003", "-of-00006") for bucket, name in plans.items()}
    assert found == {word: names[bucket] for word, bucket in first.items()}


@pytest.mark.parametrize("partitions", [1, 7])
def test_duplicates_do_not_depend_on_portions_and_partitions(
    partitions, doubled, without_duplicates, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 1)
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", 1)
    monkeypatch.setattr("pipeline.graph.count_partitions", lambda _: partitions)
    again = replace(doubled, output_dir=tmp_path / "data")
    assert generate(again, PipelineOptions([])) == without_duplicates
    assert names_in(tmp_path / "data") == names_in(doubled.output_dir)


def test_duplicates_are_the_same_from_several_processes(
    doubled, without_duplicates, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 100)
    again = replace(doubled, output_dir=tmp_path / "data")
    assert generate(again, PipelineOptions(TWO_PROCESSES)) == without_duplicates


def test_duplicates_stay_unless_they_are_to_be_dropped(doubled, tmp_path):
    manifest = generate(
        replace(doubled, drop_duplicates=False, output_dir=tmp_path / "data"), PipelineOptions([])
    )
    assert manifest.statistics["corpus"]["documents_duplicate"] == 0
    first_pass = [shard for shard in manifest.shards if shard.pass_index == 0]
    assert sum(shard.documents for shard in first_pass) == 52


def test_a_corpus_without_duplicates_stays_whole(data_set, options):
    manifest = generate(replace(options, drop_duplicates=True), PipelineOptions([]))
    assert manifest.statistics == data_set[1].statistics
    assert sha256s(manifest) == sha256s(data_set[1])


def test_halves_of_surrogate_pairs_are_unknown_characters_from_end_to_end(options, tmp_path):
    text = r"w1 \ud800 w2\nw3\udfff 我\udc00们 \ud83d\nw4 w5"
    lines = [f'{{"text": "{text} w{number}"}}\n' for number in (6, 7, 8, 9, 6, 6)]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    other = replace(
        options,
        input_patterns=[f"{tmp_path}/corpus.jsonl"],
        input_format=InputFormat.AUTO,
        drop_duplicates=True,
        word_segmenter="jieba",
        eval_fraction=0.0,
        num_shards=1,
    )
    counts = generate(other, PipelineOptions([])).statistics["corpus"]
    assert (counts["documents_read"], counts["documents_duplicate"]) == (6, 2)
    # The half beside w1, w3 with its half, two ideographs, the half between, and the last.
    assert counts["unknown_tokens"] == 6 * 6


# The words of Chinese.

SENTENCE = "我来到北京清华大学"
JIEBAS_WORDS = ["我", "来到", "北京", "清华大学"]


@pytest.fixture
def chinese(options, tmp_path, write_vocabulary):
    (tmp_path / "chinese.txt").write_text((f"{SENTENCE}\n" * 6 + "\n") * 20)
    return replace(
        options,
        input_patterns=[f"{tmp_path}/chinese.txt"],
        vocab_file=write_vocabulary(*SENTENCE),
        eval_fraction=0.0,
        num_shards=1,
        instances=replace(INSTANCES, max_seq_length=40, max_predictions_per_seq=12),
    )


def masked_together(options, manifest):
    """For every whole word of jieba's in the records: whether each of its pieces is masked."""
    tokens = Vocabulary(options.vocab_file).tokens
    found = []
    for shard in manifest.shards:
        for example in records_of(options.output_dir / shard.name):
            features = example.features.feature
            text = [tokens[number] for number in features["input_ids"].int64_list.value]
            weights = features["masked_lm_weights"].float_list.value
            positions = features["masked_lm_positions"].int64_list.value[: int(sum(weights))]
            labels = features["masked_lm_ids"].int64_list.value
            for position, label in zip(positions, labels, strict=False):
                text[position] = tokens[label]
            for word in JIEBAS_WORDS:
                for start in range(len(text) - len(word)):
                    if text[start : start + len(word)] == list(word):
                        columns = range(start, start + len(word))
                        found.append([column in positions for column in columns])
    return found


@pytest.mark.parametrize("segmenter", ["jieba", "my_words:of"])
def test_the_pieces_of_a_chinese_word_are_masked_together(
    segmenter, chinese, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_words.py").write_text(f"def of(text):\n    return {JIEBAS_WORDS}\n")
    with_words = replace(chinese, word_segmenter=segmenter)
    manifest = generate(with_words, PipelineOptions([]))
    assert manifest.options["word_segmenter"] == describe_segmenter(segmenter)
    found = masked_together(with_words, manifest)
    assert len(found) > 500
    assert all(len(set(word)) == 1 for word in found)
    assert 50 < sum(all(word) for word in found) < len(found) / 2


def test_without_a_segmenter_each_ideograph_is_masked_apart(chinese):
    found = masked_together(chinese, generate(chinese, PipelineOptions([])))
    assert sum(len(set(word)) > 1 for word in found) > 50


def test_words_that_are_not_those_of_the_text_are_an_error(chinese, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wrong_words.py").write_text("def of(text):\n    return text.split('京')\n")
    with pytest.raises(UserError, match="are not those of the text, from '京清华大学' on"):
        generate(replace(chinese, word_segmenter="wrong_words:of"), PipelineOptions([]))


def test_a_segmenter_that_cannot_be_loaded_is_named_before_anything_is_written(chinese):
    with pytest.raises(UserError, match="--word_segmenter=no_module:cut"):
        generate(replace(chinese, word_segmenter="no_module:cut"), PipelineOptions([]))
    assert not chinese.output_dir.exists()


# A kept tokenized corpus, and a run that goes on.


@pytest.fixture(scope="module")
def tokenized_dir(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized")
    options = replace(corpus, output_dir=folder / "data", tokenized_dir=folder / "tokenized")
    generate(options, PipelineOptions([]))
    return folder / "tokenized"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"reading": ReadOptions(text_field="body")}, "text_field 'text', not 'body'"),
        (
            {"reading": ReadOptions(min_document_characters=2)},
            "min_document_characters 0, not 2",
        ),
        ({"reading": ReadOptions(sentences=Sentences.SPLIT)}, "sentences None, not 'split'"),
        (
            {"reading": ReadOptions(on_bad_record=BadRecord.SKIP)},
            "on_bad_record 'fail', not 'skip'",
        ),
        ({"word_segmenter": "jieba"}, "word_segmenter None, not 'jieba "),
        ({"strip_accents": False}, "strip_accents None, not False"),
        ({"input_format": InputFormat.JSONL}, "other input files"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tokenized_corpus_that_was_read_otherwise_is_refused(
    change, difference, options, tokenized_dir
):
    other = replace(options, tokenized_dir=tokenized_dir, **change)
    with pytest.raises(UserError) as raised:
        generate(other, PipelineOptions([]))
    assert f"{tokenized_dir} holds a tokenized corpus made with {difference}" in str(raised.value)
    assert not options.output_dir.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"drop_duplicates": True},
        {"instances": replace(INSTANCES, max_seq_length=32, random_seed=3)},
    ],
    ids=["duplicates", "instances"],
)
def test_a_tokenized_corpus_serves_other_options_without_its_text(
    change, options, tokenized_dir, tmp_path, monkeypatch
):
    def no_text(*_):
        raise AssertionError("the text was read")

    apart = generate(replace(options, output_dir=tmp_path / "apart", **change), PipelineOptions([]))
    monkeypatch.setattr(pipeline.graph, "read_documents", no_text)
    reused = replace(options, tokenized_dir=tokenized_dir, **change)
    assert generate(reused, PipelineOptions([])) == apart


def test_a_tokenized_corpus_with_known_duplicates_serves_again(doubled, tmp_path):
    tokenized = tmp_path / "tokenized"
    manifests = []
    for name, drop_duplicates in (("1", True), ("2", False), ("3", True)):
        options = replace(
            doubled,
            output_dir=tmp_path / name,
            tokenized_dir=tokenized,
            drop_duplicates=drop_duplicates,
        )
        manifests.append(generate(options, PipelineOptions([])))
    assert manifests[0] == manifests[2]
    assert manifests[1].statistics["corpus"]["documents_duplicate"] == 0


def test_a_damaged_file_of_duplicates_is_made_again(doubled, without_duplicates, tmp_path):
    options = replace(doubled, output_dir=tmp_path / "data", tokenized_dir=tmp_path / "tokenized")
    generate(options, PipelineOptions([]))
    (duplicates,) = (tmp_path / "tokenized").glob("duplicates-*.parquet")
    duplicates.write_bytes(duplicates.read_bytes()[:100])
    again = replace(options, output_dir=tmp_path / "again")
    assert generate(again, PipelineOptions([])) == without_duplicates


@pytest.mark.parametrize("drop_duplicates", [True, False])
def test_a_run_does_not_go_on_with_the_other_choice_of_duplicates(
    drop_duplicates, doubled, tmp_path, monkeypatch
):
    options = replace(doubled, output_dir=tmp_path / "data", drop_duplicates=drop_duplicates)
    with monkeypatch.context() as patch:
        fail_at_call(4, ValueError("killed"), patch, "build_shard")
        with pytest.raises(Exception, match="killed"):
            generate(options, PipelineOptions([]))
    other = replace(options, drop_duplicates=not drop_duplicates)
    difference = f"drop_duplicates {drop_duplicates}, not {not drop_duplicates}"
    with pytest.raises(UserError, match=f"{difference}.*--overwrite"):
        generate(other, PipelineOptions([]))
    calls = fail_at_call(99, ValueError("never"), monkeypatch, "build_shard")
    manifest = generate(options, PipelineOptions([]))
    assert len(calls) == 7 - 3
    assert manifest.statistics["corpus"]["documents_duplicate"] == (22 if drop_duplicates else 0)
    assert sum(shard.documents for shard in manifest.shards if shard.pass_index == 0) == (
        30 if drop_duplicates else 52
    )
