"""Records of other programs are checked before anything is made of them."""

import gzip

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.foreign_records import RecordReader
from pipeline.records import frame_record
from pipeline.vocabulary import Vocabulary

CLS, SEP, MASK, TEA, PIECE, PERIOD, CAPITAL, ACCENTED = 2, 3, 4, 5, 7, 8, 9, 10


@pytest.fixture
def read(adopted_vocabulary):
    """A function that reads files; returns the reader and the results of each file."""

    def run(*paths, vocab_file=adopted_vocabulary):
        reader = RecordReader(list(paths), Vocabulary(vocab_file))
        return reader, [reader.read(path, path.name, "train", lambda _: None) for path in paths]

    return run


def test_records_are_counted(make_instances, write_records, read, tmp_path):
    instances = make_instances(2500)
    instances["masked_lm_weights"][:7] = 0
    instances["input_ids"][0, 2] = 1
    kept = instances["masked_lm_ids"][:, 1] == instances["input_ids"][:, 7]
    assert kept.all()
    instances["input_ids"][10:20, 7] = TEA
    path = write_records(tmp_path / "a", instances)
    reader, (results,) = read(path)
    assert (reader.max_seq_length, reader.max_predictions_per_seq) == (16, 3)
    assert results.counts == {
        "instances": 2500,
        "tokens": 30_000,
        "random_next": 1250,
        "masked": 4986,
        "masked_by_mask": 2493,
        "masked_kept": 2483,
        "masked_by_random": 10,
        "instances_without_mask": 7,
    }
    assert results.lengths == {12: 2500}
    assert (results.shard.instances, results.shard.tokens) == (2500, 30_000)
    assert results.shard.bytes == path.stat().st_size
    assert reader.corpus() == {"tokens": 22_500, "unknown_tokens": 1}
    assert sum(results.masked_tokens.values()) == 4986


@pytest.mark.parametrize("names", ["original", "model_garden_v2"])
@pytest.mark.parametrize("name", ["a.tfrecord", "a.gz"])
def test_all_kinds_of_records_give_the_same(
    names, name, make_instances, write_records, read, tmp_path
):
    plain, (expected,) = read(write_records(tmp_path / "plain", make_instances(30)))
    reader, (results,) = read(write_records(tmp_path / name, make_instances(30), names))
    assert reader.feature_names == names
    assert (results.counts, results.lengths) == (expected.counts, expected.lengths)
    assert reader.corpus() == plain.corpus()


WRONG = {
    "input_ids begin with 5, not with [CLS], which is 2": ("input_ids", 0, TEA),
    "input_ids end with 5, not with [SEP]": ("input_ids", 11, TEA),
    "input_ids end A with 5, not with [SEP]": ("input_ids", 5, TEA),
    "input_ids hold 31, but the vocabulary has 31 tokens": ("input_ids", 2, 31),
    "masked_lm_ids hold 99, but": ("masked_lm_ids", 0, 99),
    "input_ids are not 0 where there is padding": ("input_ids", 14, TEA),
    "input_mask are from 0 to 2": ("input_mask", 3, 2),
    "input_mask are not 1 for tokens, then 0": ("input_mask", 3, 0),
    "segment_ids are not 0 for A, 1 for B, 0 for padding": ("segment_ids", 8, 0),
    "segment_ids are not 0 for A, 1 for B": ("segment_ids", 13, 1),
    "masked_lm_positions are beyond its tokens": ("masked_lm_positions", 1, 12),
    "masked_lm_positions are from 0 to 16": ("masked_lm_positions", 1, 16),
    "masked_lm_weights are from 0.0 to 1.0": ("masked_lm_weights", 1, 0.5),
    "masked_lm_weights are from nan to nan": ("masked_lm_weights", 1, np.nan),
    "next_sentence_labels are from 2 to 2": ("next_sentence_labels", 0, 2),
}


@pytest.mark.parametrize("names", ["original", "model_garden_v2"])
@pytest.mark.parametrize("says", WRONG)
def test_the_first_wrong_record_is_named(
    says, names, make_instances, write_records, read, tmp_path
):
    instances = make_instances(1040)
    feature, column, value = WRONG[says]
    for row in (1030, 1035):
        instances[feature][row, column] = value
    path = write_records(tmp_path / "b", instances, names)
    good = write_records(tmp_path / "a", make_instances(3), names)
    with pytest.raises(UserError) as raised:
        read(good, path)
    message = str(raised.value)
    if names == "model_garden_v2":
        says = says.replace("input_ids", "input_word_ids").replace("segment_ids", "input_type_ids")
    assert message.startswith(f"record 1031 of {path} cannot be adopted: its {says}")
    if feature in ("input_ids", "masked_lm_ids") and "padding" not in says:
        assert "another vocabulary than --vocab_file" in message


