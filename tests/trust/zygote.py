"""A process that has imported everything, and forks a child for each request.

So a verb starts in hundredths of a second, and it can be killed without harm. Requests and replies
are lines of JSON; `conftest.Zygote` writes and reads them.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))

_MOST_MEMORY = 12 << 30


def serve() -> None:
    """Answers requests until stdin ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "w")
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        outputs = [tempfile.TemporaryFile("w+") for _ in range(3)]
        process = os.fork()
        if not process:
            _answer(json.loads(line), outputs)
        _, status = os.waitpid(process, 0)
        for output in outputs:
            output.seek(0)
        stdout, stderr, value = (output.read() for output in outputs)
        code = os.waitstatus_to_exitcode(status)
        print(json.dumps([code, stdout, stderr, value]), file=replies, flush=True)


def _answer(request, outputs):
    """Calls a function in the child, with its outputs in files, and ends the child."""
    # Without a handler, the signal ends the process even while C++ computes.
    signal.alarm(request["seconds"])
    # So that a damaged size is an error, and not a machine without memory.
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, output in enumerate(outputs[:2], 1):
        os.dup2(output.fileno(), number)
    code = 70
    try:
        module, _, function = request["function"].partition(":")
        value = getattr(importlib.import_module(module), function)(*request["arguments"])
        outputs[2].write(json.dumps(value))
        outputs[2].flush()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
