"""Hides what libraries write to the terminal while they start."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from launch.stopping import at_once


@contextmanager
def native_banners_hidden() -> Iterator[None]:
    """Hides what libraries write to stdout and stderr within the block; no setting silences them.

    If the block raises an error, the hidden text is written to stderr.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    outputs = {number: os.dup(number) for number in (1, 2)}
    # A signal must not become an exception, because a library's start may not survive that.
    with at_once(), tempfile.TemporaryFile("w+b") as hidden:
        for number in outputs:
            os.dup2(hidden.fileno(), number)
        try:
            yield
        except BaseException:
            os.dup2(outputs[2], 2)
            hidden.seek(0)
            shutil.copyfileobj(hidden, sys.stderr.buffer)
            raise
        finally:
            for number, output in outputs.items():
                os.dup2(output, number)
                os.close(output)
