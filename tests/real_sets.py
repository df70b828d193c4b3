"""Turns published data sets, as their authors' files have them, into raw records and a schema."""

import collections
import json
import os
import pathlib

import pytest

# Where the sets lie, one folder each; they are no part of this project.
FOLDER = pathlib.Path(os.environ.get("LENGTHWISE_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))


def needs(name):
    """Skips a test where the set is not there."""
    return pytest.mark.skipif(not (FOLDER / name).is_dir(), reason=f"the data set {name} is not in {FOLDER}")


def japanese_vowels(output):
    """raw.jsonl and schema.yaml of Japanese Vowels: 12 floats a step, 9 speakers, in the split as published."""
    records = []
    for split, part in (("train", "TRAIN"), ("test", "TEST")):
        lines = (FOLDER / f"japanese_vowels/JapaneseVowels_{part}.ts").read_text().splitlines()
        data = lines[lines.index("@data") + 1 :]
        for number, line in enumerate(data):
            *channels, speaker = line.split(":")
            steps = zip(*([float(value) for value in channel.split(",")] for channel in channels), strict=True)
            records.append({"id": f"{split}-{number}", "split": split, "x": [list(s) for s in steps], "y": speaker})
    return _write(
        output,
        records,
        """
id: id
steps: {x: {dtype: float32, shape: [12]}}
label: {name: y, kind: class, classes: ["1", "2", "3", "4", "5", "6", "7", "8", "9"]}
splits: {from: split}
""",
    )


def snips(output, *, per_step):
    """raw.jsonl and schema.yaml of SNIPS: words, and an intent for each record or a slot for each step.

    A word is its number by frequency in the train split; one that occurs there once, or never, is 0.
    """
    train = (FOLDER / "snips_slots/train/seq.in").read_text().split()
    frequent = [word for word, count in sorted(collections.Counter(train).items(), key=lambda w: -w[1]) if count > 1]
    number_of = {word: number for number, word in enumerate(frequent, 1)}
    records, slots, intents = [], set(), set()
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        folder = FOLDER / "snips_slots" / part
        columns = [(folder / name).read_text().splitlines() for name in ("seq.in", "seq.out", "label")]
        for number, (words, tags, intent) in enumerate(zip(*columns, strict=True)):
            slots.update(tags.split())
            intents.add(intent.strip())
            label = tags.split() if per_step else intent.strip()
            numbers = [number_of.get(word, 0) for word in words.split()]
            records.append({"id": f"{split}-{number}", "split": split, "word": numbers, "y": label})
    classes = json.dumps(sorted(slots if per_step else intents))
    return _write(
        output,
        records,
        f"""
id: id
steps: {{word: {{dtype: int64, num_values: {len(frequent) + 1}}}}}
label: {{name: y, kind: {"step_class" if per_step else "class"}, classes: {classes}}}
splits: {{from: split}}
""",
    )


def _write(output, records, schema):
    output = pathlib.Path(output)
    (output / "raw.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (output / "schema.yaml").write_text(schema)
    return output
