import hashlib
import io
import json
import logging
import sys
import time

import pytest
import tensorflow as tf

from modeling.checkpoints.run_checkpoints import FileStart, TrainingState
from modeling.training.metrics import METRICS_NAME, MetricsWriter, read_metrics, read_metrics_of
from modeling.training.tensorboard import SUMMARIES_NAME
from modeling.training.workload import BatchSizes
from modeling.training_options import TrainingOptions
from pipeline.records import read_frames, record_of

pytestmark = pytest.mark.no_backend

SUMS = {
    "masked_lm_nll": 60.0,
    "masked_lm_correct": 5.0,
    "masked_lm_weights": 20.0,
    "next_sentence_nll": 4.0,
    "next_sentence_correct": 6.0,
    "sequences": 8.0,
    "tokens": 100.0,
    "gradient_norm": 3.0,
    "updates": 2.0,
}
MEANS = {
    "masked_lm_loss": 3.0,
    "next_sentence_loss": 0.5,
    "masked_lm_accuracy": 0.25,
    "next_sentence_accuracy": 0.75,
}
SPEED_FIELDS = {
    "sequences_per_second",
    "tokens_per_second",
    "model_flops_per_second",
    "input_wait",
}
WIDTH = 80


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def make_terminal(monkeypatch):
    """A function that replaces stderr by a terminal, and returns the terminal."""

    def make(width=WIDTH):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("LINES", "25")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        return terminal

    return make


@pytest.fixture
def make_writer(tmp_path):
    """A function that makes a writer for steps of 4 sequences, each of 1000 FLOPs."""

    def make(
        first_step=0, num_train_steps=10, peak_flops=None, written=None, pairs="next", **options
    ):
        start = TrainingState(step=first_step, metrics=written)
        sizes = BatchSizes(TrainingOptions(**{"train_batch_size": 4} | options))
        return MetricsWriter(tmp_path, start, num_train_steps, sizes, 1000, peak_flops, pairs)

    return make


def read_lines(run_dir):
    return [json.loads(line) for line in (run_dir / METRICS_NAME).read_text().splitlines()]


def write_lines(run_dir, steps, rest=""):
    lines = [
        json.dumps({"step": step, name: 7.0}) + "\n"
        for step in steps
        for name in ("masked_lm_loss", "eval_masked_lm_loss")
    ]
    (run_dir / METRICS_NAME).write_text("".join(lines) + rest)


def read_scalars(run_dir):
    """The tag, step and value of all points that TensorBoard shows."""
    (path,) = (run_dir / SUMMARIES_NAME).iterdir()
    with path.open("rb") as file:
        events = [tf.compat.v1.Event.FromString(record_of(frame)) for frame in read_frames(file)]
    return [
        (value.tag, event.step, value.simple_value)
        for event in events
        for value in event.summary.value
    ]


def screen(written):
    """The rows that a terminal of 80 columns shows after this was written to it."""
    rows, row, column = [""], 0, 0
    while written:
        character, written = written[0], written[1:]
        if character == "\n":
            row, column = row + 1, 0
            if row == len(rows):
                rows.append("")
        elif character == "\r":
            column = 0
        elif character == "\x1b":
            end = next(i for i, c in enumerate(written) if c.isalpha())
            number, command, written = written[1:end], written[end], written[end + 1 :]
            if command == "A":
                row -= int(number or 1)
            elif command == "K":
                rows[row] = "" if number == "2" else rows[row][:column]
        else:
            if column == WIDTH:
                row, column = row + 1, 0
                rows.append("")
            rows[row] = rows[row][:column].ljust(column) + character + rows[row][column + 1 :]
            column += 1
    return [text.rstrip() for text in rows if text.strip()]


def test_steps_without_masks_have_no_loss_of_the_masked_lm(tmp_path, make_writer, caplog):
    unmasked = SUMS | dict.fromkeys(
        ("masked_lm_nll", "masked_lm_correct", "masked_lm_weights"), 0.0
    )
    writer = make_writer()
    with caplog.at_level("INFO", logger="absl"):
        writer.write(2, unmasked, learning_rate=1e-3)
        writer.write_evaluation(2, unmasked)
    line, evaluation = read_metrics(tmp_path)
    assert line["next_sentence_loss"] == evaluation["eval_next_sentence_loss"] == 0.5
    names = {*line, *evaluation, *(tag for tag, _, _ in read_scalars(tmp_path))}
    assert not any("masked_lm" in name for name in names)
    assert all("masked LM – | next sentence 0.500 (75.0%)" in text for text in caplog.messages)


