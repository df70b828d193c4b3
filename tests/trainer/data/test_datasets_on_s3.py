"""Batches of a dataset on S3 are those of the same dataset on a disk, and a run there is read from a copy."""

import pathlib

import numpy as np
import pytest
import s3 as support
from botocore.client import BaseClient
from botocore.exceptions import EndpointConnectionError

from pipeline.errors import UserError
from trainer.batching.plan_epoch import plan_epoch
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.reading.batches import batches
from trainer.runs.local_copy import local_copy
from trainer.training.train import train

PLACE = f"s3://{support.BUCKET}"


@pytest.fixture(scope="module")
def copy(dataset):
    """The path of a copy of the dataset on S3."""
    with support.with_environment() as client:
        for path in pathlib.Path(dataset).rglob("*"):
            if path.is_file():
                client.upload_file(str(path), support.BUCKET, f"dataset/{path.relative_to(dataset)}")
        yield client


def equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one.values(), other.values(), strict=True))


@pytest.mark.proof
@pytest.mark.parametrize("batching", ["window", "bucket"])
def test_the_batches_are_those_of_a_disk(copy, dataset, batching, monkeypatch):
    monkeypatch.setattr("trainer.reading.tf_data_reader._BLOCK_BYTES", 10_000)  # several requests for a shard
    plans = [plan_epoch(open_dataset(path), "train", batching=batching) for path in (f"{PLACE}/dataset", dataset)]
    assert plans[0].to_dict() == plans[1].to_dict()
    remote, local = (batches(path, "train", batching=batching) for path in (f"{PLACE}/dataset/", dataset))
    number = 0
    for (features, label, weight), expected in zip(remote, local, strict=True):
        assert equal(features, expected[0])
        assert np.array_equal(label, expected[1]) and np.array_equal(weight, expected[2])
        number += 1
    assert number == plans[0].num_batches


def test_a_damaged_missing_or_unknown_place_is_one_line(copy, dataset):
    with pytest.raises(UserError, match=f"^{PLACE}/none: not a dataset: it has no manifest.json that can be read"):
        open_dataset(f"{PLACE}/none")
    with pytest.raises(UserError, match="^s3://none/dataset/manifest.json: there is no bucket 'none'"):
        open_dataset("s3://none/dataset")
    with pytest.raises(UserError, match="^hdfs://a/b: TensorFlow has no file system for hdfs://, expected a local"):
        open_dataset("hdfs://a/b")
    shard = open_dataset(dataset).split("test").shards[0]
    copy.put_object(Bucket=support.BUCKET, Key=f"dataset/{shard.path}", Body=b"short")
    with pytest.raises(UserError, match=f"{shard.path} has 5 bytes, expected"):
        list(batches(f"{PLACE}/dataset", "test"))


def test_a_store_that_does_not_answer_is_no_damage(copy, monkeypatch):
    opened = open_dataset(f"{PLACE}/dataset")
    error = EndpointConnectionError(endpoint_url="http://x")

    def fail(self, operation, arguments):
        if fails(operation):
            raise error
        return call(self, operation, arguments)

    call = BaseClient._make_api_call
    monkeypatch.setattr(BaseClient, "_make_api_call", fail)
    fails = lambda operation: True  # noqa: E731
    expected = (
        "cannot be read: the endpoint .* cannot be reached: Could not connect to the endpoint URL: .http://x.\\.$"
    )
    with pytest.raises(UserError, match=f"^{PLACE}/dataset/manifest.json: {expected}"):
        open_dataset(f"{PLACE}/dataset")
    fails = lambda operation: operation == "GetObject"  # noqa: E731
    with pytest.raises(UserError, match=f"^{PLACE}/dataset/data/.*: {expected}"):
        opened.size_checked_indexes("validation")[0].read(np.array([0]))


def test_a_run_is_not_trained_on_s3(dataset):
    for call in (
        lambda: train(dataset, f"{PLACE}/run"),
        lambda: train(dataset, "run", TrainConfig(warm_start=f"{PLACE}/run")),
    ):
        with pytest.raises(UserError, match=f"^{PLACE}/run: a run cannot be on s3://, since TensorFlow writes no"):
            call()


def test_a_run_on_s3_is_read_from_a_copy_that_is_removed(copy):
    for name in ("config.yaml", "vocabulary/a/b.txt", "logs/train/events.out.tfevents.1", "other.txt", "../x.yaml"):
        copy.put_object(Bucket=support.BUCKET, Key=f"run/{name}", Body=name.encode())
    with local_copy(f"{PLACE}/run") as folder:
        found = sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*") if path.is_file())
        assert found == ["config.yaml", "vocabulary/a/b.txt"]
        assert pathlib.Path(folder, "config.yaml").read_text() == "config.yaml"
    assert not pathlib.Path(folder).exists()
    with pytest.raises(UserError, match=f"^{PLACE}/run: it fails$"), local_copy(f"{PLACE}/run") as folder:
        raise UserError(f"{folder}: it fails")
    with pytest.raises(UserError, match="none: not a run: there is no such folder"), local_copy(f"{PLACE}/none"):
        pass
    with local_copy("run") as folder:
        assert folder == "run"
