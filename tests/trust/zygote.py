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
import traceback
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))

CODE_OF_TRACEBACK = 70
MOST_MEMORY = 12 << 30


def serve() -> None:
    """Answers requests until stdin ends."""
    for name in sys.argv[1:]:
        importlib.import_module(name)
    replies = os.fdopen(os.dup(1), "w")
    print(json.dumps("ready"), file=replies, flush=True)
    for line in sys.stdin:
        with contextlib.ExitStack() as stack:
            outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
            process = os.fork()
            if not process:
                _answer_in_child(json.loads(line), outputs)
            _, status = os.waitpid(process, 0)
            for output in outputs:
                output.seek(0)
            reply = [os.waitstatus_to_exitcode(status), *(output.read() for output in outputs)]
        print(json.dumps(reply), file=replies, flush=True)


def _answer_in_child(request, outputs):
    """Calls a function in the child, with its outputs in files, and ends the child."""
    # Without a handler, the signal ends the process even while C++ computes.
    signal.alarm(request["seconds"])
    # So that a damaged size is an error, and not a machine without memory.
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, output in enumerate(outputs[:2], 1):
        os.dup2(output.fileno(), number)
    code = CODE_OF_TRACEBACK
    try:
        module, _, function = request["function"].partition(":")
        value = getattr(importlib.import_module(module), function)(*request["arguments"])
        outputs[2].write(json.dumps(value))
        outputs[2].flush()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
