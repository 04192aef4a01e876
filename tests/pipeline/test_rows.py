"""Rows hold what their sequences hold, no more and no less."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import RowLimits
from pipeline.rows import count_rows, pack, sequence_lengths, unpack

PADDING_ID = 9
LIMITS = RowLimits(tokens=40, predictions=12, sequences=4)


def sequences_of_lengths(lengths, seed=0):
    """Instances of these lengths, padded to the longest, with up to three masks each."""
    rng = np.random.default_rng(seed)
    count, longest = len(lengths), max(lengths)
    column = np.arange(longest)
    is_token = column < np.array(lengths)[:, np.newaxis]
    masks = rng.integers(0, 4, (count, 1)).clip(max=np.array(lengths)[:, np.newaxis])
    is_used = np.arange(3) < masks
    positions = np.zeros((count, 3), np.int64)
    for row, length in enumerate(lengths):
        number = int(masks[row, 0])
        positions[row, :number] = np.sort(rng.permutation(length)[:number])
    return {
        "input_ids": np.where(is_token, rng.integers(10, 99, is_token.shape), PADDING_ID),
        "input_mask": is_token.astype(np.uint8),
        "segment_ids": (is_token & (column > 2)).astype(np.uint8),
        "masked_lm_positions": positions,
        "masked_lm_ids": rng.integers(1, 99, is_used.shape) * is_used,
        "masked_lm_weights": is_used.astype(np.float32),
        "next_sentence_labels": rng.integers(0, 2, (count, 1)).astype(np.uint8),
    }


def trimmed(instances):
    """The instances as lists, without padding and unused slots."""
    return [
        (
            [instances[name][row][: instances["input_mask"][row].sum()].tolist() for name in names]
            + [instances[name][row][weights > 0].tolist() for name in of_masks]
            + [instances["next_sentence_labels"][row].tolist()]
        )
        for names, of_masks in [
            (("input_ids", "input_mask", "segment_ids"), ("masked_lm_positions", "masked_lm_ids"))
        ]
        for row, weights in enumerate(instances["masked_lm_weights"])
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(4, 10), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(0, 99),
)
def test_what_is_packed_can_be_unpacked(lengths_of_rows, seed):
    lengths = [length for row in lengths_of_rows for length in row]
    instances = sequences_of_lengths(lengths, seed)
    sizes = np.array([len(row) for row in lengths_of_rows])
    rows = pack(instances, sizes, LIMITS, PADDING_ID)
    assert rows["input_mask"].tolist() == [
        [number for number, length in enumerate(row, 1) for _ in range(length)]
        + [0] * (LIMITS.tokens - sum(row))
        for row in lengths_of_rows
    ]
    assert (rows["input_ids"][rows["input_mask"] == 0] == PADDING_ID).all()
    assert rows["masked_lm_weights"].shape == (len(sizes), LIMITS.predictions)
    for positions, weights in zip(
        rows["masked_lm_positions"], rows["masked_lm_weights"], strict=True
    ):
        used = positions[: int(weights.sum())]
        assert (np.diff(used) > 0).all()
        assert not positions[len(used) :].any()
    assert sequence_lengths(rows["input_mask"]).tolist() == lengths
    assert trimmed(unpack(rows)) == trimmed(instances)
    counts = Counter(instances=len(lengths))
    count_rows(len(sizes), instances, counts)
    assert counts == {
        "instances": len(sizes),
        "sequences": len(lengths),
        "attended_pairs": sum(length**2 for length in lengths),
    }


@pytest.mark.parametrize(
    "mask", [[1, 1, 0, 2, 2], [2, 2, 1, 1, 0], [1, 2, 1, 2, 0], [0, 0, 0, 0, 0], [1, 1, 3, 3, 0]]
)
def test_sequences_that_are_not_in_a_line_are_refused(mask):
    rows = pack(sequences_of_lengths([4, 4]), np.array([2]), LIMITS, PADDING_ID)
    rows["input_mask"][0, :5], rows["input_mask"][0, 5:] = mask, 0
    rows["masked_lm_weights"][:] = 0
    with pytest.raises(ValueError, match=r"input_mask are not 1, 2, … for its sequences"):
        unpack(rows)


def test_a_mask_beyond_the_tokens_is_refused():
    rows = pack(sequences_of_lengths([4, 4]), np.array([2]), LIMITS, PADDING_ID)
    rows["masked_lm_positions"][0, 0], rows["masked_lm_weights"][0, 0] = 30, 1
    with pytest.raises(ValueError, match="masked_lm_positions are beyond its tokens"):
        unpack(rows)
