import io
import json
import sys

import numpy as np
import pytest

from modeling.training.loss_plot import (
    LOSS_PLOT_NAME,
    _panels,
    _read_series,
    draw_losses,
    draw_runs,
)
from modeling.training.metrics import METRICS_NAME
from pipeline.sentence_pairs import SentencePairs

pytest.importorskip("matplotlib")
from PIL import Image

pytestmark = pytest.mark.no_backend


def train_line(step, num_steps=1000):
    return {
        "step": step,
        "masked_lm_loss": 2 + 8 * 0.99**step,
        "next_sentence_loss": 0.1 + 0.6 * 0.995**step,
        "masked_lm_accuracy": 0.5,
        "learning_rate": 1e-4 * (1 - step / num_steps),
    }


def eval_line(step):
    return {"step": step, "eval_masked_lm_loss": 3.0, "eval_next_sentence_loss": 0.3}


def write_lines(run_dir, lines, rest=""):
    run_dir.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / METRICS_NAME).write_text(text + rest)


def colors(picture):
    """The shares of pixels that are blue (masked LM) and orange (next sentence)."""
    with Image.open(io.BytesIO(picture)) as image:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), int), -1, 0)
    return np.mean(blue > red + 40), np.mean((red > green + 40) & (green > blue + 40))


@pytest.fixture
def draw(tmp_path):
    """A function that draws lines of metrics and returns the bytes of the picture."""

    def draw_lines(lines, rest="", name="run"):
        write_lines(tmp_path / name, lines, rest)
        path = draw_losses(tmp_path / name)
        assert path == tmp_path / name / LOSS_PLOT_NAME
        return path.read_bytes()

    return draw_lines


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [train_line(1)],
        [eval_line(1)],
        [train_line(1), eval_line(1)],
        [line(step) for step in range(10, 1000, 10) for line in (train_line, eval_line)],
        [train_line(step, 20_000) for step in range(1, 20_000)],
    ],
    ids=["no line", "one line", "evaluation only", "one of each", "many", "very many"],
)
def test_picture_has_the_same_size_for_any_number_of_lines(draw, lines):
    with Image.open(io.BytesIO(draw(lines))) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == (1000, 700)


@pytest.mark.parametrize(
    "lines",
    [[train_line(50)], [eval_line(50)], [train_line(step) for step in range(50, 500, 50)]],
    ids=["one line", "one evaluation", "several lines"],
)
def test_both_losses_are_visible(draw, lines):
    assert colors(draw([])) == (0, 0)
    assert all(share > 0 for share in colors(draw(lines)))


def test_evaluation_adds_to_the_picture(draw):
    lines = [train_line(step) for step in range(50, 500, 50)]
    assert draw([*lines, eval_line(450)]) != draw(lines)


@pytest.mark.parametrize("num_runs", [0, 30])
def test_picture_of_any_number_of_runs_shows_them_all(tmp_path, num_runs):
    runs = {f"run {number}": tmp_path / str(number) for number in range(num_runs)}
    for number, run_dir in enumerate(runs.values()):
        lines = [{"step": step, "masked_lm_loss": number + 1 / step} for step in range(1, 9)]
        write_lines(run_dir, [*lines, {"step": 8, "eval_masked_lm_loss": number + 0.5}])
    assert draw_runs(runs, tmp_path / "runs.png")
    with Image.open(tmp_path / "runs.png") as image:
        pixels = np.asarray(image.convert("RGB"), int)
    saturated = pixels[np.ptp(pixels, axis=-1) > 100]
    # Lines are drawn with soft edges, so each run has a few colours.
    assert len(np.unique(saturated, axis=0)) >= num_runs
    assert bool(len(saturated)) == bool(num_runs)


