"""What malloc keeps is given back when it is asked to."""

import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np
from psp_jax import memory

def resident():
  with open("/proc/self/status") as status:
    line, = (l for l in status if l.startswith("VmRSS"))
  return int(line.split()[1]) >> 10

memory.keep_freed()
arrays = [np.ones(1 << 16, np.uint8) for _ in range(4000)]  # 250 MiB.
last = arrays[-1]  # Holds the end of the heap where it is.
full = resident()
del arrays
kept = resident()
memory.give_back()
print(full, kept, resident())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="of glibc's malloc")
def test_what_is_free_goes_back_when_it_is_asked_to():
  done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True,
                        text=True, timeout=120, check=True)
  full, kept, after = map(int, done.stdout.split())
  assert full - kept < 50 and kept - after > 200, done.stdout
