"""Beam's embedded runner, with worker processes that only their parent ends."""

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner, RunnerResult


class EmbeddedRunner(FnApiRunner):
    """The embedded runner, whose worker processes ignore the signals that stop a program.

    A terminal sends Ctrl-C to the workers, too. Without this, each would print a traceback, and the
    runner would take the end of the first one for a crash.
    """

    def run_via_runner_api(
        self, pipeline_proto: beam_runner_api_pb2.Pipeline, options: PipelineOptions
    ) -> RunnerResult:
        """Runs a pipeline, as Beam does."""
        for environment in pipeline_proto.components.environments.values():
            if environment.urn == python_urns.SUBPROCESS_SDK:
                # The command line of a worker, which Beam gives to a shell.
                environment.payload = b"trap '' HUP INT TERM; exec " + environment.payload
        return super().run_via_runner_api(pipeline_proto, options)
