"""What libraries write to the terminal while they start, kept away from it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_banners_hidden() -> Iterator[None]:
    """Hides what libraries write to stdout and stderr while they start, which no setting silences.

    When that fails, it is shown.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    outputs = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile("w+b") as hidden:
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
