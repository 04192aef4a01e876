"""What libraries write to the terminal while they are imported, kept away from it."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_banners_hidden() -> Iterator[None]:
    """Hides what libraries write to stderr while they are imported, which no setting silences.

    When the import fails, it is shown.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile("w+b") as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(stderr, 2)
            hidden.seek(0)
            shutil.copyfileobj(hidden, sys.stderr.buffer)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
