import numpy as np
import pytest

from pipeline.draws import Draw, first_key, fold_in, generator_draws, hash_draws

LENGTH = 128
KEYS = fold_in(first_key(1), np.arange(1000))
EVERYWHERE = np.arange(len(KEYS) * LENGTH)


def test_a_generator_gives_the_numbers_that_it_would_give_by_itself():
    draws = generator_draws(np.random.default_rng(1))
    bits = draws(Draw.ORDER, 1 << 32, np.zeros((3, 4), np.uint32))
    tenths = draws(Draw.ACTION, 10, np.zeros(5, int))
    rng = np.random.default_rng(1)
    assert bits.tolist() == rng.integers(0, 1 << 32, (3, 4), dtype=np.uint32).tolist()
    assert tenths.tolist() == rng.integers(0, 10, 5).tolist()
    assert (bits.dtype, tenths.dtype) == (np.uint32, np.int64)


def test_a_hash_depends_on_key_column_and_purpose_alone():
    draws = hash_draws(KEYS, LENGTH)
    bits = draws(Draw.ORDER, 1 << 32, EVERYWHERE).reshape(-1, LENGTH)
    assert len(np.unique(bits)) > bits.size - 10  # some of so many are equal by chance
    others = hash_draws(KEYS[[7, 5]], 200)(Draw.ORDER, 1 << 32, np.arange(400, dtype=np.uint32))
    assert (others.reshape(2, 200)[:, :LENGTH] == bits[[7, 5]]).all()
    some = np.array([3, 130, 129])
    assert (draws(Draw.ORDER, 1 << 32, some) == bits.ravel()[some]).all()
    assert (draws(Draw.ACTION, 1 << 32, EVERYWHERE) != bits.ravel()).mean() > 0.999


@pytest.mark.parametrize("limit", [2, 10, 30_522])
def test_a_hash_gives_each_number_below_the_limit_equally_often(limit):
    for draw in Draw:
        numbers = hash_draws(KEYS, LENGTH)(draw, limit, EVERYWHERE)
        assert numbers.dtype == EVERYWHERE.dtype
        counts = np.bincount(numbers * min(limit, 10) // limit)
        assert len(counts) == min(limit, 10)
        assert counts == pytest.approx([len(numbers) / len(counts)] * len(counts), rel=0.04)


def test_neighbouring_rows_columns_and_purposes_are_independent():
    draws = hash_draws(KEYS, LENGTH)
    numbers = {draw: draws(draw, 1 << 32, EVERYWHERE).reshape(-1, LENGTH) for draw in Draw}
    order = numbers[Draw.ORDER]
    for one, other in [
        (order[1:], order[:-1]),
        (order[:, 1:], order[:, :-1]),
        (order, numbers[Draw.ACTION]),
        (numbers[Draw.ACTION], numbers[Draw.REPLACEMENT]),
    ]:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015


def test_numbers_are_folded_in_one_after_the_other():
    keys = fold_in(fold_in(first_key(7), 3), np.array([1, 2, (1 << 32) + 1]))
    assert keys.dtype == np.uint32
    assert keys[0] == keys[2] != keys[1]
    assert keys[0] != fold_in(fold_in(first_key(7), 1), np.array([3]))[0]
