"""Calls functions in worker processes from a Beam step."""

import collections
import functools
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from pipeline.beam import workers


class CallInWorkers(beam.DoFn):
    """Calls a function for an element, in a worker process where there are any, several of a bundle at a time."""

    def start_bundle(self) -> None:
        self._pending: collections.deque[Any] = collections.deque()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
        """The outputs for this result, or for others that came meanwhile."""
        pool = workers.current()
        if pool is None:
            yield from self.outputs(function(*arguments, **named))
            return
        self._pending.append(pool.submit(functools.partial(function, **named), *arguments))
        # One waits while the others run: enough to be hardly ever idle.
        while len(self._pending) > pool.count + 1:
            yield from self.outputs(self._pending.popleft().result())

    def outputs(self, result: Any) -> Iterator[Any]:
        raise NotImplementedError

    def finish_bundle(self) -> Iterator[Any]:
        while self._pending:
            yield from map(in_global_window, self.outputs(self._pending.popleft().result()))


def in_global_window(output: Any) -> Any:
    """What `finish_bundle` gives of an output."""
    if isinstance(output, beam.pvalue.TaggedOutput):
        return beam.pvalue.TaggedOutput(output.tag, GlobalWindows.windowed_value(output.value))
    return GlobalWindows.windowed_value(output)
