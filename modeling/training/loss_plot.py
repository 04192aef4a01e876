"""A plot of the losses and the learning rate: `loss.png` in the run's directory."""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from modeling.losses import NAMES_OF_PAIRS
from modeling.training.metrics import read_metrics
from pipeline.files import whole_file
from pipeline.sentence_pairs import SentencePairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_PLOT_NAME = "loss.png"

_WIDTH, _HEIGHT, _DPI = 1000, 700, 100
# More points would be indistinguishable.
_MAX_POINTS = 500


class _Panel(NamedTuple):
    """The content of one of the panels, which are stacked vertically."""

    metric: str
    title: str
    unit: str
    color: str
    height: int


_PANELS = (
    _Panel("masked_lm_loss", "Masked LM loss", "nats", "tab:blue", 5),
    _Panel("next_sentence_loss", "{} loss", "nats", "tab:orange", 3),
    _Panel("learning_rate", "Learning rate", "", "tab:green", 2),
)


def draw_losses(run_dir: Path, sentence_pairs: SentencePairs = SentencePairs.NEXT) -> Path | None:
    """Draws the losses and the learning rate in `metrics.jsonl` over the steps so far.

    The same metrics give the same bytes under the same version of matplotlib.

    Args:
      run_dir: the run.
      sentence_pairs: what its data's instances hold.

    Returns:
      The path of the plot, or None if the package matplotlib is missing.
    """
    try:
        # Without pyplot, no window opens and no state outlives the call.
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    figure = Figure(figsize=(_WIDTH / _DPI, _HEIGHT / _DPI), layout="constrained")
    _draw_panels(figure, _read_series(run_dir), _panels(sentence_pairs))
    path = run_dir / LOSS_PLOT_NAME
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
    return path


class _Series:
    """A metric's steps and values, each stored in 8 bytes."""

    def __init__(self) -> None:
        self.steps = array("d")
        self.values = array("d")

    def append(self, step: float, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.steps)

    def thinned(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Groups of neighbouring points: mean step, mean, smallest and largest value of each."""
        steps, values = np.array(self.steps), np.array(self.values)
        num_points = min(len(self), _MAX_POINTS)
        starts = np.arange(num_points) * len(self) // num_points
        sizes = np.diff(starts, append=len(self))
        return (
            np.add.reduceat(steps, starts) / sizes,
            np.add.reduceat(values, starts) / sizes,
            np.minimum.reduceat(values, starts),
            np.maximum.reduceat(values, starts),
        )


def _read_series(run_dir: Path) -> Mapping[str, _Series]:
    """The series that the panels show, from training and from evaluations."""
    series = {f"{prefix}{panel.metric}": _Series() for panel in _PANELS for prefix in ("", "eval_")}
    for line in read_metrics(run_dir):
        for name in series.keys() & line.keys():
            series[name].append(line["step"], line[name])
    return series


def _panels(sentence_pairs: SentencePairs) -> list[_Panel]:
    """The panels of a run on such data, with their titles."""
    name = NAMES_OF_PAIRS.get(sentence_pairs)
    panels = [panel for panel in _PANELS if name or panel.metric != "next_sentence_loss"]
    return [panel._replace(title=panel.title.format((name or "").capitalize())) for panel in panels]


def _draw_panels(figure: "Figure", series: Mapping[str, _Series], panels: Sequence[_Panel]) -> None:
    heights = [panel.height for panel in panels]
    # Each panel has its own scale, because one loss is many times the other.
    all_axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights)
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_line(axes, series[panel.metric], panel.color)
        _draw_points(axes, series[f"eval_{panel.metric}"], panel.color)
        axes.set_title(panel.title, loc="left")
        axes.set_ylabel(panel.unit)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series[f"eval_{panel.metric}"]):
            # The legend is above the panel, where it covers nothing.
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    lowest = all_axes[-1]
    lowest.set_ylim(bottom=0)
    lowest.set_xlim(left=0)
    lowest.set_xlabel("step")
    lowest.xaxis.set_major_formatter("{x:,.0f}")
    lowest.xaxis.get_major_locator().set_params(integer=True)


def _draw_line(axes: "Axes", series: _Series, color: str) -> None:
    """Draws a line through the means, in a band from the smallest to the largest value."""
    if len(series):
        steps, means, smallest, largest = series.thinned()
        axes.fill_between(steps, smallest, largest, color=color, alpha=0.25, linewidth=0)
        # A line through a single point would be invisible.
        marker = "." if len(steps) == 1 else None
        axes.plot(steps, means, color=color, marker=marker, label="training", zorder=3)


def _draw_points(axes: "Axes", series: _Series, color: str) -> None:
    if len(series):
        steps, means, _, _ = series.thinned()
        axes.scatter(steps, means, 20, color, edgecolors="black", label="evaluation")
