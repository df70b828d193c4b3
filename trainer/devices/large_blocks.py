"""Lets the C library return large blocks of memory to the system when they are freed."""

import contextlib
import ctypes

# Parameters of mallopt in glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_BLOCK_BYTES, _TRIM_BYTES = 4 * 2**20, 32 * 2**20


def return_large_blocks() -> None:
    """Gives each block of 4 MiB or more pages of its own in this process. Does nothing without glibc.

    By default, a block that was freed makes glibc keep blocks of that size in its heap. A line that grows to 64 MiB
    then leaves free pieces, which the process keeps. Measured with `predict` in chunks on records of 64 MiB: at most
    476 MB of private memory instead of 534 MB, in the same processor time.
    """
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _BLOCK_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)
