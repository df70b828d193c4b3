"""The first step of a pipeline that writes a dataset: names what this run of the pipeline writes."""

from collections.abc import Callable
from typing import Any

import apache_beam as beam

from pipeline.writing.job import DatasetJob


def begin_run(pipeline: Any, begin: Callable[[], DatasetJob]) -> tuple[Any, Any]:
    """Returns a DatasetJob and its JobFiles as arguments for the steps of a pipeline: side inputs of one value.

    One pipeline may run several times, as a Dataflow template does. Each run needs a generation of its own, so that it
    never writes to the files of another, and must look at the dataset as it is then. So this is done when the pipeline
    runs, not when it is built. A side input is not available in `start_bundle`: begin a buffer with the first element.

    Args:
        begin: Returns the job. It is called when the pipeline runs.
    """
    jobs = (
        pipeline
        | "OnceForJob" >> beam.Create([None], reshuffle=False)
        | "BeginJob" >> beam.Map(lambda _: begin())
        # Fixes the job: `begin` returns another one when it is called again, and all steps must get the same.
        | "FixJob" >> beam.Reshuffle()
    )
    files = jobs | "JobFiles" >> beam.Map(lambda job: job.files)
    return beam.pvalue.AsSingleton(jobs), beam.pvalue.AsSingleton(files)
