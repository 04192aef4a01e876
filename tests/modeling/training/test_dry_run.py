import dataclasses
import re

import numpy as np
import pytest

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.config import BertConfig
from modeling.training.dry_run import dry_run, memory_estimate
from modeling.training_options import Precision, ScheduleName, TrainingOptions
from pipeline.errors import UserError

OPTIONS = TrainingOptions(
    train_batch_size=4, learning_rate=1e-2, num_train_steps=40, num_warmup_steps=0
)


@pytest.fixture(scope="module")
def lines(data_set, shallow_config, tmp_path_factory):
    """The lines of the report on a run, by their first words."""
    run_dir = tmp_path_factory.mktemp("dry") / "run"
    lines = dry_run(data_set, run_dir, shallow_config, OPTIONS)
    return dict(re.split(r"  +", line, maxsplit=1) for line in lines)


def test_parameters_and_work_of_the_model_are_reported(lines, shallow_config):
    assert lines["parameters"] == f"{BertForPreTraining(shallow_config).count_params():,}"
    flops = shallow_config.flops_per_instance(16, 3)
    work = f"{flops / 1e9:.3g} GFLOP, forward and backward, sequence length 16"
    assert lines["work per sequence"] == work


def test_passes_over_the_data_are_reported(lines):
    assert lines["data"] == "26 instances in 2 passes, 3.25 steps per pass"
    assert lines["whole run"] == "160 sequences, 12.3 passes"


def test_smaller_batches_of_a_warm_up_are_counted(data_set, shallow_config, tmp_path):
    options = dataclasses.replace(OPTIONS, train_batch_size=6, batch_size_warmup_steps=36)
    report = dry_run(data_set, tmp_path, shallow_config, options)
    line = next(line for line in report if line.startswith("whole run"))
    assert line.split()[2] == f"{6 * (1 + 2 + 3 + 4 + 5 + 6) + 4 * 6}"


def test_the_course_of_the_learning_rate_is_reported(lines):
    assert lines["learning rate"] == "0.01 after 0 steps of warm-up, 0 after 40 steps"


@pytest.mark.parametrize(
    ("options", "decay"),
    [
        (
            {"learning_rate_schedule": ScheduleName.WARMUP_STABLE_DECAY},
            "stable until step 36, 0 after 40 steps",
        ),
        (
            {"learning_rate_schedule": ScheduleName.WARMUP_STABLE_DECAY, "num_decay_steps": 0},
            "stable until step 40",
        ),
        (
            {"learning_rate_schedule": ScheduleName.POLYNOMIAL, "decay_power": 0.5},
            "0 after 40 steps, by the power 0.5",
        ),
    ],
)
def test_the_decay_of_each_schedule_is_reported(data_set, shallow_config, tmp_path, options, decay):
    report = dry_run(data_set, tmp_path, shallow_config, dataclasses.replace(OPTIONS, **options))
    line = next(line for line in report if line.startswith("learning rate"))
    assert line.endswith(f" 0.01 after 0 steps of warm-up, {decay}")


def test_memory_and_device_are_reported(lines):
    assert re.fullmatch(r"about \d+\.\d GiB per device", lines["memory"])
    assert lines["device"]


def test_two_steps_are_made_and_the_first_loss_is_that_of_guessing(lines):
    losses = [float(lines[f"step {n}"].split()[1].rstrip(",")) for n in (1, 2)]
    assert losses[0] == pytest.approx(np.log(50) + np.log(2), abs=0.2)
    assert losses[1] != losses[0]
    assert "including compilation" in lines["step 1"]
    assert "compilation" not in lines["step 2"]
    assert "step 3" not in lines


def test_unusable_data_set_is_reported(tmp_path, write_data_set, shallow_config):
    data_set = write_data_set(tmp_path, [("eval", 0, 3)])
    with pytest.raises(UserError, match="no training instance") as raised:
        list(dry_run(data_set, tmp_path / "run", shallow_config, OPTIONS))
    assert str(tmp_path) in str(raised.value)


def estimate(seq_length=128, sequences=256, **options):
    options = dataclasses.replace(OPTIONS, **options)
    return memory_estimate(
        BertConfig(vocab_size=30522), options, sequences, 110_000_000, seq_length, 20
    )


def test_weights_gradients_and_moments_are_the_minimum():
    smallest = estimate(sequences=1, recompute_activations=True, precision=Precision.BFLOAT16)
    assert 16 * 110_000_000 < smallest < 2 * 16 * 110_000_000


@pytest.mark.parametrize(
    "options",
    [
        {"sequences": 64},
        {"precision": Precision.BFLOAT16},
        {"precision": Precision.FLOAT16},
        {"recompute_activations": True},
        {"context_parallel": 2},
        {"seq_length": 64},
    ],
)
def test_options_that_save_memory_make_the_estimate_smaller(options):
    assert estimate(**options) < 0.8 * estimate()
