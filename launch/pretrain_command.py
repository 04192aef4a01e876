"""The command behind `--`, which the verbs that start a job of several processes are given."""

import copy

from absl import flags

from launch.flag_files import flags_of


def read_command(command: list[str]) -> tuple[list[str], flags.FlagValues]:
    """Checks that the command is `pretrain` with flags that it has.

    The flags are parsed as pretrain itself will parse them, before a job waits in a queue; files
    that they name are not looked for, which may be on other machines.

    Args:
      command: the words behind `--`.

    Returns:
      The command with the lines of flag files in place of --flagfile, and the values of its flags.

    Raises:
      flags.Error: it is another command, or pretrain would not take the flags.
    """
    if not command:
        raise flags.Error("there is no command: behind -- comes pretrain with its flags")
    if command[0] != "pretrain":
        raise flags.Error(f"behind -- comes pretrain with its flags, not {command[0]!r}")
    from launch import job, pretrain  # noqa: PLC0415 - the verb's own flags are parsed without theirs

    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    for flag in (*flags_of(pretrain), *flags.FLAGS.get_flags_for_module("absl.logging")):
        values[flag.name] = copy.deepcopy(flag)
    try:
        arguments = values.read_flags_from_files(command[1:])
        if unparsed := values(["pretrain", *arguments])[1:]:
            raise flags.Error(f"unexpected argument {unparsed[0]!r}; flags begin with --")
    except flags.Error as error:
        raise flags.Error(
            f"behind --: {error} (`clozemill pretrain --help` lists its flags)"
        ) from error
    for name in job.PLACE_FLAGS:
        if values[name].present:
            raise flags.Error(f"behind --: leave --{name} out, every process gets its own")
    return ["pretrain", *arguments], values
