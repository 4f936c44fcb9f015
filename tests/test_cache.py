"""The cache gives what the split gives, and keeps no more than it may."""

import pickle
import threading
import time

import numpy as np
import pytest

from psp_jax import default_config
from psp_jax.data import input_pipeline
from psp_jax.data.cache import CachedSplit

BYTES = 20 * 24 * 4  # A record's arrays.


class Watched:
  """Pictures of their own; counts who is read how often."""

  def __init__(self, count=40):
    self.read = [0] * count

  def __len__(self):
    return len(self.read)

  def __getitem__(self, index):
    self.read[index] += 1
    rng = np.random.default_rng(index)
    whole = rng.integers(0, 256, (30, 24, 3)).astype(np.uint8)
    return {"image": whole[:20], "label": whole[:20, :, 0].copy(),
            "name": f"{index}", "further": index}


def gib(records):
  return records * BYTES / 2**30


def same(a, b):
  return a.keys() == b.keys() and all(
      np.array_equal(a[k], b[k]) and type(a[k]) is type(b[k]) for k in a)


@pytest.mark.parametrize("kept", [0, 1, 7, 40, 1000])
def test_as_many_as_fit_are_read_once_and_the_rest_each_time(kept):
  split = Watched()
  cached = CachedSplit(split, gib(kept))
  assert len(cached) == 40
  for _ in range(3):
    for i in range(40):
      assert same(cached[i], Watched()[i])
  assert split.read == [1 if i < kept else 3 for i in range(40)]


def test_what_is_kept_cannot_be_written_to():
  cached = CachedSplit(Watched(), gib(40))
  for _ in range(2):
    record = cached[3]
    for name in ("image", "label"):
      with pytest.raises(ValueError, match="read-only"):
        record[name][0] = 0
    record["image"] = None  # The dict is the caller's.
    del record["name"]
  assert same(cached[3], Watched()[3])


def test_no_memory_but_the_arrays_own_is_kept():
  image = CachedSplit(Watched(), gib(40))[3]["image"]
  assert image.base is None and image.nbytes == 20 * 24 * 3


def test_threads_may_read_at_once():
  class Slow(Watched):
    def __getitem__(self, index):
      time.sleep(0.001)
      return super().__getitem__(index)

  split = Slow()
  cached = CachedSplit(split, gib(25))
  wrong = []

  def read(seed):
    for i in np.random.default_rng(seed).permutation(40).tolist() * 3:
      if not same(cached[i], Watched()[i]):
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(s,)) for s in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  before = list(split.read)
  for i in range(40):
    cached[i]
  # Whatever raced, 25 are kept and 15 are not.
  assert sum(np.subtract(split.read, before)) == 15


def test_a_copy_for_another_process_is_empty_and_has_the_whole_budget():
  cached = CachedSplit(Watched(), gib(10))
  for i in range(40):
    cached[i]
  data = pickle.dumps(cached)
  assert len(data) < BYTES  # No record travels.
  copy = pickle.loads(data)
  copy._split.read = [0] * 40
  for i in list(range(40)) * 2:
    copy[i]
  assert copy._split.read == [1] * 10 + [2] * 30


@pytest.mark.parametrize("kept", [5, 40])
def test_batches_are_the_same_with_it(kept):
  c = default_config.get_config()
  c.global_batch_size, c.data.crop_size, c.data.num_threads = 4, 16, 3
  c.data.augment.photometric_distortion = True
  plain = input_pipeline.train_batches(Watched(), c, 2)
  split = Watched()
  c.data.cache_gib = gib(kept)
  cached = input_pipeline.train_batches(split, c, 2)
  for _ in range(40):  # Four passes.
    assert same(next(plain), next(cached))
  assert sum(n <= 2 for n in split.read) >= kept  # Read by two at once.


@pytest.mark.parametrize(("workers", "share"), [
    ("threads", 6.0), ("processes", 2.0)])
def test_the_budget_is_that_of_all_workers(workers, share, monkeypatch):
  budgets = []
  monkeypatch.setattr(input_pipeline, "CachedSplit",
                      lambda split, gib: budgets.append(gib) or split)
  c = default_config.get_config()
  c.data.workers, c.data.num_threads, c.data.cache_gib = workers, 3, 6.0
  input_pipeline.train_batches(Watched(), c, 0).close()
  assert budgets == [share]
