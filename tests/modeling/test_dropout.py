import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from modeling.dropout import FIRST_POSITION, dropout, dropout_key, example_keys, fold_in


def lowbias32(x):
    """The hash of uint32 arrays, from https://nullprogram.com/blog/2018/07/31/."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def mask_by_hand(shape, rate, key):
    """The mask, which is True for kept elements."""
    batch, *rest = shape
    examples = lowbias32(np.arange(batch, dtype=np.uint32) + np.uint32(key))[:, np.newaxis]
    elements = np.arange(np.prod(rest, dtype=int), dtype=np.uint32)[np.newaxis]
    bits = lowbias32(lowbias32(elements + examples) ^ examples)
    return (bits >= rate * 2**32).reshape(shape)


def mask(shape, rate, key):
    return np.asarray(dropout(ops.ones(shape), rate, example_keys(key, np.arange(shape[0])))) != 0


def assert_uncorrelated(first, second):
    """Checks that two masks correlate by at most five standard deviations of chance."""
    first, second = first.ravel(), second.ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / np.sqrt(first.size)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_scaled_up(rate):
    x = np.random.default_rng(0).uniform(1, 2, (8, 100, 125)).astype(np.float32)
    dropped = np.asarray(
        dropout(ops.convert_to_tensor(x), rate, example_keys(dropout_key(0), np.arange(8)))
    )
    is_dropped = dropped == 0
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert is_dropped.mean() == pytest.approx(rate, abs=4 * deviation)
    np.testing.assert_allclose(dropped[~is_dropped], x[~is_dropped] / (1 - rate), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(start=st.integers(0, 8), length=st.integers(1, 8), batch=st.integers(1, 3))
def test_a_part_of_the_positions_has_its_part_of_the_mask(start, length, batch):
    keys = example_keys(dropout_key(1), np.arange(batch))
    whole = np.asarray(dropout(ops.ones((batch, 16, 3)), 0.5, keys))
    outside = FIRST_POSITION.set(np.int32(start))
    part = dropout(ops.ones((batch, length, 3)), 0.5, keys)
    FIRST_POSITION.reset(outside)
    np.testing.assert_array_equal(part, whole[:, start : start + length])


@pytest.mark.parametrize(("rate", "has_key"), [(0.5, False), (0.0, True), (0.0, False)])
def test_without_a_key_or_a_rate_nothing_is_dropped(rate, has_key):
    x = ops.ones((2, 3))
    assert dropout(x, rate, example_keys(dropout_key(0), np.arange(2)) if has_key else None) is x


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_kept(dtype):
    dropped = dropout(ops.ones((4, 50), dtype), 0.5, example_keys(dropout_key(0), np.arange(4)))
    assert dropped.dtype == ops.ones((), dtype).dtype
    assert set(np.asarray(dropped, np.float32).ravel()) == {0.0, 2.0}


def test_the_key_determines_the_mask():
    first, same, other = (mask((4, 200), 0.5, dropout_key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert_uncorrelated(first, other)


@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    rate=st.floats(0.01, 0.99),
    key=st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, deadline=None)
def test_masks_are_those_of_the_hash(shape, rate, key):
    actual = mask(tuple(shape), rate, ops.convert_to_tensor(np.uint32(key), "uint32"))
    np.testing.assert_array_equal(actual, mask_by_hand(tuple(shape), rate, key))


def test_masks_stay_the_same_in_all_versions_and_backends():
    """Otherwise a resumed run would differ from an uninterrupted one."""
    key = fold_in(fold_in(dropout_key(12345), 1), 2)
    assert int(dropout_key(12345)) == 2688385916
    assert int(key) == 4066227798
    bits = np.packbits(mask((3, 16, 40), 0.1, key)).tobytes()
    assert (
        hashlib.sha256(bits).hexdigest()
        == "d36f40d7c2a5fa6c9c71e8e41da5b6b7688b9234b082f615bff93f139b5e36e7"
    )


def test_a_key_is_folded_with_numbers_and_tensors_alike():
    key = dropout_key(7)
    expected = lowbias32(lowbias32(np.uint32(int(key))) ^ np.uint32(3))
    for number in (3, ops.convert_to_tensor(3, "int32"), ops.convert_to_tensor(3, "int64")):
        assert int(fold_in(key, number)) == expected


def test_a_part_of_a_batch_has_the_masks_of_the_whole():
    keys = example_keys(dropout_key(1), np.arange(6))
    whole = np.asarray(dropout(ops.ones((6, 5, 20)), 0.5, fold_in(keys, 2)))
    part = np.asarray(dropout(ops.ones((2, 5, 20)), 0.5, fold_in(keys[2:4], 2)))
    np.testing.assert_array_equal(part, whole[2:4])


def test_folding_no_key_gives_no_key():
    assert fold_in(None, 3) is None


def test_each_seed_and_each_number_gives_its_own_key():
    seeds = {int(dropout_key(seed)) for seed in range(300)}
    folded = fold_in(fold_in(dropout_key(0), ops.arange(100)[:, None]), ops.arange(100)[None])
    assert len(seeds) == 300
    assert len(np.unique(np.asarray(folded))) == 100 * 100


@pytest.fixture(scope="module")
def masks():
    """Masks [steps, layers, examples, rows, columns], with keys folded like the trainer's."""
    key = dropout_key(3)
    shape = (4, 64, 128)
    return np.stack(
        [
            np.stack([mask(shape, 0.3, fold_in(fold_in(key, step), layer)) for layer in range(4)])
            for step in range(4)
        ]
    )


@pytest.mark.parametrize(
    ("axis", "distance"), [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1), (4, 64)]
)
def test_neighbours_are_not_correlated(masks, axis, distance):
    """This applies to steps, layers, examples, rows and columns."""
    masks = np.moveaxis(masks, axis, 0)
    assert_uncorrelated(masks[distance:], masks[:-distance])


def test_step_and_layer_are_not_interchangeable(masks):
    upper = np.triu_indices(4, 1)
    assert_uncorrelated(masks[upper], masks.swapaxes(0, 1)[upper])


def test_no_mask_is_a_shifted_copy_of_another():
    """This also holds if the sequences from which two examples are hashed overlap."""
    keys = np.arange(2**22, dtype=np.uint32)
    distances = lowbias32(keys + np.uint32(1)) - lowbias32(keys)
    key, distance = int(keys[distances.argmin()]), int(distances.min())
    assert distance < 2**13
    first, second = mask((2, 2**15), 0.5, ops.convert_to_tensor(np.uint32(key), "uint32"))
    assert_uncorrelated(first[distance:], second[:-distance])


def test_sums_of_masks_vary_like_independent_draws(masks):
    """This holds for the examples of a step and layer, and for each position over the steps."""
    for axes in ((3, 4), (0, 1, 2)):
        counted = masks.sum(axes)
        draws = masks.size // counted.size
        assert counted.var() == pytest.approx(draws * 0.3 * 0.7, rel=5 * np.sqrt(2 / counted.size))
