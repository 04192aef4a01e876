"""The pretrain command after `--`, for the verbs that start pretrain as other processes."""

import copy
from types import ModuleType

from absl import flags

from launch.flag_files import check_not_empty, expand_flag_files, flag_values, flags_of
from launch.stopping import at_once
from modeling.step.devices import check_backend_of_context
from modeling.training_options import TrainingOptions
from pipeline.storage import Location, StoredPath, is_for_beam, location

# The flags of pretrain, then those of generate.
_PLACES = (
    *("data_dir", "output_dir", "init_checkpoint", "branch_from", "bert_config_file"),
    *("input_file", "mixture", "vocab_file", "tokenized_dir"),
)


def read_command(command: list[str]) -> tuple[list[str], flags.FlagValues]:
    """Checks that the command is `pretrain` with valid flags, before a job waits in a queue.

    The flags are parsed exactly as pretrain parses them. The files that they name are not checked,
    because they may be on other machines.

    Args:
      command: the words after `--`.

    Returns:
      The command, with each --flagfile replaced by the file's lines, and the values of its flags.

    Raises:
      flags.Error: the command is not `pretrain`, or pretrain does not accept the flags.
      UserError: their values are out of range, or do not go together, or a URL is of no store.
    """
    if not command:
        raise flags.Error("no command given: write -- and then pretrain with its flags")
    if command[0] != "pretrain":
        hint = {
            "sweep": " (slurm and sweep take the grid: --grid)",
            "generate": " (slurm and kubernetes also take generate, without a grid)",
        }.get(command[0], "")
        raise flags.Error(f"after -- must come pretrain with its flags, not {command[0]!r}{hint}")
    values = pretrain_flags()
    arguments = parse_after_dashes(command, values)
    from launch.job import PLACE_FLAGS  # noqa: PLC0415 - defines flags, as pretrain does

    for name in PLACE_FLAGS:
        if values[name].present:
            raise flags.Error(f"after --: remove --{name}, because it is set for each process")
    options = TrainingOptions(**flag_values(TrainingOptions, values))
    check_backend_of_context(options.context_parallel, str(values["backend"].value))
    places_of(values)
    return ["pretrain", *arguments], values


def parse_after_dashes(command: list[str], values: flags.FlagValues) -> list[str]:
    """Parses the flags of a command after `--`.

    Args:
      command: the verb and its flags.
      values: the verb's flags, which get their values.

    Returns:
      The words after the verb, with each --flagfile replaced by the file's lines.

    Raises:
      flags.Error: the verb does not accept the flags.
    """
    verb, *words = command
    try:
        arguments = expand_flag_files(words)
        if unparsed := values([verb, *arguments])[1:]:
            raise flags.Error(f"unexpected argument {unparsed[0]!r}; flags begin with --")
        check_not_empty(values[name] for name in values)
    except flags.Error as error:
        raise flags.Error(
            f"after --: {error} (`clozemill {verb} --help` lists its flags)"
        ) from error
    return arguments


def places_of(values: flags.FlagValues) -> list[Location]:
    """The files and directories that the flags of a command name.

    Raises:
      UserError: one is a URL, but of no store.
    """
    texts = [text for name in _PLACES if name in values for text in texts_of(values, name)]
    return [location(text.removeprefix("@")) for text in texts]


def texts_of(values: flags.FlagValues, name: str) -> list[str]:
    """What a flag names: nothing, one place, or a list of them; but not input that Beam reads."""
    value = values[name].value or []
    return [value] if isinstance(value, str) else [each for each in value if not is_for_beam(each)]


def stores_of(values: flags.FlagValues) -> list[str]:
    """The kinds of stores that hold them, such as `s3`, sorted."""
    return sorted({each.scheme for each in places_of(values) if isinstance(each, StoredPath)})


def pretrain_flags() -> flags.FlagValues:
    """Pretrain's flags with their defaults, apart from those that this process has parsed."""
    with at_once():
        # Imported late, so that the verb's own flags were parsed without pretrain's.
        from launch import pretrain  # noqa: PLC0415

    return copy_of_flags(pretrain)


def copy_of_flags(verb: ModuleType) -> flags.FlagValues:
    """A verb's flags with their present values, apart from those of this process."""
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for flag in (*flags_of(verb), *flags.FLAGS.get_flags_for_module("absl.logging")):
        values[flag.name] = copy.deepcopy(flag)
    return values
