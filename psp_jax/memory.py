"""What glibc's malloc does with memory that is freed; elsewhere nothing."""

import ctypes
import functools
import os

# malloc.h's M_...
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


@functools.cache
def _libc():
  try:
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None
  except (OSError, TypeError):
    return None  # Another system.


def keep_freed() -> None:
  """malloc keeps what is freed, for the arrays of the next record.

  Else it may return them to the system after every record and get them back
  page by page, up to 300 page faults and a millisecond an image. It has an
  arena a core, not eight: each keeps what its threads once needed.
  """
  if libc := _libc():
    libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_TRIM_THRESHOLD, 64 << 20)
    libc.mallopt(_ARENA_MAX, os.cpu_count() or 1)


def give_back() -> None:
  """Now and then, all that is free goes to the system; it takes milliseconds.

  What is kept lies scattered, and a long run takes a little more and more.
  """
  if libc := _libc():
    libc.malloc_trim(0)
