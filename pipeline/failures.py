"""What made a pipeline fail, told so that a user can mend it.

A worker's exception arrives with additions, or as text with a traceback. What a runner itself cannot do,
such as to start a job server or a worker, Beam raises as exceptions of any type.
"""

import re
import traceback
from pickle import PicklingError

from pipeline.errors import UserError
from pipeline.runner import EMBEDDED_RUNNER

_UP_TO_BEAMS_ADDITION = r"(.*?)(?: \[while running|$)"
_TRACEBACK = "Traceback (most recent call last):"
# Our steps in a traceback, a worker's or this process's, but not that which waits for the runner.
_OUR_CODE = re.compile(r'pipeline[/\\]graph\.py", line \d+, in (?!run_pipeline$)', re.MULTILINE)
# What a mistake in a program raises, and trouble with its surroundings does not.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NameError,
    PicklingError,
    TypeError,
)
# What is to be done about what Beam says, where that does not say it.
_ADVICE = {
    "beam:env:process": "this job service starts no processes; use --environment_type=EXTERNAL",
    "'docker'": "docker must run where the workers are to be, and --sdk_container_image name an image "
    "that it finds there; or use --environment_type=EXTERNAL",
    "JSONDecodeError": '--environment_config of PROCESS must be JSON: {"command": "…"}',
    "FutureTimeoutError": "what answers at --job_endpoint is no job service",
    "failed to connect": "see that what --job_endpoint and --environment_config name is running",
    "Channel closed": "a worker died, perhaps for lack of memory: the same command goes on with what is "
    "finished",
    "java'": "install Java, or say where it is with --job_server_java_launcher",
    "Service failed to start": "the job server ended at once, and the lines above say why",
    "job server jar": "or name it with --flink_job_server_jar or --spark_job_server_jar",
    "prism binary": "download it where there is network and name it with --prism_location",
    "No module named 'pipeline'": "the workers must have this version of Clozemill installed",
}


def as_a_user_can_mend_it(error: Exception, runner: str) -> Exception:
    """The error for the user when one can do something about it; else the exception itself.

    Args:
      error: what Beam raised.
      runner: the value of --runner.
    """
    text = f"{type(error).__name__}: {error}"
    if match := re.search(rf"UserError: {_UP_TO_BEAMS_ADDITION}", text, re.MULTILINE):
        return UserError(match[1])
    if runner != EMBEDDED_RUNNER and not _is_ours(error):
        reason = _in_one_line(text)
        advice = [_ADVICE[part] for part in _ADVICE if part in reason]
        return UserError("; ".join([f"{runner} failed: {reason}", *advice[:1]]))
    if match := re.search(rf"Error: (?=\[Errno \d+\]){_UP_TO_BEAMS_ADDITION}", text, re.MULTILINE):
        where = "" if runner == EMBEDDED_RUNNER else "; all workers must reach the same directories"
        return OSError(f"{match[1]}{where}; the same command goes on with what is finished")
    return error


def _is_ours(error: Exception) -> bool:
    """Whether code of ours failed, in a worker or in this process, rather than the runner."""
    return isinstance(error, _MISTAKES) or bool(
        _OUR_CODE.search("".join(traceback.format_exception(error)))
    )


def _in_one_line(text: str) -> str:
    """The last exception in the text, without its traceback; of one of gRPC, the details."""
    if details := re.search(r'details = "(.*)"', text):
        return details[1]
    lines = text.rpartition(_TRACEBACK)[2].splitlines()
    return " ".join(" ".join(line for line in lines if not line.startswith("  ")).split())
