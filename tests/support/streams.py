"""Runs streams over a folder in this process: each round at an exact moment, without waiting."""

import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pipeline.beam.prepare import PrepareOptions
from pipeline.streaming.rounds import StreamOptions, stream
from pipeline.streaming.stop import StopSignals

SCHEMA = """\
id: id
steps:
  x: {dtype: float32, missing: {fill: mean}}
  word: {dtype: string, vocabulary: 5}
label: {name: y, kind: class, classes: [a, b]}
"""
WITHOUT_ID = SCHEMA.replace("id: id\n", "")


def record(number: int, **fields: Any) -> dict[str, Any]:
    words = [f"w{(number * n) % 11}" for n in range(number % 5 + 1)]
    x = [None if number % 9 == 0 else n * 1e20 / 3 + number for n in range(number % 5 + 1)]
    return {"id": f"id-{number}", "x": x, "word": words, "y": "ab"[number % 2]} | fields


def values(numbers: Iterable[int], **fields: Any) -> list[str]:
    return [json.dumps(record(number, **fields)) for number in numbers]


def lines(numbers: Iterable[int], **fields: Any) -> str:
    return "".join(f"{value}\n" for value in values(numbers, **fields))


class Place:
    """A folder with a schema, raw files in `logs`, and the dataset that streams make from them."""

    def __init__(self, folder: pathlib.Path, schema: str = SCHEMA) -> None:
        self.folder, self.logs, self.dataset = folder, folder / "logs", folder / "dataset"
        self.logs.mkdir()
        (folder / "schema.yaml").write_text(schema)

    def append(self, name: str, text: str | bytes) -> pathlib.Path:
        with open(self.logs / name, "ab") as file:
            file.write(text.encode() if isinstance(text, str) else text)
        return self.logs / name

    def options(self, *, streaming: dict[str, Any] | None = None, **prepare: Any) -> StreamOptions:
        prepare = {"raw": (str(self.logs),), "output": str(self.dataset), "max_rejected": 1.0} | prepare
        shared = PrepareOptions(schema=str(self.folder / "schema.yaml"), **prepare)
        return StreamOptions(shared, **{"settle": 0.0, "refresh": 0.0, **(streaming or {})})

    def once(self, **options: Any) -> Any:
        """Runs one round, in a stream of its own, and returns the manifest."""
        streaming = {name: options.pop(name) for name in list(options) if name in StreamOptions.__annotations__}
        return stream(self.options(streaming=streaming | {"once": True}, **options))

    def follow(self, *steps: Callable[[], Any], **options: Any) -> Any:
        """Runs one stream: a round, then each step and a round after it. Returns the manifest."""
        left = list(steps)

        def wait(stop: StopSignals, seconds: float) -> None:
            if left:
                left.pop(0)()
            else:
                stop.requested = True

        streaming = {name: options.pop(name) for name in list(options) if name in StreamOptions.__annotations__}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopSignals, "wait", wait)
            manifest = stream(self.options(streaming=streaming, **options))
        assert not left, "the stream ended before its last step"
        return manifest
