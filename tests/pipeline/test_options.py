from pathlib import Path

import pytest

from pipeline.documents import BadRecord, Documents, ReadOptions
from pipeline.errors import UserError
from pipeline.inputs import InputFormat
from pipeline.options import GenerateOptions, InstanceOptions


def test_defaults_are_those_of_the_original():
    options = InstanceOptions()
    assert (options.max_seq_length, options.max_predictions_per_seq) == (128, 20)
    assert (options.masked_lm_prob, options.short_seq_prob) == (0.15, 0.1)
    assert (options.dupe_factor, options.random_seed) == (10, 12345)


@pytest.mark.parametrize(
    ("max_seq_length", "masked_lm_prob", "predictions"),
    [
        (128, 0.15, 20),
        (512, 0.15, 76),
        (512, 0.4, 205),
        (48, 0.15, 8),
        (1000, 0.15, 150),
        (100, 0.07, 7),  # whose product is 7.000000000000001
        (8, 1e-15, 1),
        (8, 0.999, 8),
    ],
)
def test_predictions_are_what_the_share_asks_unless_they_are_given(
    max_seq_length, masked_lm_prob, predictions
):
    options = InstanceOptions(max_seq_length, masked_lm_prob=masked_lm_prob)
    assert options.max_predictions_per_seq == options.default_predictions == predictions
    given = InstanceOptions(max_seq_length, 5, masked_lm_prob)
    assert (given.max_predictions_per_seq, given.default_predictions) == (5, predictions)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_seq_length": 7},
        {"max_seq_length": (1 << 14) + 1},
        {"max_predictions_per_seq": 0},
        {"max_predictions_per_seq": 129},
        {"masked_lm_prob": 0.0},
        {"masked_lm_prob": 1.0},
        {"masked_lm_prob": float("nan")},
        {"short_seq_prob": -0.1},
        {"short_seq_prob": 1.1},
        {"dupe_factor": 0},
        {"random_seed": -1},
    ],
    ids=lambda wrong: "{}={}".format(*next(iter(wrong.items()))),
)
def test_an_instance_option_out_of_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"--{name}="):
        InstanceOptions(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"eval_fraction": 1.0}, {"eval_fraction": -1}, {"num_shards": 0}]
)
def test_an_option_of_generate_out_of_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"--{name}="):
        GenerateOptions(["a"], Path("vocab.txt"), Path("data"), **wrong)


def test_predictions_are_no_more_than_tokens():
    with pytest.raises(UserError, match=r"--max_predictions_per_seq=33 .*--max_seq_length=32"):
        InstanceOptions(max_seq_length=32, max_predictions_per_seq=33)


def test_text_is_read_in_any_format_as_the_original_does_by_default():
    options = GenerateOptions(["a"], Path("vocab.txt"), Path("data"))
    assert options.input_format == InputFormat.AUTO
    assert options.reading == ReadOptions("text", Documents.BLANK_LINES, None, BadRecord.FAIL, 0)
    assert (options.do_lower_case, options.strip_accents) == (True, None)
    assert options.word_segmenter is None
    assert not options.drop_duplicates
    assert options.instances == InstanceOptions()


def test_the_bounds_themselves_are_allowed():
    assert InstanceOptions(max_seq_length=1 << 14).max_seq_length == 1 << 14
    options = InstanceOptions(
        max_seq_length=8, max_predictions_per_seq=8, short_seq_prob=1, dupe_factor=1, random_seed=0
    )
    assert options.max_seq_length == options.max_predictions_per_seq


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ngram_size": 0}, "--max_ngram_size=0 must lie between 1 and 10"),
        ({"max_ngram_size": 11}, "--max_ngram_size=11 must lie between 1 and 10"),
        ({"max_ngram_size": 2, "do_whole_word_mask": False}, "so it needs --do_whole_word_mask"),
    ],
)
def test_ngrams_have_whole_words(options, message):
    with pytest.raises(UserError, match=message):
        InstanceOptions(**options)
