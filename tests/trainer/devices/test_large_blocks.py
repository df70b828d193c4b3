"""Large blocks do not stay in the heap of a process."""

import platform
import subprocess
import sys

import pytest
from paths import ROOT

PROGRAM = """
import ctypes, sys
from trainer.devices.large_blocks import return_large_blocks
library = ctypes.CDLL(None)
library.malloc.restype = library.sbrk.restype = ctypes.c_void_p
library.malloc.argtypes, library.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
library.sbrk.argtypes = [ctypes.c_ssize_t]
if sys.argv[1] == "True":
    return_large_blocks()
library.free(library.malloc(30 * 2**20))  # by default, glibc then keeps smaller blocks in the heap
before = library.sbrk(0)
library.malloc(8 * 2**20)
print(library.sbrk(0) - before > 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps large blocks")
@pytest.mark.parametrize("returned", [True, False])
def test_a_large_block_does_not_make_the_heap_grow_after_another_was_freed(returned):
    command = [sys.executable, "-c", PROGRAM, str(returned)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([str(not returned)], "")