def test_masks_drawn_while_training_have_a_panel_of_their_own(draw):
    lines = [train_line(step) for step in range(50, 500, 50)]
    masked = [{**line, "masked_lm_prob": 0.3} for line in lines]
    red = []
    for picture in (draw(lines), draw(masked)):
        with Image.open(io.BytesIO(picture)) as image:
            assert image.size == (1000, 700)
            channels = np.moveaxis(np.asarray(image.convert("RGB"), int), -1, 0)
        red.append(np.mean(channels[0] > channels[1] + 150))
    assert red[0] == 0 < red[1]


def test_outlier_among_many_lines_is_visible(draw):
    lines = [train_line(step, 20_000) for step in range(1, 20_000)]
    spike = {**lines[9000], "masked_lm_loss": 9.0}
    assert draw([*lines[:9000], spike, *lines[9001:]]) != draw(lines)


def test_run_without_metrics_has_an_empty_picture(tmp_path, draw):
    empty = draw([])
    (tmp_path / "other").mkdir()
    path = draw_losses(tmp_path / "other")
    assert path is not None
    assert path.read_bytes() == empty


def test_same_metrics_give_the_same_bytes(draw):
    lines = [train_line(1), train_line(2), eval_line(2)]
    assert draw(lines, name="one") == draw(lines, name="another")


def test_picture_records_neither_time_nor_software(draw):
    with Image.open(io.BytesIO(draw([train_line(1)]))) as image:
        assert set(image.info) == {"dpi"}


@pytest.mark.parametrize("rest", ['{"step": 6, "masked_lm_lo', '{"step"', "{", "\n"])
def test_line_that_was_cut_short_is_skipped(draw, rest):
    lines = [train_line(1), train_line(2)]
    assert draw(lines, rest) == draw(lines)


def test_picture_is_replaced_and_no_other_file_is_left(tmp_path, draw):
    first = draw([train_line(1)])
    assert draw([train_line(1), train_line(2)]) != first
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {METRICS_NAME, LOSS_PLOT_NAME}


def test_failed_drawing_leaves_the_previous_picture(tmp_path, draw, monkeypatch):
    before = draw([train_line(1)])
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", write_half_and_fail)
    with pytest.raises(OSError, match="disk full"):
        draw([train_line(1), train_line(2)])
    assert (tmp_path / "run" / LOSS_PLOT_NAME).read_bytes() == before
    assert len(list((tmp_path / "run").iterdir())) == 2


def write_half_and_fail(_figure, path, **_options):
    path.write_bytes(b"half")
    raise OSError("disk full")


def test_pyplot_is_not_imported(draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    assert draw([train_line(1)])


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    write_lines(tmp_path, [train_line(1)])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw_losses(tmp_path) is None
    assert not (tmp_path / LOSS_PLOT_NAME).exists()


@pytest.mark.parametrize("value", ["NaN", "1e300", "-2.9e38", '"7"'])
def test_no_value_stops_the_drawing(draw, value):
    rest = f'{{"step": 60, "masked_lm_loss": {value}, "eval_next_sentence_loss": {value}}}\n'
    with Image.open(io.BytesIO(draw([train_line(50)], rest + '{"step": 1e300}\n\xff\n'))) as image:
        image.load()
        assert image.size == (1000, 700)


def test_a_run_without_pairs_has_no_panel_for_them(tmp_path):
    write_lines(tmp_path, [train_line(step) for step in range(0, 100, 10)])
    pictures = {pairs: draw_losses(tmp_path, pairs).read_bytes() for pairs in SentencePairs}
    assert len(set(pictures.values())) == 3
    for pairs, picture in pictures.items():
        blue, orange = colors(picture)
        assert blue > 0.001
        assert (orange > 0.001) == (pairs != SentencePairs.NONE)
    series = _read_series(tmp_path)
    titles = {
        pairs: [panel.title for panel in _panels(pairs, series)][1:-1] for pairs in SentencePairs
    }
    assert titles == {"next": ["Next sentence loss"], "order": ["Sentence order loss"], "none": []}
