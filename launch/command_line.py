"""Finds the verb that a command line names, parses its flags, and turns errors into exit codes.

Exit codes: 0 for success, 1 for a failure, 2 for wrong flags; one line says why.
"""

import gc
import importlib
import io
import os
import sys
from logging import Formatter
from types import ModuleType

from absl import flags, logging

from launch.banners import native_banners_hidden
from launch.flag_files import (
    check_not_empty,
    check_paths,
    describe_flags,
    expand_flag_files,
    flags_of,
)
from launch.messages import print_error
from pipeline.errors import UserError, reason_of

VERBS = {
    "vocab": "build a WordPiece vocabulary from raw text",
    "generate": "build a data set of TFRecord shards from raw text",
    "adopt": "make a data set of TFRecords that other software wrote",
    "inspect": "show instances of a data set as text, with their masks",
    "verify": "check a data set's files against its manifest",
    "pretrain": "train a BERT on a data set, or resume an interrupted run",
    "sweep": "run pretrain at each point of a grid of flags, and compare the results",
    "launch": "run pretrain as several processes on this machine",
    "slurm": "write a batch script that runs pretrain or generate on the nodes of a Slurm cluster",
    "kubernetes": "write manifests that run pretrain or generate on a Kubernetes cluster",
    "evaluate": "compute a run's losses and accuracies on the eval shards",
    "export": "write a trained BERT in a format that another framework opens",
}
USAGE = """usage: clozemill VERB --flag=value …
       clozemill sweep|launch|slurm|kubernetes --flag=value … -- pretrain --flag=value …

{verbs}

`clozemill VERB --help` lists a verb's flags.
`--flagfile=FILE` reads flags from a file, one per line.
"""


def run(arguments: list[str]) -> int:
    """Runs a verb with its flags and returns the exit code."""
    _configure()
    verb = arguments[0] if arguments else ""
    if verb in ("help", "--help", "-h"):
        print(usage())
        return 0
    if verb not in VERBS:
        print_error("clozemill", f"unknown verb {verb!r}" if verb else "no verb given")
        print(f"\n{usage()}", file=sys.stderr)
        return 2
    # Imports leave many objects, but hardly any garbage: do not search them, now or later.
    gc.disable()
    with native_banners_hidden():
        module = importlib.import_module(f"launch.{verb}")
    gc.freeze()
    gc.enable()
    own, command = _split_command(arguments[1:], module)
    try:
        if {"--help", "-help", "-h"} & set(own):
            print(f"clozemill {verb}: {module.__doc__}\n{describe_flags(module)}", flush=True)
            return 0
        module.main(*_parse_flags(verb, own, module), *command)
    except flags.Error as error:
        print_error(f"clozemill {verb}", "; ".join(str(error).splitlines()))
        print(f"`clozemill {verb} --help` lists the flags.", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except UserError as error:
        print_error(f"clozemill {verb}", str(error))
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename and error.strerror else ""
        print_error(f"clozemill {verb}", f"{place}{reason_of(error)}")
        return 1
    except RecursionError:
        print_error(f"clozemill {verb}", "an input is nested too deeply")
        return 1
    except MemoryError as error:
        print_error(f"clozemill {verb}", f"there is too little memory: {error}")
        return 1
    return 0


def usage() -> str:
    """Returns the usage text, with one line per verb."""
    return USAGE.format(verbs="\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items()))


def _split_command(arguments: list[str], module: ModuleType) -> tuple[list[str], list[list[str]]]:
    """Separates the verb's own flags from the command after `--`, if the verb takes one."""
    if not getattr(module, "TAKES_COMMAND", False):
        return arguments, []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], [arguments[end + 1 :]]


def _parse_flags(verb: str, arguments: list[str], module: ModuleType) -> list[list[str]]:
    """Parses the flags; returns the unknown ones for a verb that passes them on."""
    passes_on = getattr(module, "PASSES_ON_UNKNOWN_FLAGS", False)
    flags.FLAGS.set_gnu_getopt(True)
    try:
        unparsed = flags.FLAGS([verb, *expand_flag_files(arguments)], known_only=passes_on)[1:]
    except ValueError as error:  # of a validator, about a number with thousands of digits
        raise flags.Error(str(error)) from error
    check_not_empty(flags_of(module))
    check_paths(module)
    if passes_on:
        return [unparsed]
    if unparsed:
        raise flags.Error(f"unexpected argument {unparsed[0]!r}; flags begin with --")
    return []


def _configure() -> None:
    # The default until a verb's --backend is read; the user's own Keras settings do not count.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # A path or a text may hold what stdout's encoding lacks; stderr escapes that already.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # Messages of TensorFlow's libraries below this level do not help a user.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
