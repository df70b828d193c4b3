"""What the tests of streams share."""

import pytest


@pytest.fixture
def ids(read_records):
    """Returns a function that reads the numbers in the ids of all records of a dataset, sorted."""

    def read(place):
        return sorted(
            int(bytes(example["id"][0]).decode().removeprefix("id-")) for example in read_records(place.dataset)
        )

    return read
