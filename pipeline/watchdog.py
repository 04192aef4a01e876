"""Ends a run when one of its worker processes dies, for which Beam itself would wait for ever."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from absl import logging

# What Beam raises, in a thread of its own, about a worker of `multi_processing`.
_BEAMS_MESSAGE = "Worker subprocess exited"


@contextmanager
def dead_worker_ends_process() -> Iterator[None]:
    """Within, the death of a worker process ends this process with exit code 1 and a message.

    An exception could not get out: Beam's threads wait for the worker's answer whatever happens.
    """
    previous_hook = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if isinstance(arguments.exc_value, grpc.RpcError):
            return  # the broken connection to the worker, which says less than what follows
        if _BEAMS_MESSAGE not in str(arguments.exc_value):
            previous_hook(arguments)
            return
        logging.error(
            "a worker process died (%s), perhaps for lack of memory: the same command goes on with "
            "what is finished; with fewer --direct_num_workers it needs less memory",
            arguments.exc_value,
        )
        logging.flush()
        os._exit(1)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = previous_hook