def test_records_of_other_lengths_are_refused(make_instances, write_records, read, tmp_path):
    shorter = {name: values[:, :12] for name, values in make_instances(3).items()}
    first = write_records(tmp_path / "a", make_instances(3))
    second = write_records(tmp_path / "b", shorter)
    with pytest.raises(
        UserError, match=r"record 1 of .*b cannot .*input_ids are 12 values, not 16"
    ):
        read(first, second)


def test_weights_of_another_type_are_refused(make_instances, write_records, read, tmp_path):
    instances = make_instances(3)
    instances["masked_lm_weights"] = instances["masked_lm_weights"].astype(np.int64)
    with pytest.raises(UserError, match="its masked_lm_weights are int64, not float32"):
        read(write_records(tmp_path / "a", instances))


def test_a_missing_feature_is_named(make_instances, write_records, read, tmp_path):
    instances = make_instances(3)
    del instances["next_sentence_labels"]
    with pytest.raises(UserError, match=r"no next_sentence_labels: .*RoBERTa"):
        read(write_records(tmp_path / "a", instances))
    del instances["masked_lm_ids"]
    with pytest.raises(
        UserError, match="has no masked_lm_ids, next_sentence_labels, only input_ids"
    ):
        read(write_records(tmp_path / "a", instances))


def test_other_features_are_not_read(make_instances, write_records, read, tmp_path):
    more = {**make_instances(3), "token_boundary": np.ones((3, 2), np.int64)}
    _, (results,) = read(write_records(tmp_path / "a", more))
    assert results.counts["instances"] == 3


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"Some text, one sentence per line.\n", "record 1 of .* is it a TFRecord file"),
        (frame_record(b"text"), "record 1 of .* is not a tf.train.Example"),
        (frame_record(b""), "record 1 of .* it has no"),
        (gzip.compress(b"Some text.\n" * 9, mtime=0), "record 1 of .* is it a TFRecord file"),
        (b"\x1f\x8b", "record 1 of .* its compression is damaged"),
        (b"", "there is no record in"),
    ],
)
def test_files_without_instances_are_refused(content, says, read, tmp_path):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read(tmp_path / "a")


@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_a_damaged_file_is_refused(name, make_instances, write_records, read, tmp_path):
    path = write_records(tmp_path / name, make_instances(20))
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(UserError, match=rf"cannot read record \d+ of {path}: "):
        read(path)
    path.write_bytes(content[:-60] + b"\0" + content[-59:])
    with pytest.raises(UserError, match=rf"cannot read record \d+ of {path}: "):
        read(path)


def test_a_wrong_record_before_the_damage_comes_first(
    make_instances, write_records, read, tmp_path
):
    instances = make_instances(20)
    instances["input_ids"][3, 0] = TEA
    path = write_records(tmp_path / "a", instances)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="record 4 of"):
        read(path)


@pytest.fixture
def check(make_instances, write_records, read, tmp_path):
    """A function that checks the vocabulary of instances, after a change to them."""

    def run(change, *case):
        instances = make_instances(40)
        change(instances["input_ids"])
        reader, _ = read(write_records(tmp_path / "a", instances))
        reader.check_vocabulary(*case)

    return run


def test_masks_without_the_token_for_masks_are_of_another_vocabulary(check):
    def change(ids):
        ids[:, 1] = TEA

    with pytest.raises(UserError, match=r"none of the 80 masked pieces is \[MASK\].* 4: .*another"):
        check(change, True, None)


def test_pieces_after_punctuation_are_of_another_vocabulary(check):
    def change(ids):
        ids[:, 2], ids[:2, 3] = PERIOD, PIECE

    with pytest.raises(UserError, match=r"follows 2 of the 40 punctuation marks.* another"):
        check(change, True, None)


@pytest.mark.parametrize(
    ("token", "case", "says"),
    [
        (CAPITAL, (True, None), "hold 'Tea' 40 times, .* not lower-cased: give --nodo_lower_case"),
        (CAPITAL, (False, None), None),
        (ACCENTED, (True, None), "hold 'té' 40 times, .* kept their accents: give --nostrip"),
        (ACCENTED, (True, False), None),
        (ACCENTED, (False, None), None),
        (ACCENTED, (False, True), "kept their accents"),
        (TEA, (True, True), None),
    ],
)
def test_the_case_must_be_that_of_the_records(token, case, says, check):
    def change(ids):
        ids[:, 2] = token

    if says is None:
        check(change, *case)
    else:
        with pytest.raises(UserError, match=says):
            check(change, *case)


def test_lower_cased_records_are_suspicious_if_they_are_said_not_to_be(check, caplog):
    check(lambda _: None, False, None)
    assert "no token of the records has a capital letter" in caplog.text
