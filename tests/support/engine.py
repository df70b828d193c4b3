"""A runner in this process that Lengthwise takes for an engine: it knows no user errors, and goes on after its driver.

`--runner engine.EngineRunner` chooses it.
"""

import threading

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState

RUNNER = "engine.EngineRunner"
# Called in the driver while it waits, with the result of the job.
while_waiting = None


class Gate:
    """Lets threads wait until another one opens it."""

    def __init__(self):
        self._event = threading.Event()

    def open(self):
        self._event.set()

    def wait(self):
        assert self._event.wait(60)


class EngineRunner(PipelineRunner):
    """Runs a job in a thread. An error comes as a traceback in text, as portable runners give it."""

    def run_pipeline(self, pipeline, options):
        result = EngineResult()
        # A local runner, which looks at its own options only.
        plain = PipelineOptions(
            [], direct_runner_bundle_repeat=options.get_all_options()["direct_runner_bundle_repeat"]
        )
        result.start(lambda: FnApiRunner().run_pipeline(pipeline, plain).wait_until_finish())
        return result


class EngineResult(PipelineResult):
    """A job. Attributes: `attempts`, how often it was started, and `cancelled`, whether the driver asked for that."""

    def __init__(self):
        super().__init__(PipelineState.RUNNING)
        self.error, self.cancelled, self.attempts = None, False, 0

    def start(self, run):
        self._thread = threading.Thread(target=self._run, args=(run,))
        self._thread.start()

    def _run(self, run):
        # As an engine does: a failed job is started again, whatever the reason.
        for self.attempts in (1, 2):  # noqa: B007
            try:
                run()
            except BaseException as error:
                self.error = error
            else:
                self.error = None
                return

    def wait_until_finish(self, duration=None):
        if while_waiting is not None:
            while_waiting(self)
        self.join()
        if self.error is not None:
            raise RuntimeError(f"Pipeline job failed in state FAILED: java.lang.RuntimeException: {self.error!r}")
        return PipelineState.DONE

    def join(self):
        self._thread.join()

    def cancel(self):
        self.cancelled = True  # and goes on
