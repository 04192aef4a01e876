"""The command `clozemill VERB --flag=value …`; `python -m launch` is the same.

Exit codes: 0 done, 1 failed with one line that says why, 2 wrong flags.
"""

import importlib
import os
import sys
from logging import Formatter
from types import ModuleType

from absl import flags, logging

from launch.banners import native_banners_hidden
from launch.flag_files import describe_flags
from pipeline.errors import UserError

VERBS = {
    "vocab": "raw text to a WordPiece vocabulary",
    "generate": "raw text to a data set of TFRecord shards",
    "inspect": "instances of a data set as text, masks shown",
    "verify": "whether a data set's files are still what its manifest says",
    "pretrain": "a data set to a trained BERT; goes on where it stopped",
    "launch": "pretrain by several processes on this machine",
    "slurm": "pretrain by several nodes of a Slurm cluster: writes the batch script",
    "kubernetes": "pretrain by several nodes of a Kubernetes cluster: writes the manifests",
    "evaluate": "losses and accuracies of a run on the eval shards",
    "export": "a trained BERT to a directory that another framework opens",
}
USAGE = """usage: clozemill VERB --flag=value …
       clozemill launch|slurm|kubernetes --flag=value … -- pretrain --flag=value …

{verbs}

`clozemill VERB --help` lists a verb's flags. `--flagfile=FILE` reads flags from a file, one a line.
"""


def main() -> None:
    """Runs the verb that the command line names and exits."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs a verb with its flags and returns the exit code."""
    verb = arguments[0] if arguments else ""
    if verb in ("help", "--help", "-h"):
        print(usage())
        return 0
    if verb not in VERBS:
        problem = f"unknown verb {verb!r}" if verb else "no verb"
        print(f"clozemill: {problem}\n\n{usage()}", file=sys.stderr)
        return 2
    _configure()
    with native_banners_hidden():
        module = importlib.import_module(f"launch.{verb}")
    own, command = _split_command(arguments[1:], module)
    try:
        if {"--help", "-help", "-h"} & set(own):
            print(f"clozemill {verb}: {module.__doc__}\n{describe_flags(module)}", flush=True)
            return 0
        module.main(*_parse_flags(verb, own, module), *command)
    except flags.Error as error:
        message = f"clozemill {verb}: {error}\n`clozemill {verb} --help` lists the flags."
        print(message, file=sys.stderr)
        return 2
    except UserError as error:
        print(f"clozemill {verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of the output, `head` for example, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"clozemill {verb}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"clozemill {verb}: interrupted", file=sys.stderr)
        return 130
    return 0


def usage() -> str:
    """What the command can do, a line a verb."""
    return USAGE.format(verbs="\n".join(f"  {verb:<10} {what}" for verb, what in VERBS.items()))


def _split_command(arguments: list[str], module: ModuleType) -> tuple[list[str], list[list[str]]]:
    """The verb's own flags; for a verb that takes a command behind `--`, that command as well."""
    if not getattr(module, "TAKES_COMMAND", False):
        return arguments, []
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], [arguments[end + 1 :]]


def _parse_flags(verb: str, arguments: list[str], module: ModuleType) -> list[list[str]]:
    """Parses the flags; a verb that has a use for flags it does not know gets them as a list."""
    passes_on = getattr(module, "PASSES_ON_UNKNOWN_FLAGS", False)
    flags.FLAGS.set_gnu_getopt(True)
    unparsed = flags.FLAGS([verb, *arguments], known_only=passes_on)[1:]
    if passes_on:
        return [unparsed]
    if unparsed:
        raise flags.Error(f"unexpected argument {unparsed[0]!r}; flags begin with --")
    return []


def _configure() -> None:
    # Unless a verb's --backend says otherwise, whatever the user's own settings for Keras are.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    # What TensorFlow's libraries print at lower levels is of no use to a user.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))


if __name__ == "__main__":
    main()