def test_line_holds_the_means_over_its_steps(tmp_path, make_writer):
    make_writer().write(2, SUMS, learning_rate=1e-3)
    (line,) = read_lines(tmp_path)
    means = MEANS | {"step": 2, "learning_rate": 1e-3, "gradient_norm": 1.5}
    assert {name: line[name] for name in means} == pytest.approx(means, rel=1e-5)
    assert set(line) == means.keys() | SPEED_FIELDS


def test_the_share_of_masks_that_are_drawn_is_a_figure(tmp_path, make_writer):
    make_writer().write(2, SUMS, learning_rate=1e-3, masked_lm_prob=0.25)
    (line,) = read_lines(tmp_path)
    assert line["masked_lm_prob"] == 0.25
    assert "train/masked_lm_prob" in [tag for tag, _, _ in read_scalars(tmp_path)]


def test_gradient_norm_is_the_mean_over_the_updates_made(tmp_path, make_writer):
    writer = make_writer()
    skipped = SUMS | {"updates_left_out": 1.0}
    writer.write(2, skipped | {"updates": 1.0}, 1e-3, loss_scale=1024.0)
    writer.write(4, skipped | {"updates": 0.0, "gradient_norm": 0.0}, 1e-3, loss_scale=256.0)
    assert [line["gradient_norm"] for line in read_lines(tmp_path)] == [3.0, 0.0]


def test_loss_scale_comes_with_the_number_of_skipped_updates(tmp_path, make_writer):
    writer = make_writer()
    for skipped in (0.0, 1.0, 2.0):
        writer.write(2, SUMS | {"updates_left_out": skipped}, 1e-3, loss_scale=1024.0)
    lines = read_lines(tmp_path)
    assert [line["updates_left_out"] for line in lines] == [0, 1, 2]
    assert {line["loss_scale"] for line in lines} == {1024}


def test_line_of_a_step_that_was_not_timed_has_no_speed(tmp_path, make_writer, caplog):
    writer = make_writer()
    writer.start_timing(1)
    with caplog.at_level("INFO", logger="absl"):
        writer.write(1, SUMS, 1e-3)
    (line,) = read_lines(tmp_path)
    assert not SPEED_FIELDS & line.keys()
    assert caplog.messages[0].startswith("step 1/10 | masked LM")


def test_speed_is_measured_since_the_last_line(tmp_path, make_writer):
    writer = make_writer()
    writer.write(2, SUMS, 1e-3)
    before = time.perf_counter()
    time.sleep(0.05)
    writer.write(8, SUMS, 1e-3)
    longest = time.perf_counter() - before
    line = read_lines(tmp_path)[1]
    assert 24 / (longest + 0.05) < line["sequences_per_second"] < 24 / 0.05
    assert line["tokens_per_second"] == pytest.approx(line["sequences_per_second"] * 100 / 8)
    assert line["model_flops_per_second"] == pytest.approx(line["sequences_per_second"] * 1000)


def test_speed_counts_the_true_sizes_of_batches(tmp_path, make_writer, caplog):
    # Batches of 1, 2, 3, 4, 5 and 6 sequences, and then of 6.
    writer = make_writer(train_batch_size=6, batch_size_warmup_steps=6)
    writer.start_timing(3)
    before = time.perf_counter()
    time.sleep(0.02)
    sums = SUMS | {"updates": 5.0, "sequences": 15.0, "tokens": 150.0}
    with caplog.at_level("INFO", logger="absl"):
        writer.write(5, sums, 1e-3)
    longest = time.perf_counter() - before
    (line,) = read_lines(tmp_path)
    assert 9 / longest <= line["sequences_per_second"] < 9 / 0.02
    assert line["tokens_per_second"] == pytest.approx(line["sequences_per_second"] * 10)
    assert line["model_flops_per_second"] == pytest.approx(line["sequences_per_second"] * 1000)


def test_utilization_is_the_share_of_a_known_peak(tmp_path, make_writer):
    make_writer(peak_flops=1e6).write(2, SUMS, 1e-3)
    (line,) = read_lines(tmp_path)
    expected = line["model_flops_per_second"] / 1e6
    assert line["model_flops_utilization"] == pytest.approx(expected)


