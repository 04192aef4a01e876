import dataclasses

import pytest

from modeling.training_options import OptimizerName, Precision, ScheduleName, TrainingOptions
from pipeline.errors import UserError

pytestmark = pytest.mark.no_backend


@pytest.mark.parametrize(
    "name",
    [
        "train_batch_size",
        "gradient_accumulation_steps",
        "num_train_steps",
        "save_checkpoints_steps",
        "keep_checkpoints",
        "log_every_steps",
        "eval_batch_size",
        "max_eval_steps",
    ],
)
@pytest.mark.parametrize("value", [0, -1])
def test_counts_are_at_least_1(name, value):
    with pytest.raises(UserError, match=f"--{name}={value} must lie between 1 and "):
        TrainingOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("weight_decay_rate", -0.01),
        ("eval_every_steps", -1),
        ("random_seed", -1),
    ],
)
def test_options_that_may_be_0_are_not_negative(name, value):
    with pytest.raises(UserError, match=f"--{name}={value} must be at least 0 and finite"):
        TrainingOptions(**{name: value})
    assert getattr(TrainingOptions(**{name: 0}), name) == 0


@pytest.mark.parametrize(
    "name", ["num_warmup_steps", "batch_size_warmup_steps", "freeze_old_steps"]
)
@pytest.mark.parametrize("steps", [-1, 11])
def test_a_warm_up_lies_within_training(name, steps):
    with pytest.raises(UserError, match=f"--{name}={steps} .* --num_train_steps=10$"):
        TrainingOptions(num_train_steps=10, **{name: steps})


@pytest.mark.parametrize("num_warmup_steps", [0, 10])
def test_the_warm_up_may_be_none_or_all_of_training(num_warmup_steps):
    options = TrainingOptions(num_train_steps=10, num_warmup_steps=num_warmup_steps)
    assert options.num_warmup_steps == num_warmup_steps


@pytest.mark.parametrize(
    ("num_train_steps", "default"),
    [(1, 0), (2, 0), (19, 1), (500, 50), (99_999, 9_999), (100_000, 10_000), (900_000, 10_000)],
)
def test_the_warm_up_is_by_default_a_tenth_of_training_up_to_10_000_steps(num_train_steps, default):
    assert TrainingOptions(num_train_steps=num_train_steps).num_warmup_steps == default


@pytest.mark.parametrize(("num_train_steps", "default"), [(1, 0), (19, 1), (500_000, 50_000)])
def test_a_stable_rate_falls_by_default_over_the_last_tenth(num_train_steps, default):
    options = TrainingOptions(
        num_train_steps=num_train_steps, learning_rate_schedule=ScheduleName.WARMUP_STABLE_DECAY
    )
    assert options.num_decay_steps == default
    assert options.last_stable_step == num_train_steps - default
    assert TrainingOptions(num_train_steps=num_train_steps).last_stable_step is None


@pytest.mark.parametrize(
    ("schedule", "name", "value", "named"),
    [
        ("linear", "decay_power", 0.5, "polynomial"),
        ("linear", "num_decay_steps", 0, "warmup_stable_decay"),
        ("warmup_stable_decay", "decay_power", 1.0, "polynomial"),
        ("polynomial", "num_decay_steps", 5, "warmup_stable_decay"),
    ],
)
def test_an_option_of_another_schedule_is_refused(schedule, name, value, named):
    with pytest.raises(
        UserError, match=f"--{name}={value} belongs to --learning_rate_schedule={named}: "
    ):
        TrainingOptions(learning_rate_schedule=ScheduleName(schedule), **{name: value})


@pytest.mark.parametrize("num_decay_steps", [-1, 8])
def test_the_decay_begins_after_the_warm_up(num_decay_steps):
    given = {
        "num_train_steps": 10,
        "num_warmup_steps": 3,
        "learning_rate_schedule": ScheduleName.WARMUP_STABLE_DECAY,
    }
    with pytest.raises(
        UserError, match=f"--num_decay_steps={num_decay_steps} must lie between 0 and 7, "
    ):
        TrainingOptions(**given, num_decay_steps=num_decay_steps)
    assert TrainingOptions(**given, num_decay_steps=7).last_stable_step == 3


@pytest.mark.parametrize("power", [0.0, -0.5, float("inf"), float("nan")])
def test_the_power_of_a_decay_is_positive_and_finite(power):
    with pytest.raises(UserError, match=f"--decay_power={power} must be larger than 0 and finite"):
        TrainingOptions(learning_rate_schedule=ScheduleName.POLYNOMIAL, decay_power=power)


def test_a_batch_is_divided_into_equal_parts():
    assert TrainingOptions(train_batch_size=12, gradient_accumulation_steps=4)
    with pytest.raises(
        UserError,
        match="--train_batch_size=12 must be a multiple of --gradient_accumulation_steps=5",
    ):
        TrainingOptions(train_batch_size=12, gradient_accumulation_steps=5)


def test_defaults_are_those_of_the_original_except_for_bias_correction():
    # run_pretraining.py, which has neither the other optimizer nor the other precisions.
    options = dataclasses.asdict(TrainingOptions())
    original = {
        "train_batch_size": 32,
        "num_train_steps": 100_000,
        "num_warmup_steps": 10_000,
        "save_checkpoints_steps": 1_000,
        "max_eval_steps": 100,
        "weight_decay_rate": 0.01,
        "learning_rate_schedule": ScheduleName.LINEAR,
        "optimizer": OptimizerName.ADAMW,
        "precision": Precision.FLOAT32,
    }
    assert {name: options[name] for name in original} == original
    assert options["adam_bias_correction"]
