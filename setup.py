"""Builds the distribution `lengthwise`: the command, `pipeline` and `trainer`."""

import pathlib
import re

from setuptools import setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "lengthwise.py").read_text(), re.MULTILINE)
if VERSION is None:
    raise RuntimeError("lengthwise.py does not define __version__.")

# A Beam worker gets the base install by --setup_file, so it holds what `pipeline` needs beside Beam itself.
BASE = [
    "numpy>=1.26",
    "pyarrow>=15",
    # Before 2.12, a field cannot be left out depending on its value.
    "pydantic>=2.12",
    "PyYAML>=6",
    "orjson>=3.10",
    "pysimdjson>=7",
    "google-crc32c>=1.5",
    # Before 3.30, it cannot be told to fail where the file system has no locks.
    "filelock>=3.30",
    "rich>=13",
]
# Keras below 3.15 loads unsafe files (CVE-2026-12570 and others).
KERAS = "keras>=3.15"
# TensorFlow writes logs for TensorBoard only where this is installed.
TENSORBOARD = "tensorboard"
# Beam 2.77 is what was measured; its workers pickle differently before 2.65.
BEAM = "apache-beam>=2.65"
# `prepare --streaming --kafka` needs it. Before 2.4, it cannot ask for the offsets of many partitions at once.
KAFKA = "confluent-kafka>=2.4"
# `s3://`. Before 1.35.2, it cannot create an object only if there is none, which a commit needs.
BOTO = "boto3>=1.35.2"

setup(
    name="lengthwise",
    version=VERSION.group(1),
    description="Records of different lengths in, a trained and exactly masked stacked LSTM out.",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    py_modules=["lengthwise"],
    packages=[
        "pipeline",
        "pipeline.beam",
        "pipeline.format",
        "pipeline.inspection",
        "pipeline.raw",
        "pipeline.schema",
        "pipeline.shuffle",
        "pipeline.streaming",
        "pipeline.writing",
        "trainer",
        "trainer.batching",
        "trainer.data",
        "trainer.devices",
        "trainer.evaluation",
        "trainer.model",
        "trainer.reading",
        "trainer.runs",
        "trainer.serving",
        "trainer.training",
    ],
    package_data={"pipeline": ["py.typed"], "trainer": ["py.typed"]},
    install_requires=BASE,
    extras_require={
        "pipeline": [BEAM],
        "kafka": [KAFKA],
        # What Beam's file systems, the commits and the trainer need for s3:// and gs://.
        "aws": [BOTO],
        "gcp": ["apache-beam[gcp]>=2.65"],
        # One of the two, never both: each owns the folder tensorflow/.
        "cpu": ["tensorflow-cpu>=2.21", KERAS, TENSORBOARD],
        "gpu": ["tensorflow[and-cuda]>=2.21", KERAS, TENSORBOARD],
        "dev": [
            BOTO,
            KAFKA,
            "hypothesis",
            "matplotlib",
            "moto[server]",
            "mypy",
            "pytest",
            "pytest-xdist",
            "ruff",
            "scipy",
            "setuptools",
            "tfrecord",
            "types-PyYAML",
            "uv",
            "wheel",
        ],
    },
    entry_points={
        "console_scripts": ["lengthwise = lengthwise:main", "lengthwise-worker = pipeline.beam.start_worker:main"]
    },
)
