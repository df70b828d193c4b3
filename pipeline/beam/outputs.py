"""Forms of the outputs of a step that Beam asks for."""

from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows


def copy_output(output: Any, label: str) -> Any:
    """Returns a copy of one of several outputs of a step, for use as a side input.

    Beam's older direct runner (BundleBasedDirectRunner) takes one output of a step for another when the output itself
    is the side input.
    """
    return output | label >> beam.Map(lambda element: element)


def in_global_window(output: Any) -> Any:
    """Returns an output in the form in which `finish_bundle` must yield it."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
    return GlobalWindows.windowed_value(output)
