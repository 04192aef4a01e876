"""The stages that find duplicates, alone and within whole jobs."""

import random
from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.buckets import BucketPlan
from pipeline.directories import Directories
from pipeline.duplicate_stages import (
    FindGroups,
    FindNearDuplicates,
    IndexKeys,
    ListDropped,
    stages_of_duplicates,
)
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inputs import InputFormat, match_files
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.portions import plan_portions
from pipeline.receipts import DuplicatesReceipt, read_receipt
from pipeline.stages import TokenizePortion, Work
from pipeline.storage import source_of

pytestmark = pytest.mark.no_backend

WORDS = [f"w{number}" for number in range(1000)]
NUM_TEXTS = 60


def copy_of(words, rng, share):
    return [rng.choice(WORDS) if rng.random() < share else word for word in words]


def as_text(words):
    return "\n".join(" ".join(words[start : start + 8]) for start in range(0, len(words), 8))


def shingles(words):
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def similarity(first, second):
    first, second = shingles(first), shingles(second)
    return len(first & second) / len(first | second)


@pytest.fixture(scope="module")
def planted(tmp_path_factory, write_vocabulary):
    """Three files of texts, most of which have a copy: an exact, a near, or a distant one."""
    folder = tmp_path_factory.mktemp("planted")
    rng = random.Random(7)
    texts = [rng.choices(WORDS, k=rng.randint(60, 150)) for _ in range(NUM_TEXTS)]
    shares = [0, 0, 0.005, 0.005, 0.01, 0.01, 0.12]
    texts += [copy_of(rng.choice(texts), rng, rng.choice(shares)) for _ in range(NUM_TEXTS)]
    rng.shuffle(texts)
    for number, name in enumerate(("a.txt", "b.txt", "c.txt")):
        (folder / name).write_text("\n\n".join(map(as_text, texts[number::3])) + "\n")
    return GenerateOptions(
        [f"{folder}/*.txt"],
        write_vocabulary(*WORDS),
        folder / "data",
        input_format=InputFormat.TEXT,
        drop_near_duplicates=0.8,
        instances=InstanceOptions(max_seq_length=32, dupe_factor=1),
        eval_fraction=0.4,
        num_shards=2,
        tokenized_dir=folder / "tokenized",
    )


@pytest.fixture(scope="module")
def deduplicated(planted):
    return generate(planted, PipelineOptions([]))


def documents_of(options):
    """The words of each tokenized document, by id, and its bucket."""
    documents = {}
    for path in sorted(options.tokenized_dir.glob("split-*.parquet")):
        for row in pq.read_table(path).to_pylist():
            words = [WORDS[number - 5] for number in np.frombuffer(row["ids"], np.uint16)]
            documents[row["file"], row["offset"]] = words, row["bucket"]
    return documents


