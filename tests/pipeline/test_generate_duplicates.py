from dataclasses import replace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from launch.generate import describe
from pipeline.buckets import BucketPlan
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inputs import InputFormat, match_files
from pipeline.portions import plan_portions
from pipeline.shards import plan_shards


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def doubled(tmp_path_factory, corpus, write_as):
    """Documents 0 to 29 in three files of different formats, most of them repeated."""
    folder = tmp_path_factory.mktemp("doubled")
    for name, numbers in {
        "a.jsonl": [*range(20), 3, 4, 3],
        "b.txt": [5, 3, *range(10, 25), 24],
        "c.parquet": [*range(22, 30), 29, 0, 7],
    }.items():
        write_as(folder / name, numbers)
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


def test_every_pass_with_the_eval_split_has_each_text_once(
    doubled, without_duplicates, documents_of_shard
):
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


def test_manifest_and_summary_count_the_duplicates(doubled, without_duplicates):
    counts = without_duplicates.statistics["corpus"]
    assert counts["documents_read"] == counts["documents_tokenized"] == 23 + 18 + 11
    assert counts["documents_duplicate"] == 52 - 30
    documents = [without_duplicates.statistics[split]["documents"] for split in ("train", "eval")]
    assert sum(documents) == 30
    assert min(documents) > 0
    assert without_duplicates.options["drop_duplicates"] is True
    left_out = "  left out   22 documents with the same text as an earlier one\n  training "
    assert left_out in describe(without_duplicates, doubled.output_dir)


def test_the_first_of_equal_documents_decides_the_bucket(
    doubled, without_duplicates, documents_of, documents_of_shard
):
    files = match_files(doubled.input_patterns)
    plan = BucketPlan.for_corpus(sum(file.text_bytes for file in files), 0.3, 3)
    first = {}
    for document in documents_of(plan_portions(files)):
        (file,) = (file for file in files if file.name == document.file)
        first.setdefault(document.sentences[0].split()[0], plan.bucket_of(file, document))
    found = {}
    for shard in without_duplicates.shards:
        if shard.pass_index == 0:
            for document in documents_of_shard(doubled.output_dir / shard.name):
                found[f"w{document}"] = shard.name
    plans = {plan.bucket: plan.name for plan in plan_shards(plan, dupe_factor=1)}
    names = {bucket: name.replace("-of-00003", "-of-00006") for bucket, name in plans.items()}
    assert found == {word: names[bucket] for word, bucket in first.items()}


def test_duplicates_do_not_depend_on_portions_and_partitions(
    doubled, without_duplicates, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 1)
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", 1)
    monkeypatch.setattr("pipeline.stages.count_partitions", lambda _: 7)
    again = replace(doubled, output_dir=tmp_path / "data")
    assert generate(again, PipelineOptions([])) == without_duplicates
    assert names_in(tmp_path / "data") == names_in(doubled.output_dir)


def test_a_tokenized_corpus_serves_data_with_and_without_duplicates(
    doubled, without_duplicates, tmp_path
):
    """Duplicates are kept by default."""
    options = replace(doubled, tokenized_dir=tmp_path / "tokenized")
    kept = replace(options, output_dir=tmp_path / "kept", drop_duplicates=False)
    manifest = generate(kept, PipelineOptions([]))
    assert manifest.statistics["corpus"]["documents_duplicate"] == 0
    first_pass = [shard for shard in manifest.shards if shard.pass_index == 0]
    assert sum(shard.documents for shard in first_pass) == 52
    again = replace(options, output_dir=tmp_path / "again")
    assert generate(again, PipelineOptions([])) == without_duplicates
    files = (tmp_path / "tokenized").glob("duplicates-*/*")
    names = {file.name.partition("-")[0] for file in files if file.suffix != ".json"}
    assert names == {"digests", "exact", "split"}


def test_a_run_does_not_resume_if_the_option_for_duplicates_changed(
    doubled, without_duplicates, fail_at_call, tmp_path, monkeypatch
):
    options = replace(doubled, output_dir=tmp_path / "data")
    with monkeypatch.context() as patch:
        fail_at_call(4, ValueError("killed"), patch, "build_shard")
        with pytest.raises(Exception, match="killed"):
            generate(options, PipelineOptions([]))
    with pytest.raises(UserError, match=r"drop_duplicates True, not False.*--overwrite"):
        generate(replace(options, drop_duplicates=False), PipelineOptions([]))
    calls = fail_at_call(99, ValueError("never"), monkeypatch, "build_shard")
    assert generate(options, PipelineOptions([])) == without_duplicates
    assert len(calls) == 7 - 3
