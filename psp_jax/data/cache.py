"""Decoded records kept in memory, as many as a budget holds."""

import threading

import numpy as np


class CachedSplit:
  """A split whose records are decoded once, until the budget is used up.

  The records that come first stay; the others are decoded anew each time. Safe
  to read from several threads. A copy in another process starts empty.
  """

  def __init__(self, split, gib: float):
    """Wraps `split`, to keep arrays of at most `gib` GiB altogether."""
    self._split = split
    self._budget = round(gib * 2**30)  # In bytes; what is left of it.
    self._capacity = self._budget
    self._records = {}
    self._lock = threading.Lock()

  def __len__(self):
    return len(self._split)

  def __getitem__(self, index):
    record = self._records.get(index)
    if record is not None:
      return dict(record)
    # Decoded outside the lock: two threads may do it for one record, at most.
    record = self._split[index]
    size = sum(v.nbytes for v in record.values() if isinstance(v, np.ndarray))
    with self._lock:
      if index not in self._records and size <= self._budget:
        self._budget -= size
        self._records[index] = {
            name: _read_only(value) for name, value in record.items()}
      return dict(self._records.get(index, record))

  def __getstate__(self):
    return {"split": self._split, "gib": self._capacity / 2**30}

  def __setstate__(self, state):
    CachedSplit.__init__(self, **state)


def _read_only(value):
  """An array of its own that nobody can write to: it is read again later."""
  if not isinstance(value, np.ndarray):
    return value
  value = np.array(value)  # What it was cut from would stay in memory too.
  value.flags.writeable = False
  return value
