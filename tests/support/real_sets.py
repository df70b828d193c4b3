"""Converts published data sets from the files of their authors into raw records and a schema, and trains on them."""

import collections
import csv
import datetime
import itertools
import json
import math
import os
import pathlib

import numpy as np
import pytest

from lengthwise import main

# The folder of the data sets, one folder for each. They are not part of this project.
FOLDER = pathlib.Path(os.environ.get("LENGTHWISE_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data"))


def needs(name):
    """Returns a mark that skips a test if the data set is missing."""
    return pytest.mark.skipif(not (FOLDER / name).is_dir(), reason=f"the data set {name} is not in {FOLDER}")


def japanese_vowels(output):
    """Writes raw.jsonl and schema.yaml of Japanese Vowels: 12 floats per step, 9 speakers, in the published split."""
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
    """Writes raw.jsonl and schema.yaml of SNIPS: words, and an intent for each record or a slot for each step.

    The vocabulary has no words that occur only once in the train split, so that the model also learns unknown words.
    """
    train = collections.Counter((FOLDER / "snips_slots/train/seq.in").read_text().split())
    size = sum(count > 1 for count in train.values())
    records, slots, intents = [], set(), set()
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        folder = FOLDER / "snips_slots" / part
        columns = [(folder / name).read_text().splitlines() for name in ("seq.in", "seq.out", "label")]
        for number, (words, tags, intent) in enumerate(zip(*columns, strict=True)):
            slots.update(tags.split())
            intents.add(intent.strip())
            label = tags.split() if per_step else intent.strip()
            records.append({"id": f"{split}-{number}", "split": split, "word": words.split(), "y": label})
    classes = json.dumps(sorted(slots if per_step else intents))
    return _write(
        output,
        records,
        f"""
id: id
steps: {{word: {{dtype: string, vocabulary: {size}}}}}
label: {{name: y, kind: {"step_class" if per_step else "class"}, classes: {classes}}}
splits: {{from: split}}
""",
    )


def helpdesk(output):
    """Writes raw.jsonl and schema.yaml of Helpdesk: an activity and four times per step; the label: the next activity.

    The protocol is that of Tax et al. 2017 (code/evaluate_next_activity_and_time.py): in the order of the file, the
    first two thirds of the cases are for training and the last third is for the test. In the test, each prefix of at
    least two events has a label if a next event exists. The end of a case is never a label.
    """
    cases = {}
    for row in csv.DictReader((FOLDER / "helpdesk/helpdesk.csv").read_text().splitlines()):
        time = datetime.datetime.fromisoformat(row["CompleteTimestamp"])
        cases.setdefault(row["CaseID"], []).append((row["ActivityID"], time))
    third = round(len(cases) / 3)
    records = []
    for number, (case, events) in enumerate(cases.items()):
        test = number >= 2 * third
        activities, times = [activity for activity, _ in events], [time for _, time in events]
        following = [*activities[1:], None]
        if test:
            following[0] = None
        before = [times[0], *times[:-1]]
        records.append(
            {
                "id": case,
                "split": "test" if test else "train",
                "activity": activities,
                # The logarithm of minutes, because most times are short and some are months.
                "elapsed": [
                    math.log1p((now - then).total_seconds() / 60) for now, then in zip(times, before, strict=True)
                ],
                "since_start": [math.log1p((now - times[0]).total_seconds() / 60) for now in times],
                "hour": [now.hour + now.minute / 60 for now in times],
                "weekday": [now.weekday() for now in times],
                "next": following,
            }
        )
    classes = json.dumps(sorted({activity for record in records for activity in record["activity"]}))
    return _write(
        output,
        records,
        f"""
id: id
steps:
  activity: {{dtype: string, vocabulary: 20}}
  elapsed: {{dtype: float32}}
  since_start: {{dtype: float32}}
  hour: {{dtype: float32}}
  weekday: {{dtype: int64, num_values: 7}}
label: {{name: next, kind: step_class, classes: {classes}}}
splits: {{from: split}}
""",
    )


# An engine with more cycles left than this counts as new, because its sensors show no difference (Heimes 2008).
EARLY_LIFE = 125


