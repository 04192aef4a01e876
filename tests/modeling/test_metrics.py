import io
import json
import sys
import time

import pytest

from modeling.metrics import METRICS_NAME, MetricsWriter

SUMS = {
    "masked_lm_nll": 60.0,
    "masked_lm_correct": 5.0,
    "masked_lm_weights": 20.0,
    "next_sentence_nll": 4.0,
    "next_sentence_correct": 6.0,
    "sequences": 8.0,
    "tokens": 100.0,
    "gradient_norm": 3.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def read_lines(run_dir):
    return [json.loads(line) for line in (run_dir / METRICS_NAME).read_text().splitlines()]


def write_lines(run_dir, steps, rest=""):
    lines = [json.dumps({"step": step, "masked_lm_loss": 7.0}) + "\n" for step in steps]
    (run_dir / METRICS_NAME).write_text("".join(lines) + rest)


def test_line_holds_the_means_over_its_steps(tmp_path):
    writer = MetricsWriter(tmp_path, 0, num_train_steps=10, flops_per_sequence=1000)
    writer.write(2, SUMS, learning_rate=1e-3, sequences_per_step=4)
    (line,) = read_lines(tmp_path)
    means = {
        "step": 2,
        "masked_lm_loss": 3.0,
        "next_sentence_loss": 0.5,
        "masked_lm_accuracy": 0.25,
        "next_sentence_accuracy": 0.75,
        "learning_rate": 1e-3,
        "gradient_norm": 1.5,
    }
    assert {name: line[name] for name in means} == pytest.approx(means, rel=1e-5)
    assert set(line) == {
        *means,
        "sequences_per_second",
        "tokens_per_second",
        "model_flops_per_second",
    }


def test_speed_is_that_since_the_last_line(tmp_path):
    writer = MetricsWriter(tmp_path, 0, num_train_steps=10, flops_per_sequence=1000)
    writer.write(2, SUMS, 1e-3, sequences_per_step=4)
    before = time.perf_counter()
    time.sleep(0.05)
    writer.write(8, SUMS, 1e-3, sequences_per_step=4)
    longest = time.perf_counter() - before
    line = read_lines(tmp_path)[1]
    assert 24 / (longest + 0.05) < line["sequences_per_second"] < 24 / 0.05
    assert line["tokens_per_second"] == pytest.approx(line["sequences_per_second"] * 100 / 8)
    assert line["model_flops_per_second"] == pytest.approx(line["sequences_per_second"] * 1000)


def test_steps_before_the_start_of_timing_do_not_count_as_speed(tmp_path):
    writer = MetricsWriter(tmp_path, 0, num_train_steps=10, flops_per_sequence=1000)
    time.sleep(0.2)
    before = time.perf_counter()
    writer.start_timing(1)
    time.sleep(0.02)
    writer.write(3, SUMS, 1e-3, sequences_per_step=4)
    longest = time.perf_counter() - before
    assert 8 / longest <= read_lines(tmp_path)[0]["sequences_per_second"] < 8 / 0.02


def test_lines_follow_each_other(tmp_path):
    writer = MetricsWriter(tmp_path, 0, num_train_steps=10, flops_per_sequence=1000)
    for step in (2, 4, 6):
        writer.write(step, SUMS, 1e-3, sequences_per_step=4)
    assert [line["step"] for line in read_lines(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("first_step", "kept"), [(0, []), (3, [2]), (4, [2, 4]), (9, [2, 4, 6, 8])]
)
def test_lines_after_the_step_that_training_goes_on_from_are_removed(tmp_path, first_step, kept):
    write_lines(tmp_path, [2, 4, 6, 8])
    writer = MetricsWriter(tmp_path, first_step, num_train_steps=20, flops_per_sequence=1000)
    writer.write(10, SUMS, 1e-3, sequences_per_step=4)
    assert [line["step"] for line in read_lines(tmp_path)] == [*kept, 10]


@pytest.mark.parametrize("rest", ['{"step": 6, "masked_lm_lo', '{"step"', "{", "\n"])
def test_line_that_was_cut_short_is_removed(tmp_path, rest):
    write_lines(tmp_path, [2, 4], rest)
    writer = MetricsWriter(tmp_path, 4, num_train_steps=20, flops_per_sequence=1000)
    writer.write(6, SUMS, 1e-3, sequences_per_step=4)
    assert [line["step"] for line in read_lines(tmp_path)] == [2, 4, 6]


def test_no_other_file_is_left(tmp_path):
    write_lines(tmp_path, [2, 4])
    MetricsWriter(tmp_path, 2, num_train_steps=20, flops_per_sequence=1000)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_NAME]


def test_terminal_shows_one_line_that_is_written_over(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    writer = MetricsWriter(tmp_path, 0, num_train_steps=10, flops_per_sequence=1000)
    for step in (2, 4):
        writer.write(step, SUMS, 1e-3, sequences_per_step=4)
    shown = terminal.getvalue()
    assert "\n" not in shown
    assert shown.count("\r") == 2
    last = shown.rpartition("\r")[2]
    for part in ("step 4/10", "loss 3.000", "accuracy 25.0%", "loss 0.500", "accuracy 75.0%"):
        assert part in last


def test_elsewhere_each_line_is_logged(tmp_path, caplog):
    writer = MetricsWriter(tmp_path, 0, num_train_steps=10, flops_per_sequence=1000)
    with caplog.at_level("INFO", logger="absl"):
        writer.write(2, SUMS, 1e-3, sequences_per_step=4)
        writer.log("saved it")
    first, second = caplog.messages
    assert first.startswith("step 2/10")
    assert second == "saved it"