def test_steps_before_the_start_of_timing_do_not_count_as_speed(tmp_path, make_writer):
    writer = make_writer()
    time.sleep(0.2)
    before = time.perf_counter()
    writer.start_timing(1)
    time.sleep(0.02)
    writer.write(3, SUMS, 1e-3)
    longest = time.perf_counter() - before
    assert 8 / longest <= read_lines(tmp_path)[0]["sequences_per_second"] < 8 / 0.02


def test_time_outside_training_does_not_count_as_speed(tmp_path, make_writer):
    writer = make_writer()
    with writer.not_timed():
        time.sleep(0.5)
    time.sleep(0.02)
    writer.write(2, SUMS, 1e-3)
    assert 8 / 0.5 < read_lines(tmp_path)[0]["sequences_per_second"] < 8 / 0.02


def test_input_wait_is_the_share_of_the_time_since_the_last_line(tmp_path, make_writer):
    writer = make_writer()
    for step in (2, 4):
        for _ in range(2):
            with writer.waiting_for_input(lambda: True):
                time.sleep(0.03)
            with writer.waiting_for_input(lambda: False):
                pass
        with writer.not_timed():
            time.sleep(0.1)
        before = time.perf_counter()
        time.sleep(0.02)
        writer.write(step, SUMS, 1e-3)
        worked = time.perf_counter() - before
        wait = read_lines(tmp_path)[-1]["input_wait"]
        assert 0.06 / (0.07 + worked) < wait < 1
        assert wait * 0.02 < (1 - wait) * 0.2
    writer.write(6, SUMS, 1e-3)
    assert read_lines(tmp_path)[-1]["input_wait"] == 0


def test_lines_follow_each_other(tmp_path, make_writer):
    writer = make_writer()
    for step in (2, 4, 6):
        writer.write(step, SUMS, 1e-3)
    assert [line["step"] for line in read_lines(tmp_path)] == [2, 4, 6]
    assert list(read_metrics(tmp_path)) == read_lines(tmp_path)


def test_evaluation_has_its_own_line(tmp_path, make_writer):
    writer = make_writer()
    writer.write(2, SUMS, 1e-3)
    writer.write_evaluation(2, {name: SUMS[name] for name in SUMS if name != "updates"})
    _, line = read_lines(tmp_path)
    expected = {"step": 2} | {f"eval_{name}": value for name, value in MEANS.items()}
    assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("first_step", "kept"), [(0, []), (3, [2]), (4, [2, 4]), (9, [2, 4, 6, 8])]
)
def test_lines_after_the_step_of_resumption_are_removed(tmp_path, make_writer, first_step, kept):
    write_lines(tmp_path, [2, 4, 6, 8])
    writer = make_writer(first_step, num_train_steps=20)
    writer.write(10, SUMS, 1e-3)
    steps = [step for step in kept for _ in ("training", "evaluation")]
    assert [line["step"] for line in read_lines(tmp_path)] == [*steps, 10]


@pytest.mark.parametrize("rest", ['{"step": 6, "masked_lm_lo', '{"step"', "{", "\n"])
def test_line_that_was_cut_short_is_removed(tmp_path, make_writer, rest):
    write_lines(tmp_path, [2, 4], rest)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 2, 4, 4]
    make_writer(4, num_train_steps=20).write(6, SUMS, 1e-3)
    assert [line["step"] for line in read_lines(tmp_path)] == [2, 2, 4, 4, 6]