def cmapss(output):
    """Writes raw.jsonl and schema.yaml of C-MAPSS FD001: 24 floats per cycle; the label is the number of cycles left.

    Engines in the train file run until they fail. Engines in the test file are cut off earlier, and only their last
    cycle has a label: the number of cycles left that the data set gives, unchanged.
    """
    folder = FOLDER / "cmapss_fd001"
    left = [int(line) for line in (folder / "RUL_FD001.txt").read_text().split()]
    records = []
    for split in ("train", "test"):
        rows = np.loadtxt(folder / f"{split}_FD001.txt")
        for engine in np.unique(rows[:, 0]).astype(int).tolist():
            cycles = rows[rows[:, 0] == engine]
            if split == "train":
                label = [min(EARLY_LIFE, n) for n in range(len(cycles) - 1, -1, -1)]
            else:
                label = [*[None] * (len(cycles) - 1), left[engine - 1]]
            values = cycles[:, 2:].tolist()
            records.append({"id": f"{split}-{engine}", "split": split, "x": values, "left": label})
    return _write(
        output,
        records,
        """
id: id
steps: {x: {dtype: float32, shape: [24]}}
label: {name: left, kind: step_regression}
splits: {from: split}
""",
    )


def jsb_chorales(output):
    """Writes raw.jsonl and schema.yaml of JSB Chorales: 88 notes per step; the label is the notes of the next step."""
    import scipy.io

    pieces = scipy.io.loadmat(FOLDER / "jsb_chorales/JSB_Chorales.mat")
    records = []
    for split, part in (("train", "traindata"), ("validation", "validdata"), ("test", "testdata")):
        for number, piece in enumerate(pieces[part][0]):
            records.append({"id": f"{split}-{number}", "split": split, "notes": piece.tolist()})
    return _write(
        output,
        records,
        """
id: id
steps: {notes: {dtype: float32, shape: [88]}}
label: {next_of: notes, kind: multilabel}
splits: {from: split}
""",
    )


# Train records of Tiny Shakespeare, and the share of the text that they hold.
SHAKESPEARE_RECORDS, SHAKESPEARE_TRAIN = 64, 0.9


def tiny_shakespeare(output):
    """Writes raw.jsonl and schema.yaml of Tiny Shakespeare: a character per step; the label is the next character.

    The first 90 % of the text are 64 consecutive train records of nearly equal length. The rest, which the model reads
    from left to right, is one validation record.
    """
    text = (FOLDER / "tiny_shakespeare/input.txt").read_text()
    size = round(len(text) * SHAKESPEARE_TRAIN)
    edges = [number * size // SHAKESPEARE_RECORDS for number in range(SHAKESPEARE_RECORDS + 1)]
    records = [
        {"id": f"train-{number:02}", "split": "train", "char": list(text[first:stop])}
        for number, (first, stop) in enumerate(itertools.pairwise(edges))
    ]
    records.append({"id": "validation", "split": "validation", "char": list(text[size:])})
    return _write(
        output,
        records,
        """
id: id
steps: {char: {dtype: string, vocabulary: 100}}
label: {next_of: char}
splits: {from: split}
""",
    )


def measure(folder, flags=(), *, seed=0, prepare=(), name="run"):
    """Trains with these flags on raw.jsonl and schema.yaml; returns (evaluation of the test split, result)."""
    dataset, run = str(folder / "dataset"), folder / f"{name}-{seed}"
    if not (folder / "dataset").exists():
        raw, schema = str(folder / "raw.jsonl"), str(folder / "schema.yaml")
        assert main(["prepare", raw, "--schema", schema, "--output", dataset, *prepare]) == 0
    assert main(["train", dataset, "--output", str(run), "--seed", str(seed), *flags]) == 0
    assert main(["evaluate", str(run), dataset]) == 0
    evaluation = json.loads((run / "evaluation-test.json").read_text())
    return evaluation, json.loads((run / "result.json").read_text())


def _write(output, records, schema):
    output = pathlib.Path(output)
    (output / "raw.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (output / "schema.yaml").write_text(schema)
    return output
