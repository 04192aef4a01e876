import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling.training.workload import BatchSizes, describe_update
from modeling.training_options import TrainingOptions

pytestmark = pytest.mark.no_backend


def batch_sizes(batch_size, warmup_steps, parts=1, num_replicas=1):
    options = TrainingOptions(
        train_batch_size=batch_size,
        batch_size_warmup_steps=warmup_steps,
        gradient_accumulation_steps=parts,
        num_train_steps=1000,
    )
    return BatchSizes(options, num_replicas)


@pytest.mark.parametrize(
    ("batch_size", "warmup_steps", "multiple", "expected"),
    [
        (4608, 12, 1, np.repeat([768, 1536, 2304, 3072, 3840, 4608], 2)),
        (32, 6, 1, [5, 10, 16, 21, 26, 32]),
        (32, 6, 4, [4, 8, 16, 20, 24, 32]),
        (4, 6, 1, [1, 1, 2, 2, 3, 4]),
        (8, 6, 8, [8] * 6),
        # Some stretches have a step less, or none.
        (60, 9, 1, [10, 10, 20, 30, 30, 40, 50, 50, 60]),
        (60, 2, 1, [10, 40]),
        (60, 1, 1, [10]),
        (60, 0, 1, []),
    ],
)
def test_batches_grow_in_six_stretches_to_the_whole(batch_size, warmup_steps, multiple, expected):
    for parts, num_replicas in ((multiple, 1), (1, multiple)):
        sizes = batch_sizes(batch_size, warmup_steps, parts, num_replicas)
        assert [sizes.of(step) for step in range(1, warmup_steps + 1)] == list(expected)
        assert sizes.of(warmup_steps + 1) == sizes.of(1000) == batch_size


@given(
    shares=st.integers(1, 40),
    multiple=st.integers(1, 9),
    warmup_steps=st.integers(0, 90),
    after=st.integers(0, 99),
    steps=st.integers(1, 99),
)
def test_all_that_is_said_of_sizes_agrees(shares, multiple, warmup_steps, after, steps):
    sizes = batch_sizes(shares * multiple, warmup_steps, multiple)
    each = [sizes.of(step) for step in range(after + 1, after + steps + 1)]
    assert each == sorted(each)
    assert not any(size % multiple for size in each)
    assert len(set(each)) <= 6
    assert sizes.total(after, after + steps) == sum(each)
    assert sizes.total(after, after) == 0
    stretches = sizes.stretches(after, after + steps)
    assert [size for size, count in stretches for _ in range(count)] == each
    given_sizes = sizes.each(after, after + steps)
    if given_sizes is None:
        assert set(each) == {shares * multiple}
    else:
        assert given_sizes.tolist() == each


def test_stretches_of_the_warm_up_are_equal():
    sizes = [batch_sizes(60, 600).of(step) for step in range(1, 601)]
    assert [len(list(group)) for _, group in itertools.groupby(sizes)] == [100] * 6


def test_the_sizes_of_the_warm_up_are_described(data_set):
    described = describe_update(data_set.manifest, batch_sizes(32, 600))
    assert described.startswith("32 sequences, about ")
    assert described.endswith("; over the first 600 steps, batches of 5, 10, 16, 21, 26, 32")
    assert ";" not in describe_update(data_set.manifest, batch_sizes(32, 0))
