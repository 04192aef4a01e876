"""The grid of a sweep: the --grid flag, and the pretrain command of each point of the grid."""

import copy
import csv
import hashlib
import itertools
import re
from dataclasses import dataclass

from absl import flags

from launch.pretrain_command import pretrain_flags, read_command
from modeling.masking_schedule import MaskingSchedule
from pipeline.errors import UserError
from pipeline.storage import Location, location

# A name of a file has at most 255 bytes, and it gets an ending.
_LONGEST_NAME = 150
_NOT_SWEPT = {
    "output_dir": "each point gets a directory of its own there",
    "dry_run": "it trains nothing",
}

_GRID = flags.DEFINE_string(
    "grid",
    None,
    "The flags of pretrain to vary, each with its values: "
    "'learning_rate=1e-4,3e-4;hidden_dropout_prob=0,0.1' has four points. A value with a comma "
    'stands in double quotes: name="a,b",c.',
)


@dataclass(frozen=True)
class Point:
    """A point of the grid, which is a run.

    Attributes:
      values: the values of the grid's flags, by name.
      run_dir: the run: a directory below pretrain's --output_dir, named by the values.
      own: the flags that only this run has.
      arguments: the whole command: `pretrain` and its flags, of which these are the last.
      flags: the values of all flags of pretrain.
    """

    values: dict[str, str]
    run_dir: Location
    own: list[str]
    arguments: list[str]
    flags: flags.FlagValues

    @property
    def name(self) -> str:
        """The name of its directory."""
        return self.run_dir.name

    @property
    def num_train_steps(self) -> int:
        """The last step of the run."""
        return int(str(self.flags["num_train_steps"].value))


def grid_is_given() -> bool:
    """Whether there is a grid."""
    return _GRID.value is not None


def read_points(command: list[str]) -> list[Point]:
    """The points of the grid of --grid, whose flags pretrain accepts, in the order of the grid.

    Args:
      command: the words after `--`, whose --output_dir is the directory of all runs.

    Raises:
      flags.Error: the grid or the command is wrong, or pretrain does not accept a flag.
      UserError: pretrain does not accept the flags of a point together.
    """
    axes = _read_axes(_GRID.value or "", command)
    points = []
    for chosen in itertools.product(*axes.values()):
        values = dict(zip(axes, chosen, strict=True))
        own = [f"--{name}={value}" for name, value in values.items()]
        try:
            arguments, parsed = read_command([*command, *own] if command else [])
        except UserError as error:
            raise UserError(f"{_name_of(values)}: {error}") from error
        run_dir = location(str(parsed["output_dir"].value)) / _name_of(values)
        own.append(f"--output_dir={run_dir}")
        points.append(Point(values, run_dir, own, [*arguments, own[-1]], parsed))
    return points


def _read_axes(grid: str, command: list[str]) -> dict[str, list[str]]:
    """The flags of a grid, each with its values as pretrain understands them: 0.0001 for 1e-4."""
    known = pretrain_flags()
    axes: dict[str, list[str]] = {}
    for part in filter(str.strip, grid.split(";")):
        name, _, text = part.partition("=")
        name = name.strip().removeprefix("--")
        if name in axes:
            raise flags.Error(f"--grid has --{name} twice")
        if reason := _NOT_SWEPT.get(name):
            raise flags.Error(f"--grid cannot vary --{name}: {reason}")
        if name not in known:
            raise flags.Error(f"--grid: pretrain has no flag {name!r}")
        # A flag file may give a default to what the grid varies, the command line may not.
        if any(re.fullmatch(rf"--?(no)?{name}(=.*)?", word, re.DOTALL) for word in command):
            raise flags.Error(f"--{name} is in --grid and after --: remove one of them")
        axes[name] = [_as_parsed(known[name], value) for value in _split(name, text)]
        if len(set(axes[name])) < len(axes[name]):
            raise flags.Error(f"--grid has a value of --{name} twice")
    if not axes:
        raise flags.Error("--grid is empty: give NAME=VALUE,VALUE")
    return axes


def _split(name: str, text: str) -> list[str]:
    try:
        (values,) = csv.reader([text], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise flags.Error(f"--grid: the values of --{name} cannot be read: {text!r}") from error
    return [value.strip() for value in values or [""]]


def _as_parsed(flag: flags.Flag, value: str) -> str:
    if not value:
        raise flags.Error(f"--grid has an empty value of --{flag.name}")
    parsed = copy.deepcopy(flag)
    try:
        parsed.parse(value)
    except flags.Error as error:
        raise flags.Error(f"--grid: {error}") from error
    if flag.name == "masked_lm_prob":
        return MaskingSchedule(value)
    number = parsed.value
    return str(int(number)) if type(number) is float and number.is_integer() else str(number)


def _name_of(values: dict[str, str]) -> str:
    """A readable name of a file for these values, whatever the order of the grid."""
    name = ",".join(f"{flag}={value}" for flag, value in sorted(values.items()))
    safe = re.sub(r"[^\w.,=+-]", "_", name, flags=re.ASCII)[:_LONGEST_NAME]
    # Values of which this leaves too little to tell them apart also have a digest.
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
