"""A data set whose masks the trainer draws, from text to its report."""

import json
from dataclasses import replace

import jieba
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from launch.generate import describe
from modeling.training_masks import TrainingMasks
from pipeline.adoption import AdoptOptions, adopt
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.manifest import MANIFEST_NAME, DataSet
from pipeline.options import Masking
from pipeline.records import (
    decode_instances,
    open_records,
    read_frames,
    record_of,
    unpack_word_starts,
)
from pipeline.rows import unpack
from pipeline.verification import verify

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.fixture(scope="module", params=[0, 48])
def pair(request, corpus, tmp_path_factory):
    """Options of two data sets that differ in their masking alone, and the data sets."""
    folder = tmp_path_factory.mktemp("masking")
    made = {}
    for masking in Masking:
        instances = replace(
            corpus.instances, masking=masking, packed_row_length=request.param, dupe_factor=2
        )
        options = replace(corpus, output_dir=folder / masking, instances=instances)
        made[masking] = options, DataSet(options.output_dir, generate(options, PipelineOptions([])))
    return made


def instances_of(data_set, split):
    records = []
    for shard in data_set.manifest.shards_of(split):
        with open_records(data_set.path_of(shard)) as file:
            records += map(record_of, read_frames(file))
    return decode_instances(records, data_set.manifest.features_of(split))


def unmasked(instances):
    """The ids before they were masked."""
    ids = instances["input_ids"].copy()
    row, slot = np.nonzero(instances["masked_lm_weights"])
    ids[row, instances["masked_lm_positions"][row, slot]] = instances["masked_lm_ids"][row, slot]
    return ids


def test_train_records_are_those_of_stored_masks_without_the_masks(pair):
    (_, stored), (_, training) = pair[Masking.STORED], pair[Masking.TRAINING]
    theirs, ours = instances_of(stored, "train"), instances_of(training, "train")
    assert not [name for name in ours if name.startswith("masked_lm")]
    # All masks of a shard come from one generator, after its pairs and its rows.
    assert (ours["input_ids"] == unmasked(theirs)).all()
    for name in ("input_mask", "segment_ids", "next_sentence_labels"):
        assert (ours[name] == theirs[name]).all()
    for shard in training.manifest.shards_of("eval"):
        ours, theirs = (each.path_of(shard).read_bytes() for each in (training, stored))
        assert ours == theirs


def test_words_begin_where_they_began_in_the_text(pair):
    _, data_set = pair[Masking.TRAINING]
    instances = unpack_word_starts(instances_of(data_set, "train"))
    # Each token of the corpus is a word, so all but special tokens and padding begin one.
    is_special = instances["input_ids"] < 5
    assert (instances["word_starts"] == ~is_special).all()
    sequences = unpack(instances)
    assert (sequences["word_starts"] == (sequences["input_ids"] >= 5)).all()


def test_each_record_has_a_number_of_its_own(pair):
    _, data_set = pair[Masking.TRAINING]
    for epoch in range(2):
        numbers = []
        for shard in data_set.manifest.shards_of("train"):
            if shard.pass_index == epoch:
                with open_records(data_set.path_of(shard)) as file:
                    records = list(map(record_of, read_frames(file)))
                found = decode_instances(records, data_set.manifest.features_of("train"))
                numbers += map(tuple, found["instance_number"].tolist())
        assert len(set(numbers)) == len(numbers) > 10


def test_manifest_report_and_summary_tell_of_it(pair):
    options, made = pair[Masking.TRAINING]
    data_set = DataSet.read(made.directory)
    manifest = data_set.manifest
    assert manifest == made.manifest
    assert manifest.masks_while_training
    assert manifest.options["masking"] == "training"
    assert json.loads((made.directory / MANIFEST_NAME).read_text())["format_version"] == 2
    assert list(verify(data_set)) == []
    assert manifest.statistics["eval"]["masked"]
    assert not [name for name in manifest.statistics["train"] if "masked" in name]
    assert not manifest.health
    assert " masked while training, " in describe(manifest, made.directory)
    page = (made.directory / "report.html").read_text("utf-8")
    assert "The trainer draws the masks" in page
    assert "of them masked" not in page
    _, stored = pair[Masking.STORED]
    assert not stored.manifest.masks_while_training
    assert "masking" not in stored.manifest.options
    assert "masking" not in json.loads((stored.directory / "plan.json").read_text())
    assert generate(options, PipelineOptions([])) == manifest


def test_a_repeat_with_other_masking_tells_the_difference(pair):
    for masking, other, difference in [
        (Masking.STORED, Masking.TRAINING, "masking None, not 'training'"),
        (Masking.TRAINING, Masking.STORED, "masking 'training', not None"),
    ]:
        options = replace(pair[masking][0], instances=pair[other][0].instances)
        with pytest.raises(UserError, match=difference):
            generate(options, PipelineOptions([]))


def test_without_eval_shards_nothing_is_known_of_masks(pair, tmp_path):
    options = replace(pair[Masking.TRAINING][0], output_dir=tmp_path / "data", eval_fraction=0.0)
    manifest = generate(options, PipelineOptions([]))
    assert not manifest.health
    assert "masked while training" in describe(manifest, tmp_path)
    assert "The trainer draws the masks." in (tmp_path / "data" / "report.html").read_text()


