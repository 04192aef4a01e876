"""Beam's embedded runner, with worker processes that only their parent ends."""

from functools import partial

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner, RunnerResult
from apache_beam.runners.portability.fn_api_runner.worker_handlers import WorkerHandler

from pipeline.worker_processes import ForkedWorkerHandler, WorkerProcess

_FORKED = "clozemill:env:forked_process:v1"


class EmbeddedRunner(FnApiRunner):
    """The embedded runner, whose worker processes ignore the signals that stop a program.

    A terminal sends Ctrl-C to the workers, too. Without this, each would print a traceback, and the
    runner would take the end of the first one for a crash.

    Args:
      processes: the processes to give the work to, if it is for several; without any, Beam starts
        its own.
    """

    def __init__(self, processes: list[WorkerProcess]):
        super().__init__()
        self._processes = processes

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> RunnerResult:
        """Runs a pipeline, as Beam does."""
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                if self._processes:
                    environment.urn = _FORKED
                # The command line of a worker, which Beam gives to a shell.
                environment.payload = b"trap '' HUP INT TERM; exec " + environment.payload
        handler = partial(ForkedWorkerHandler, self._processes)
        WorkerHandler.register_environment(_FORKED, bytes)(handler)
        return super().run_via_runner_api(pipeline_proto, options)
