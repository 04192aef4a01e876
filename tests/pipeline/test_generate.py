import hashlib
import shutil
from collections import Counter, defaultdict
from dataclasses import asdict, replace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.buckets import BucketPlan
from pipeline.documents import ReadOptions
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.json_files import json_text
from pipeline.manifest import Manifest
from pipeline.shards import plan_shards
from pipeline.vocabulary import Vocabulary

NUM_DOCUMENTS = 40
BESIDE_SHARDS = ("flags.txt", "manifest.json", "plan.json", "report.html", "vocab.txt")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def sha256s(manifest):
    return {shard.name: shard.sha256 for shard in manifest.shards}


def test_the_folder_has_exactly_the_files_in_the_manifest(data_set, records_of):
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
    instances = asdict(corpus.instances)
    # So that it is the manifest of a build that knew none of these.
    newer = {"packed_row_length": None, "masking": "stored"}
    newer |= {"sentence_pairs": "next", "max_ngram_size": 1}
    assert {name: instances.pop(name) for name in newer} == newer
    assert not newer.keys() & manifest.options.keys()
    assert instances.items() <= manifest.options.items()
    assert asdict(ReadOptions()).items() <= manifest.options.items()
    assert manifest.options["input_format"] == "text"
    assert manifest.options["word_segmenter"] is None
    assert manifest.options["drop_duplicates"] is False


def test_the_manifest_on_disk_is_the_returned_one(data_set):
    folder, manifest = data_set
    assert (folder / "manifest.json").read_text() == json_text(vars(manifest))


def test_statistics_add_up(data_set, records_of):
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


def test_each_document_is_in_one_split_and_in_one_bucket_of_every_pass(
    data_set, documents_of_shard
):
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


def test_copies_of_a_document_stay_in_its_bucket_and_differ_between_passes(
    data_set, documents_of_shard
):
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
def test_the_positions_of_the_cuts_do_not_matter(portion_bytes, data_set, options, monkeypatch):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", portion_bytes)
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", portion_bytes)
    assert generate(options, PipelineOptions([])) == data_set[1]


def test_shards_have_the_same_bytes_from_several_processes(
    data_set, options, two_processes, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 100)
    manifest = generate(options, processes=two_processes)
    assert sha256s(manifest) == sha256s(data_set[1])
    assert names_in(options.output_dir) == names_in(data_set[0])


def test_shards_do_not_change_when_the_corpus_moves(data_set, options, tmp_path):
    (tmp_path / "moved").mkdir()
    patterns = [str(shutil.copy(path, tmp_path / "moved")) for path in options.input_patterns]
    manifest = generate(replace(options, input_patterns=patterns), PipelineOptions([]))
    assert sha256s(manifest) == sha256s(data_set[1])


def test_another_seed_gives_other_shards_of_the_same_documents(data_set, options):
    instances = replace(options.instances, random_seed=1, dupe_factor=1)
    manifest = generate(replace(options, instances=instances), PipelineOptions([]))
    first_pass = [shard for shard in data_set[1].shards if shard.pass_index == 0]
    assert len(first_pass) == len(manifest.shards)
    for shard, other in zip(first_pass, manifest.shards, strict=True):
        assert shard.documents == other.documents
        assert shard.sha256 != other.sha256


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents", "unknown"),
    [(True, None, 6), (True, False, 0), (False, None, 3)],
)
def test_case_and_accents_are_treated_as_the_options_say(
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


def test_a_data_set_is_overwritten_only_with_the_option(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    smaller = replace(options, num_shards=1, instances=replace(options.instances, dupe_factor=1))
    with pytest.raises(
        UserError, match=r"already holds a data set, made with dupe_factor 2, not 1"
    ):
        generate(smaller, PipelineOptions([]))
    assert Manifest.read(options.output_dir) == data_set[1]
    smaller = replace(smaller, overwrite=True)
    manifest = generate(smaller, PipelineOptions([]))
    assert names_in(options.output_dir) == sorted([*sha256s(manifest), *BESIDE_SHARDS])
    assert len(manifest.shards) == 2


def test_a_finished_data_set_is_verified_and_not_made_again(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    times = {path: path.stat().st_mtime_ns for path in options.output_dir.iterdir()}
    assert generate(options, PipelineOptions([])) == data_set[1]
    assert times == {path: path.stat().st_mtime_ns for path in options.output_dir.iterdir()}
    shard = options.output_dir / data_set[1].shards[0].name
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"1 files of .* are damaged or do not .*--overwrite"):
        generate(options, PipelineOptions([]))
    assert generate(replace(options, overwrite=True), PipelineOptions([])) == data_set[1]


def test_a_data_set_without_a_plan_is_not_taken_for_the_same(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    (options.output_dir / "plan.json").unlink()
    with pytest.raises(UserError, match="made with an earlier build of Clozemill"):
        generate(options, PipelineOptions([]))


def test_a_data_set_with_a_damaged_manifest_can_be_made_again(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    (options.output_dir / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="with --overwrite"):
        generate(options, PipelineOptions([]))
    assert generate(replace(options, overwrite=True), PipelineOptions([])) == data_set[1]


def test_a_data_set_can_be_made_again_with_its_own_vocabulary(data_set, options):
    shutil.copytree(data_set[0], options.output_dir)
    again = replace(options, overwrite=True, vocab_file=options.output_dir / "vocab.txt")
    assert generate(again, PipelineOptions([])) == data_set[1]


def test_leftovers_of_a_killed_run_are_removed(data_set, options):
    left = options.output_dir / "clozemill_in_progress" / "tokenized"
    left.mkdir(parents=True)
    (left / "split-00000.tmp").write_text("half")
    (options.output_dir / "train-00007-of-00009.tfrecord").write_text("old")
    assert generate(options, PipelineOptions([])) == data_set[1]
    assert names_in(options.output_dir) == names_in(data_set[0])


def test_more_shards_than_documents_are_allowed(options):
    many = replace(options, num_shards=60, eval_fraction=0.0)
    manifest = generate(many, PipelineOptions([]))
    plans = plan_shards(BucketPlan(1, 0.0, 60), dupe_factor=2)
    assert [shard.name for shard in manifest.shards] == [plan.name for plan in plans]
    assert sum(shard.documents for shard in manifest.shards) == 2 * NUM_DOCUMENTS
    assert any(shard.instances == 0 for shard in manifest.shards)


def test_a_corpus_without_duplicates_loses_no_document(data_set, options):
    manifest = generate(replace(options, drop_duplicates=True), PipelineOptions([]))
    assert manifest.statistics == data_set[1].statistics
    assert sha256s(manifest) == sha256s(data_set[1])


@pytest.mark.parametrize(("predictions", "warned"), [(1, True), (2, False), (None, False)])
def test_too_few_predictions_are_a_warning(options, caplog, predictions, warned):
    instances = replace(options.instances, max_predictions_per_seq=predictions)
    generate(replace(options, instances=instances), PipelineOptions([]))
    assert ("--max_predictions_per_seq=1 is too small" in caplog.text) is warned
