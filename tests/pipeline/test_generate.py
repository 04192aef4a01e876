import gzip
import hashlib
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PipelineOptions

import pipeline.generate
from pipeline.corpus import BucketPlan
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inputs import InputFormat
from pipeline.manifest import Manifest
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.shards import plan_shards
from pipeline.tokenization import Vocabulary

NUM_DOCUMENTS = 40
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
    assert names_in(folder) == sorted([*shards, "manifest.json", "vocab.txt"])
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
    assert manifest.options["input_format"] == "text"


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


@pytest.mark.parametrize("split_bytes", [1, 150])
def test_the_cuts_of_the_splits_do_not_matter(split_bytes, data_set, options, monkeypatch):
    monkeypatch.setattr("pipeline.inputs.SMALLEST_SPLIT_BYTES", split_bytes)
    monkeypatch.setattr("pipeline.inputs.LARGEST_SPLIT_BYTES", split_bytes)
    assert generate(options, PipelineOptions([])) == data_set[1]


@pytest.mark.slow
def test_shards_have_the_same_bytes_from_several_processes(data_set, options, monkeypatch):
    monkeypatch.setattr("pipeline.inputs.SMALLEST_SPLIT_BYTES", 100)
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
    assert names_in(options.output_dir) == sorted(
        [*sha256s(manifest), "manifest.json", "vocab.txt"]
    )
    assert len(manifest.shards) == 2


def test_a_data_set_can_be_made_again_with_its_own_vocabulary(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    again = replace(options, overwrite=True, vocab_file=options.output_dir / "vocab.txt")
    assert generate(again, PipelineOptions([])) == data_set[1]


def test_what_a_killed_run_left_is_removed(data_set, options):
    left = options.output_dir / "in_progress" / "tokenized"
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
    step = getattr(pipeline.generate, name)
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise error
        return step(*arguments)

    monkeypatch.setattr(pipeline.generate, name, fail)
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
    assert names_in(options.output_dir) == ["in_progress"]


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
    assert names_in(options.output_dir) == ["in_progress"]


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
    step = pipeline.generate.read_documents_of_bucket
    monkeypatch.setattr(
        pipeline.generate,
        "read_documents_of_bucket",
        lambda pieces, id_dtype: step(pieces[1:], id_dtype),
    )
    with pytest.raises(RuntimeError, match="lost"):
        generate(options, PipelineOptions([]))
    assert names_in(options.output_dir) == []


@pytest.mark.parametrize("lost", ["train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"])
def test_a_shard_that_a_runner_loses_is_noticed(lost, options, monkeypatch):
    pair_plans_with_pieces = pipeline.generate._pair_plans_with_row_groups

    def pair_others(grouped):
        return (pair for pair in pair_plans_with_pieces(grouped) if pair[0].name != lost)

    monkeypatch.setattr(pipeline.generate, "_pair_plans_with_row_groups", pair_others)
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