def lists_of(options, folder="near_duplicates-*"):
    """The rows of all lists of what is dropped."""
    paths = sorted(options.tokenized_dir.glob(f"{folder}/split-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_no_evaluation_document_has_a_near_copy_in_train(planted, deduplicated):
    documents = documents_of(planted)
    dropped = {(row["file"], row["offset"]) for row in lists_of(planted)}
    kept = [documents[each] for each in documents.keys() - dropped]
    train, evaluation = (
        [words for words, bucket in kept if bucket.startswith(split)] for split in ("train", "eval")
    )
    assert len(evaluation) > 20
    assert max(similarity(*pair) for pair in product(evaluation, train)) < 0.8
    # Without the flag, many would have: the splits are drawn independently of each other.
    everything = list(documents.values())
    train, evaluation = (
        [words for words, bucket in everything if bucket.startswith(split)]
        for split in ("train", "eval")
    )
    leaks = [max(similarity(words, other) for other in train) >= 0.8 for words in evaluation]
    assert sum(leaks) > 10
    # And the shards hold what is kept, in its split.
    counts = [deduplicated.statistics[split]["documents"] for split in ("train", "eval")]
    assert sum(counts) == len(kept)


def test_documents_with_a_near_copy_before_them_are_dropped_until_no_two_are_left(
    planted, deduplicated
):
    documents = documents_of(planted)
    dropped = lists_of(planted)
    ids = {(row["file"], row["offset"]) for row in dropped}
    near = {
        (first, second)
        for first, second in combinations(sorted(documents), 2)
        if similarity(documents[first][0], documents[second][0]) >= 0.8
    }
    assert ids <= {second for _, second in near}
    assert [pair for pair in near if ids.isdisjoint(pair)] == []
    for row in dropped:
        words, bucket = documents[row["file"], row["offset"]]
        assert (row["num_tokens"], row["bucket"]) == (len(words), bucket)
    del deduplicated


def test_exact_and_near_duplicates_are_counted_apart(planted, deduplicated):
    counts = deduplicated.statistics["corpus"]
    dropped = lists_of(planted)
    exact = [row for row in dropped if not row["is_near"]]
    assert counts["documents_duplicate"] == len(exact) > 5
    assert counts["documents_near_duplicate"] == len(dropped) - len(exact) > 5
    assert deduplicated.options["drop_near_duplicates"] == 0.8
    assert deduplicated.options["drop_duplicates"] is False
    report = (planted.output_dir / "report.html").read_text("utf-8")
    assert "nearly the same text" in report
    tokens = sum(row["num_tokens"] for row in dropped)
    receipts = [
        read_receipt(path, DuplicatesReceipt)
        for path in planted.tokenized_dir.glob("near_duplicates-*/split-*.parquet")
    ]
    assert sum(receipt.num_tokens for receipt in receipts) == tokens


def run_stages(options, place, portion_bytes=1 << 30):
    """Tokenizes the corpus and finds its duplicates, without an engine.

    Returns:
      The rows of all lists of what is dropped, sorted by id; and the directories.
    """
    files = match_files(options.input_patterns)
    portions = plan_portions(files, portion_bytes)
    plan = BucketPlan.for_corpus(sum(file.text_bytes for file in files), 0.4, 2)
    directories = Directories(place, None, "near_duplicates")
    if not directories.tokenized.exists():
        directories.prepare(options.vocab_file.read_bytes(), {}, {}, overwrite=False)
    work = Work(options, portions, plan, [], directories)
    for stage, items in [
        (TokenizePortion(work), enumerate(portions)),
        *stages_of_duplicates(work),
    ]:
        stage.load()
        made = [made for item in items for made in stage.process(item)]
    lists = [row for path in made for row in pq.read_table(source_of(path)).to_pylist()]
    return sorted(lists, key=lambda row: (row["file"], row["offset"])), directories


@pytest.mark.parametrize("partitions", [1, 5])
def test_near_duplicates_do_not_depend_on_portions_partitions_and_groups(
    partitions, planted, tmp_path, monkeypatch
):
    expected, _ = run_stages(planted, tmp_path / "a")
    assert len(expected) > 10
    monkeypatch.setattr("pipeline.stages._GROUPS_OF_PORTIONS", 4)
    monkeypatch.setattr("pipeline.stages.count_partitions", lambda _: partitions)
    monkeypatch.setattr("pipeline.duplicate_stages._MOST_BYTES_AT_ONCE", 10_000)
    monkeypatch.setattr("pipeline.duplicate_stages._DOCUMENTS_AT_ONCE", 2)
    found, directories = run_stages(planted, tmp_path / "b", portion_bytes=3000)
    assert found == expected
    assert len(list(directories.duplicates.glob("split-*.parquet"))) > 8
    assert len(list(directories.duplicates.glob("keys-*.parts"))) == 4
    # Another order of the input files.
    files = [file.path for file in match_files(planted.input_patterns)]
    other = replace(planted, input_patterns=files[::-1])
    assert run_stages(other, tmp_path / "c")[0] == expected


def test_a_store_gives_the_same_with_few_requests(planted, bucket, server, tmp_path):
    expected, directories = run_stages(planted, tmp_path / "a", portion_bytes=10_000)
    assert run_stages(planted, bucket / "b", portion_bytes=10_000)[0] == expected
    num_portions = len(list(directories.duplicates.glob("split-*.parquet")))
    made = Counter(path.rpartition("/")[2] for method, path in server.requests if method == "PUT")
    for name in ("digests", "keys", "sketches"):
        for portion in range(num_portions):
            assert made[f"{name}-{portion:05d}.parts"] == 1
    for name, reads in (("digests", 2), ("keys", 2), ("groups", 2 * num_portions)):
        file = f"/{name}-00000.parts"
        gets = [path for method, path in server.requests if method == "GET" and file in path]
        # The order of documents is read from the digests, too, once in three stages.
        extra = 2 * 3 if name == "digests" else 0
        assert len([path for path in gets if path.endswith(".parts")]) == reads + extra


def test_what_is_finished_is_not_made_again_but_what_is_damaged_is(planted, tmp_path, monkeypatch):
    expected, directories = run_stages(planted, tmp_path / "a")
    made = {path: path.read_bytes() for path in directories.duplicates.iterdir()}
    assert len(made) == 2 * 7
    for path, content in made.items():
        path.write_bytes(content[:-1])
        assert run_stages(planted, tmp_path / "a")[0] == expected
        assert path.read_bytes() == content

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr("pipeline.stages.Stage._make", never)
    assert run_stages(planted, tmp_path / "a")[0] == expected


def test_near_duplicates_are_the_same_from_several_processes(
    planted, deduplicated, two_processes, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 3000)
    again = replace(planted, output_dir=tmp_path / "data", tokenized_dir=None)
    assert generate(again, processes=two_processes) == deduplicated


def test_a_tokenized_corpus_serves_data_with_and_without_near_duplicates(
    planted, deduplicated, tmp_path
):
    plain = replace(planted, drop_near_duplicates=None, output_dir=tmp_path / "plain")
    manifest = generate(plain, PipelineOptions([]))
    assert "documents_near_duplicate" not in manifest.statistics["corpus"]
    assert "drop_near_duplicates" not in manifest.options
    assert sum(manifest.statistics[split]["documents"] for split in ("train", "eval")) == 120
    again = replace(planted, output_dir=tmp_path / "again")
    assert generate(again, PipelineOptions([])) == deduplicated


def test_a_run_that_was_killed_resumes(planted, tmp_path, monkeypatch):
    def die(*_):
        raise ValueError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(FindGroups, "_write", die)
        with pytest.raises(ValueError, match="killed"):
            run_stages(planted, tmp_path / "a")
    made = {path.name for path in (tmp_path / "a").rglob("*.parts")}
    assert made == {"digests-00000.parts", "exact-00000.parts", "keys-00000.parts"}
    expected, _ = run_stages(planted, tmp_path / "b")
    monkeypatch.setattr(IndexKeys, "_write", die)
    assert run_stages(planted, tmp_path / "a")[0] == expected


def test_the_similarity_decides_what_is_dropped(planted, tmp_path):
    dropped = []
    for number, value in enumerate((0.5, 0.8, 1.0)):
        options = replace(planted, drop_near_duplicates=value)
        dropped.append(run_stages(options, tmp_path / str(number))[0])
    exact = [[row for row in rows if not row["is_near"]] for rows in dropped]
    assert exact[0] == exact[1] == exact[2] == dropped[2]
    assert len(dropped[2]) < len(dropped[1]) < len(dropped[0])


def test_another_similarity_is_another_data_set(planted, deduplicated):
    for other, difference in ((0.9, "0.8, not 0.9"), (None, "0.8, not None")):
        with pytest.raises(UserError, match=f"drop_near_duplicates {difference}.*--overwrite"):
            generate(replace(planted, drop_near_duplicates=other), PipelineOptions([]))
    del deduplicated


@pytest.mark.parametrize("value", [0.49, 0, -1, 1.01, float("nan")])
def test_a_similarity_out_of_range_is_refused(value, planted):
    with pytest.raises(UserError, match=r"--drop_near_duplicates=.* must lie between 0.5 and 1"):
        replace(planted, drop_near_duplicates=value)


def test_without_duplicates_to_drop_there_are_no_stages(planted):
    plan = BucketPlan.for_corpus(1000)
    kept = replace(planted, drop_near_duplicates=None)
    assert stages_of_duplicates(Work(kept, [], plan, [], Directories(kept.output_dir))) == []


def test_large_corpora_are_worked_on_in_groups_of_portions(planted):
    def shape(num_portions):
        plan = BucketPlan.for_corpus(num_portions << 26)
        directories = Directories(planted.output_dir, None, "near_duplicates")
        work = Work(planted, [()] * num_portions, plan, [], directories)
        stages = {type(stage): len(items) for stage, items in stages_of_duplicates(work)}
        assert stages[IndexKeys] == stages[ListDropped] == work.num_groups
        return work.portions_per_group, stages[IndexKeys], stages[FindNearDuplicates]

    assert shape(1) == (1, 1, 1)
    assert shape(256) == (1, 256, 17)
    assert shape(1600) == (7, 229, 101)
    assert shape(1 << 14) == (8, 2048, 1025)


def test_a_portion_without_documents_has_an_empty_list(planted, tmp_path):
    (tmp_path / "a.txt").write_text("\n\n")
    (tmp_path / "b.txt").write_text("w1 w2\nw3\n\nw1 w2\nw3\n\nw4\n\nw4 w4\n")
    (tmp_path / "c.txt").write_text("\n\n")
    options = replace(planted, input_patterns=[f"{tmp_path}/*.txt"])
    (dropped,), directories = run_stages(options, tmp_path / "data", portion_bytes=1)
    assert (dropped["file"], dropped["num_tokens"], dropped["is_near"]) == ("b.txt", 3, False)
    lists = sorted(directories.duplicates.glob("split-*.parquet"))
    assert [pq.read_metadata(path).num_rows for path in lists] == [0, 0, 1, 0, 0, 0]