def test_health_of_masks_is_that_of_the_eval_instances(pair, tmp_path):
    options = pair[Masking.TRAINING][0]
    few = replace(options.instances, masked_lm_prob=0.9, max_predictions_per_seq=1)
    options = replace(options, output_dir=tmp_path / "data", instances=few)
    (line,) = generate(options, PipelineOptions([])).health
    assert "usual is 90.0%, as --masked_lm_prob says: --max_predictions_per_seq=1 cuts it" in line


def test_other_workers_write_the_same_bytes(pair, two_processes, tmp_path):
    options, data_set = pair[Masking.TRAINING]
    again = generate(replace(options, output_dir=tmp_path / "data"), processes=two_processes)
    assert again == data_set.manifest


def test_such_records_cannot_be_adopted(pair, tmp_path):
    _, data_set = pair[Masking.TRAINING]
    options = AdoptOptions(
        train_patterns=[str(data_set.directory / "train-*")],
        eval_patterns=[],
        vocab_file=data_set.directory / "vocab.txt",
        output_dir=tmp_path / "adopted",
    )
    with pytest.raises(UserError, match="no masks, because `generate --masking=training` made it"):
        adopt(options)


def test_a_manifest_that_contradicts_itself_about_masking_is_damaged(pair):
    _, data_set = pair[Masking.TRAINING]
    manifest = data_set.manifest
    assert not list(manifest.contradictions())
    for masking in ("stored", "other", 1, None):
        options = {**manifest.options, "masking": masking}
        assert list(replace(manifest, options=options).contradictions())
    assert list(replace(manifest, format_version=1).contradictions())


def test_one_pass_takes_a_sixth_of_the_disk_of_ten_passes_with_stored_masks(pair, tmp_path):
    sizes = {}
    for masking, dupe_factor in ((Masking.STORED, 10), (Masking.TRAINING, 1)):
        options, _ = pair[masking]
        instances = replace(options.instances, dupe_factor=dupe_factor)
        options = replace(options, output_dir=tmp_path / masking, instances=instances)
        shards = generate(options, PipelineOptions([])).shards_of("train")
        sizes[masking] = sum(shard.bytes for shard in shards)
    assert sizes[Masking.TRAINING] <= sizes[Masking.STORED] / 6


# A segmenter's words. The trainer's masks are drawn here, too, from text to masked words.


SEGMENTED = ["我们在北京清华大学学习。", "咖啡树的故乡在非洲东部。", "印刷机确实改变了世界。"]


def masked_words(masked, records, tokens):
    """The words of which a piece is masked, each with whether all of it is."""
    ids, is_word_start = records["input_ids"], records["word_starts"]
    word = np.cumsum(is_word_start, axis=1)
    is_piece = (records["input_mask"] > 0) & (ids >= len(SPECIAL_TOKENS))
    for row, positions in enumerate(masked["masked_lm_positions"]):
        hidden = positions[masked["masked_lm_weights"][row] > 0]
        for number in np.unique(word[row, hidden]):
            columns = np.flatnonzero((word[row] == number) & is_piece[row])
            yield "".join(tokens[ids[row, columns]]), np.isin(columns, hidden).all()


def test_the_trainer_masks_whole_words_of_a_segmenter(corpus, write_vocabulary, tmp_path):
    text = tmp_path / "chinese.txt"
    text.write_text("\n".join([*SEGMENTED, "", *SEGMENTED[::-1], ""] * 20), "utf-8")
    characters = sorted(set("".join(SEGMENTED)))
    vocab_file = write_vocabulary(*characters)
    made = {}
    for masking in Masking:
        options = replace(
            corpus,
            input_patterns=[str(text)],
            vocab_file=vocab_file,
            output_dir=tmp_path / masking,
            word_segmenter="jieba",
            instances=replace(
                corpus.instances,
                masking=masking,
                # Room for whole sentences, so that no word is cut.
                max_seq_length=64,
                max_predictions_per_seq=None,
            ),
            eval_fraction=0.0,
        )
        generate(options, PipelineOptions([]))
        made[masking] = DataSet.read(options.output_dir)
    data_set = made[Masking.TRAINING]
    records = instances_of(data_set, "train")
    unpacked = unpack_word_starts(records)
    stored = instances_of(made[Masking.STORED], "train")
    drawn = TrainingMasks(data_set, seed=1, largest=0.15).draw(
        dict(records), np.zeros(len(records["input_ids"]), np.int64), 0.15
    )
    tokens = np.array([*SPECIAL_TOKENS, *characters])
    of_jieba = {word for sentence in SEGMENTED for word in jieba.cut(sentence)}
    assert max(map(len, of_jieba)) > 2
    for masked in (drawn, stored):
        assert (unmasked(masked) == unpacked["input_ids"]).all()
        words = list(masked_words(masked, unpacked, tokens))
        assert all(is_whole for _, is_whole in words)
        assert {word for word, _ in words} == of_jieba
    assert (drawn["masked_lm_positions"] != stored["masked_lm_positions"]).any(axis=1).mean() > 0.9
