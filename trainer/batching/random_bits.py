"""Random bits for plans, which are the same in all versions of NumPy."""

from typing import Any

import numpy as np


def random_bits(count: int, *key: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Returns uint64[count], which depend on the key alone."""
    # NumPy promises the same raw bits in all versions, but not the same permutations.
    return np.asarray(np.random.PCG64(np.random.SeedSequence(key)).random_raw(count), np.uint64)