GARBAGE = [
    *(b"{", b"[1, 2]", b"null", b"7", b'{"step": 2', b"\xff\xfe", b"\x00" * 100, b"[" * 100_000),
    *(b'{"masked_lm_loss": 7.0}', b'{"step": "2"}', b'{"step": null}', b'{"step": true}'),
    *(b'{"step": -1}', b'{"step": 1.5}', b'{"step": 1e400}', b'{"step": NaN}', b'{"step": [2]}'),
    *(b'{"step": 2, "masked_lm_loss": "7"}', b'{"step": 2, "learning_rate": {}}'),
    *(b'{"step": 2, "masked_lm_loss": NaN}', b'{"step": 2, "masked_lm_loss": -Infinity}'),
    *(b'{"step": 2, "masked_lm_loss": 1e300}', b'{"step": 2, "\\ud800": 7.0}'),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_line_that_is_garbage_is_left_out_with_one_warning(tmp_path, make_writer, caplog, garbage):
    write_lines(tmp_path, [2, 4])
    path = tmp_path / METRICS_NAME
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(first + b"\n" + garbage + b"\n" + rest)
    with caplog.at_level("WARNING", logger="absl"):
        assert [line["step"] for line in read_metrics(tmp_path)] == [2, 2, 4, 4]
    (message,) = caplog.messages
    assert message.startswith(f"{path}: 1 lines are left out")
    assert message.endswith("(the first: line 2)")
    make_writer(4, num_train_steps=20).write(6, SUMS, 1e-3)
    assert [line["step"] for line in read_lines(tmp_path)] == [2, 2, 4, 4, 6]
    assert {step for _, step, _ in read_scalars(tmp_path)} == {2, 4, 6}


@pytest.fixture
def written(make_writer, tmp_path):
    """The lines up to step 4, which two more follow."""
    writer = make_writer()
    writer.write(2, SUMS, 1e-3)
    writer.write(4, SUMS, 1e-3)
    start = writer.flushed()
    assert start.bytes == (tmp_path / METRICS_NAME).stat().st_size
    writer.write(6, SUMS, 1e-3)
    writer.write_evaluation(6, SUMS)
    return start


def test_lines_that_were_written_are_kept_to_the_byte(tmp_path, make_writer, written, caplog):
    content = (tmp_path / METRICS_NAME).read_bytes()
    with caplog.at_level("WARNING", logger="absl"):
        writer = make_writer(4, written=written)
    assert (tmp_path / METRICS_NAME).read_bytes() == content[: written.bytes]
    assert writer.flushed() == written
    writer.write(6, SUMS, 1e-3)
    content = (tmp_path / METRICS_NAME).read_bytes()
    assert writer.flushed() == FileStart(len(content), hashlib.sha256(content).hexdigest())
    assert not caplog.messages


def test_readable_lines_of_a_changed_file_are_kept(tmp_path, make_writer, written, caplog):
    path = tmp_path / METRICS_NAME
    path.write_bytes(path.read_bytes().replace(b'"masked_lm_loss": ', b'"masked_lm_loss": 1', 1))
    with caplog.at_level("WARNING", logger="absl"):
        make_writer(4, written=written)
    assert [line["step"] for line in read_lines(tmp_path)] == [2, 4]
    (message,) = caplog.messages
    assert message.startswith(f"{path} was changed: ")


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_lines_that_are_gone_stop_nothing(tmp_path, make_writer, written, caplog, content):
    path = tmp_path / METRICS_NAME
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with caplog.at_level("WARNING", logger="absl"):
        make_writer(4, written=written).write(6, SUMS, 1e-3)
    assert [line["step"] for line in read_lines(tmp_path)] == [6]
    (message,) = caplog.messages
    assert str(path) in message


def test_lines_up_to_a_checkpoint_are_those_that_were_written(tmp_path, written, caplog):
    state = TrainingState(step=4, metrics=written)
    assert read_metrics_of(tmp_path, state) == read_lines(tmp_path)[:2]
    assert not caplog.messages
    path = tmp_path / METRICS_NAME
    path.write_bytes(b" " + path.read_bytes())
    for changed in (state, TrainingState(step=4)):
        caplog.clear()
        with caplog.at_level("WARNING", logger="absl"):
            assert read_metrics_of(tmp_path, changed) == []
        (message,) = caplog.messages
        assert str(path) in message
        assert "clozemill evaluate" in message


def test_run_without_metrics_has_no_lines(tmp_path):
    assert list(read_metrics(tmp_path)) == []


def test_no_other_file_is_left(tmp_path, make_writer):
    write_lines(tmp_path, [2, 4])
    make_writer(2, num_train_steps=20)
    assert {path.name for path in tmp_path.iterdir()} == {METRICS_NAME, SUMMARIES_NAME}


def test_tensorboard_shows_the_figures_of_the_lines(tmp_path, make_writer):
    write_lines(tmp_path, [1, 3])
    writer = make_writer(first_step=2, peak_flops=1e6)
    writer.write(5, SUMS, 1e-3)
    writer.write_evaluation(5, SUMS)
    expected = [
        (
            name.replace("eval_", "eval/") if "eval_" in name else f"train/{name}",
            line["step"],
            pytest.approx(value, rel=1e-6),
        )
        for line in read_lines(tmp_path)
        for name, value in line.items()
        if name != "step"
    ]
    assert read_scalars(tmp_path) == expected


def test_terminal_shows_one_line_that_is_overwritten(make_terminal, make_writer):
    terminal = make_terminal()
    with make_writer() as writer:
        for step in (2, 4):
            writer.write(step, SUMS, 1e-3)
            rows = screen(terminal.getvalue())
            assert rows[0].startswith(f"step {step}/10, 0:00:00 left | masked LM")
            assert "TFLOP/s" in " ".join(rows)
            assert sum(row.startswith("step") for row in rows) == 1
    assert screen(terminal.getvalue()) == rows


def test_wide_terminal_shows_the_whole_line(make_terminal, make_writer):
    terminal = make_terminal(width=400)
    with make_writer(peak_flops=1e6) as writer:
        with writer.waiting_for_input(lambda: True):
            time.sleep(0.01)
        writer.write(4, SUMS, 1e-3)
    for part in (
        *("step 4/10", "masked LM", "3.000", "25.0%", "next sentence", "0.500", "75.0%"),
        *("1.00e-03", "gradient", "1.50", "tokens/s", "TFLOP/s", "% MFU", "% waiting for input"),
    ):
        assert part in terminal.getvalue()


def test_terminal_shows_messages_above_the_line(make_terminal, make_writer):
    terminal = make_terminal()
    path = "/" + "/".join(["folder"] * 20)
    with make_writer() as writer:
        writer.log("compiling the first step")
        writer.write(2, SUMS, 1e-3)
        writer.log(f"saved {path}")
        writer.write(4, SUMS, 1e-3)
    first, *rows = screen(terminal.getvalue())
    assert first == "compiling the first step"
    message, _, line = "".join(rows).partition("step 4/10")
    assert message == f"saved {path}"
    assert "TFLOP/s" in line


def test_output_after_an_error_appears_below_the_line(make_terminal, make_writer):
    terminal = make_terminal()

    def fail():
        with make_writer() as writer:
            writer.write(2, SUMS, 1e-3)
            writer.write(4, {}, 1e-3)

    with pytest.raises(KeyError):
        fail()
    terminal.write("clozemill pretrain: bad batch")
    line, *_, error = screen(terminal.getvalue())
    assert line.startswith("step 2/10")
    assert error == "clozemill pretrain: bad batch"


def test_without_a_terminal_each_line_is_logged(make_writer, caplog, capsys):
    with caplog.at_level("INFO", logger="absl"), make_writer() as writer:
        writer.log("compiling the first step")
        writer.write(2, SUMS, 1e-3)
        writer.write_evaluation(2, SUMS)
    first, second, third = caplog.messages
    assert first == "compiling the first step"
    assert second.startswith("step 2/10")
    assert third.startswith("evaluation at step 2")
    assert all(part in third for part in ("3.000", "25.0%", "0.500", "75.0%"))
    assert "\x1b" not in capsys.readouterr().err


def test_time_left_is_estimated_from_the_remaining_steps(make_writer, caplog):
    writer = make_writer(num_train_steps=20_002)
    time.sleep(0.5)
    with caplog.at_level("INFO", logger="absl"):
        writer.write(2, SUMS, 1e-3)
    left = caplog.messages[0].partition(", ")[2].partition(" left")[0]
    hours, minutes, seconds = map(int, left.split(":"))
    assert 5000 <= 3600 * hours + 60 * minutes + seconds < 10_000


@pytest.mark.parametrize(
    ("pairs", "says"),
    [("order", "masked LM 3.000 (25.0%) | sentence order 0.500 (75.0%)"), ("none", "masked LM 3.")],
)
def test_a_line_names_the_task_that_the_data_have(tmp_path, make_writer, pairs, says, caplog):
    sums = {name: SUMS[name] for name in SUMS if pairs == "order" or "next_sentence" not in name}
    with caplog.at_level(logging.INFO, logger="absl"):
        writer = make_writer(pairs=pairs)
        writer.write(2, sums, 1e-3)
        writer.write_evaluation(2, sums)
    for message in caplog.messages:
        assert says in message
        assert ("sentence" in message) == (pairs == "order")
        assert "next sentence" not in message
        assert "–" not in message
    figures = {name for line in read_lines(tmp_path) for name in line}
    assert ("next_sentence_loss" in figures) == (pairs == "order")
