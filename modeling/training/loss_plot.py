"""Plots of losses: `loss.png` in a run's directory, and one of several runs."""

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from modeling.losses import NAMES_OF_PAIRS
from modeling.training.metrics import read_metrics
from pipeline.files import whole_file
from pipeline.sentence_pairs import SentencePairs
from pipeline.storage import Location

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOSS_PLOT_NAME = "loss.png"

_WIDTH, _HEIGHT, _DPI = 1000, 700, 100
# More points would be indistinguishable.
_MAX_POINTS = 500
# The names in a legend of runs, and the inches that each takes.
_MAX_NAMES, _NAME_HEIGHT = 20, 0.2


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
    _Panel("masked_lm_prob", "Share of tokens to mask", "", "tab:red", 2),
)


def draw_runs(runs: Mapping[str, Location], path: Location) -> bool:
    """Draws the losses of several runs, those of training as lines and of evaluations as points.

    Args:
      runs: the runs by their names, in the order of the legend.
      path: the picture.

    Returns:
      Whether it was drawn; False if the package matplotlib is missing.
    """
    try:
        from matplotlib import colormaps, colors  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        return False
    all_series = {name: _read_series(run_dir) for name, run_dir in runs.items()}
    panels = [
        panel._replace(title=panel.title.format("Sentence pair"))
        for panel in _PANELS
        if panel.unit and any(len(series[panel.metric]) for series in all_series.values())
    ] or _PANELS[:1]
    num_named = min(len(runs), _MAX_NAMES)
    height = _HEIGHT / _DPI + _NAME_HEIGHT * num_named
    figure = Figure(figsize=(_WIDTH / _DPI, height), layout="constrained")
    heights = [panel.height for panel in panels]
    grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
    palette = map(colors.to_hex, colormaps["turbo"](np.linspace(0.95, 0.05, len(runs))))
    color_of = dict(zip(runs, palette, strict=True))
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        for name, series in all_series.items():
            color = color_of[name]
            if len(series[panel.metric]):
                steps, means, _, _ = series[panel.metric].thinned()
                axes.plot(steps, means, color=color, label=name, marker="." * (len(steps) == 1))
            _draw_points(axes, series[f"eval_{panel.metric}"], color)
        _describe(axes, panel)
    _describe_steps(grid[-1, 0])
    handles, _ = grid[0, 0].get_legend_handles_labels()
    handles = [handle for handle in handles if handle.get_label() in runs][:num_named]
    figure.legend(handles=handles, loc="outside lower left", frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
    return True


def draw_losses(run_dir: Path, sentence_pairs: SentencePairs = SentencePairs.NEXT) -> Path | None:
    """Draws the losses and the learning rate in `metrics.jsonl` over the steps so far.

    And the share of tokens to mask, if masks are drawn while training.

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
    series = _read_series(run_dir)
    _draw_panels(figure, series, _panels(sentence_pairs, series))
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


def _read_series(run_dir: Location) -> Mapping[str, _Series]:
    """The series that the panels show, from training and from evaluations."""
    series = {f"{prefix}{panel.metric}": _Series() for panel in _PANELS for prefix in ("", "eval_")}
    for line in read_metrics(run_dir):
        for name in series.keys() & line.keys():
            series[name].append(line["step"], line[name])
    return series


def _panels(sentence_pairs: SentencePairs, series: Mapping[str, _Series]) -> list[_Panel]:
    """The panels of a run on such data, with their titles."""
    name = NAMES_OF_PAIRS.get(sentence_pairs)
    needed = {"next_sentence_loss": name, "masked_lm_prob": len(series["masked_lm_prob"])}
    panels = [panel for panel in _PANELS if needed.get(panel.metric, True)]
    return [panel._replace(title=panel.title.format((name or "").capitalize())) for panel in panels]


def _draw_panels(figure: "Figure", series: Mapping[str, _Series], panels: Sequence[_Panel]) -> None:
    heights = [panel.height for panel in panels]
    # Each panel has its own scale, because one loss is many times the other.
    all_axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights)
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_line(axes, series[panel.metric], panel.color)
        _draw_points(axes, series[f"eval_{panel.metric}"], panel.color)
        _describe(axes, panel)
        if not panel.unit:
            axes.set_ylim(bottom=0)
        if len(series[f"eval_{panel.metric}"]):
            # The legend is above the panel, where it covers nothing.
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    _describe_steps(all_axes[-1])


def _describe(axes: "Axes", panel: _Panel) -> None:
    axes.set_title(panel.title, loc="left")
    axes.set_ylabel(panel.unit)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _describe_steps(lowest: "Axes") -> None:
    lowest.set_xlim(left=0)
    lowest.set_xlabel("step")
    lowest.xaxis.set_major_formatter("{x:,.0f}")
    locator: Any = lowest.xaxis.get_major_locator()
    locator.set_params(integer=True)


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
