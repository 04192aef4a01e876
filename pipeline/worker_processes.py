"""Worker processes for Beam's embedded runner, which are forked before there is any work.

Beam would start each of them as a new Python, which takes a second to import everything again.
"""

import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import ExtendedProvisionInfo
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    GrpcServer,
    GrpcWorkerHandler,
    StateServicer,
)
from apache_beam.runners.worker import sdk_worker_main
from apache_beam.runners.worker.worker_id_interceptor import WorkerIdInterceptor
from google.protobuf import text_format

from pipeline.runner import BEAMS_MESSAGE, is_embedded

_STOPPING_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class WorkerProcess:
    """A process that waits for its environment variables, then works until Beam ends it.

    It ignores the signals that stop a program, as a terminal sends Ctrl-C to all processes: only
    its parent ends it, or its parent's death.

    Args:
      others: the other processes that this one has forked and not yet given work.
    """

    def __init__(self, others: "list[WorkerProcess]"):
        environment, self._environment = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING_SIGNALS)
        self._pid = os.fork()
        if not self._pid:
            with suppress(BaseException):
                for each in (self, *others):
                    os.close(each._environment)  # the parent's death must close the last copy
                _work(environment)
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(environment)

    def start(self, environment: dict[str, str]) -> None:
        """Makes it work with these environment variables."""
        with os.fdopen(self._environment, "w") as pipe:
            json.dump(environment, pipe)

    def end(self) -> None:
        """Ends it, if it has no work yet."""
        os.close(self._environment)
        self.wait()

    def wait(self) -> int:
        """Waits for its end and returns its exit code; that of a signal is negative."""
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)


@contextmanager
def worker_processes(beam_options: PipelineOptions) -> Iterator[list[WorkerProcess]]:
    """Yields the processes that the embedded runner needs; none if it needs none.

    They must be forked before there is a thread of gRPC, of Arrow or of an object store.
    """
    direct = beam_options.view_as(DirectOptions)
    is_needed = is_embedded(beam_options) and direct.direct_running_mode == "multi_processing"
    processes: list[WorkerProcess] = []
    if is_needed:
        for _ in range(direct.direct_num_workers or multiprocessing.cpu_count()):
            processes.append(WorkerProcess(processes))
    try:
        yield processes
    finally:
        for process in processes:
            process.end()


class ForkedWorkerHandler(GrpcWorkerHandler):
    """What Beam needs of a worker: to start it, and to wait until it has stopped.

    Args:
      processes: those that have no work yet; one is taken from them.
    """

    def __init__(
        self,
        processes: list[WorkerProcess],
        _payload: bytes,
        state: StateServicer,
        provision_info: ExtendedProvisionInfo,
        grpc_server: GrpcServer,
    ):
        super().__init__(state, provision_info, grpc_server)
        self._process = processes.pop()
        self._thread = threading.Thread(target=self._wait)

    def start_worker(self) -> None:
        """Gives the process its work."""
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        self._process.start(
            {
                **os.environ,
                "WORKER_ID": self.worker_id,
                "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
            }
        )
        self._thread.start()

    def stop_worker(self) -> None:
        """Waits for the end of the process."""
        self._thread.join()

    def _wait(self) -> None:
        if code := self._process.wait():
            raise RuntimeError(f"{BEAMS_MESSAGE} with return code {code}")


def _work(environment: int) -> None:
    for number in _STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING_SIGNALS)
    with os.fdopen(environment) as pipe:
        content = pipe.read()
    if content:
        os.environ.update(json.loads(content))
        WorkerIdInterceptor._worker_id = os.environ["WORKER_ID"]  # read when it was imported
        _, harness, _ = sdk_worker_main.create_harness(os.environ)
        logging.getLogger("apache_beam").setLevel(logging.NOTSET)  # the options' level counts
        harness.run()
    os._exit(0)
