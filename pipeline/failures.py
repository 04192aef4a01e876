"""Why a pipeline failed, as an error that a user can fix.

A worker's exception arrives with additions of Beam, or only as text with a traceback. A runner that
fails itself, because it cannot start a job server or a worker for example, makes Beam raise
exceptions of any type.
"""

import errno
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import PicklingError

from pipeline.errors import UserError

EMBEDDED_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"

_UP_TO_BEAMS_ADDITION = r"(.*?)(?: \[while running|$)"
_MOST_CHARACTERS = 500  # a runner in Go or Java adds its stack
_TRACEBACK = "Traceback (most recent call last):"
# What the system says of a file that is on another machine, or on none.
_NOT_REACHED = (
    *(errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.EHOSTDOWN),
)
# Exceptions that a mistake in a program raises, and that a fault of its surroundings does not.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    PicklingError,
    TypeError,
)
# What a user can do about a message of Beam that contains what a pattern matches.
_ADVICE = {
    "beam:env:process": "this job service starts no processes; use --environment_type=EXTERNAL",
    "'docker'": "docker must run on the workers' machines, and --sdk_container_image must name an "
    "image that it finds there; or use --environment_type=EXTERNAL",
    "external_service_address|process_command": "give it as --environment_config",
    "FutureTimeoutError": "the process that answers at --job_endpoint is not a job service",
    "failed to connect": "check that the services at --job_endpoint and --environment_config run",
    "Channel closed|SDK worker disconnected": "a worker died, perhaps because memory ran out: run "
    "the same command again to resume",
    "Stream removed|Socket closed|Connection reset|GOAWAY": "the job service ended, perhaps "
    "because no pool answered at --environment_config; its log says why: start it again, then run "
    "the same command to resume",
    "java'": "install Java, or name its program with --job_server_java_launcher",
    "Service failed to start": "the job server ended at once; the lines above say why",
    "job server jar": "or name it with --flink_job_server_jar or --spark_job_server_jar",
    "prism binary": "download it on a machine with network and name it with --prism_location",
    "No module named 'pipeline'": "install this version of Clozemill on the workers",
}


class StepError(Exception):
    """A step of the pipeline failed: our code, not the runner."""


@contextmanager
def step_errors_marked() -> Iterator[None]:
    """Around the work of a step: an exception becomes a `StepError`, whose name survives as text.

    A `UserError` stays as it is, because its name says as much.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise StepError(str(error) if isinstance(error, OSError) else repr(error)) from error


def as_user_error(error: Exception, runner: str) -> Exception:
    """The error to show to a user who can fix its cause; otherwise the exception itself.

    Args:
      error: the exception that Beam raised.
      runner: the value of --runner.
    """
    text = f"{type(error).__name__}: {error}"
    elsewhere = runner != EMBEDDED_RUNNER and any(os.strerror(n) in text for n in _NOT_REACHED)
    where = "; all workers must reach this directory, under the same path" if elsewhere else ""
    if match := re.search(rf"UserError: {_UP_TO_BEAMS_ADDITION}", text, re.MULTILINE):
        return UserError(f"{match[1]}{where}")
    is_ours = isinstance(error, (StepError, *_MISTAKES)) or StepError.__name__ in text
    if runner != EMBEDDED_RUNNER and not is_ours:
        reason = _in_one_line(text)
        advice = [_ADVICE[part] for part in _ADVICE if re.search(part, reason)]
        return UserError("; ".join([f"{runner} failed: {reason}", *advice[:1]]))
    if match := re.search(rf"Error: (?=\[Errno \d+\]){_UP_TO_BEAMS_ADDITION}", text, re.MULTILINE):
        return OSError(f"{match[1]}{where}; run the same command again to resume")
    return error


def _in_one_line(text: str) -> str:
    """The last exception in the text, without its traceback; for gRPC's exceptions, the details."""
    if details := re.search(r'details = "(.*)"', text):
        return details[1]
    lines = text.rpartition(_TRACEBACK)[2].splitlines()
    reason = " ".join(line for line in lines if not line.startswith("  "))
    return textwrap.shorten(reason, _MOST_CHARACTERS, placeholder=" …")
