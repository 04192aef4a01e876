"""The command after `--` for the verbs that write jobs: pretrain, or generate on Spark."""

from collections.abc import Iterator
from contextlib import contextmanager

from absl import flags

from launch.flag_files import flag_values
from launch.pretrain_command import copy_of_flags, parse_after_dashes, places_of, read_command

_NOT_IN_JOBS = {
    "spark_master": "the job's processes are a cluster of their own",
    "overwrite": "a job that starts again would lose what is finished",
}


def read_job_command(command: list[str]) -> tuple[list[str], flags.FlagValues]:
    """Checks that the command is `pretrain` or `generate` with valid flags, as they say."""
    return (read_generate_command if command[:1] == ["generate"] else read_command)(command)


def program_of(verb: str) -> list[str]:
    """The words after which Python runs a command of this verb as one process of its job."""
    return ["-m", "launch.spark_process" if verb == "generate" else "launch"]


def read_generate_command(command: list[str]) -> tuple[list[str], flags.FlagValues]:
    """Checks that the command is `generate` with valid flags, before a job waits in a queue.

    The files that they name are not checked, because they may be on other machines.

    Args:
      command: the words after `--`, of which the first is `generate`.

    Returns:
      The command, with each --flagfile replaced by the file's lines, and the values of its flags.

    Raises:
      flags.Error: generate does not accept the flags, or not in a job.
      UserError: their values are out of range, or do not go together.
    """
    with _no_flags():
        # Imported here, because it defines flags whose names the job's verb may have, too.
        from launch import generate  # noqa: PLC0415
        from pipeline.options import InstanceOptions  # noqa: PLC0415

        values = copy_of_flags(generate)
    arguments = parse_after_dashes(command, values)
    for name, reason in _NOT_IN_JOBS.items():
        if values[name].value:
            raise flags.Error(f"after --: remove --{name}, because {reason}")
    InstanceOptions(**flag_values(InstanceOptions, values))
    places_of(values)
    return ["generate", *arguments], values


@contextmanager
def _no_flags() -> Iterator[None]:
    """Within the block, no flag is defined yet."""
    defined = vars(flags.FLAGS)
    before = dict(defined)
    defined.update(vars(flags.FlagValues()))
    try:
        yield
    finally:
        defined.clear()
        defined.update(before)
