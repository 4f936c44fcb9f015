"""Records to batches, through Grain.

The batch of a step is a pure function of (seed, step): resuming at a step is
indexing, and the step number is the whole state of the input.
"""

import dataclasses
import math
import multiprocessing
import os
import pathlib
import shutil
import signal
import threading
import time
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from psp_jax import memory
from psp_jax.data import augment
from psp_jax.data.cache import CachedSplit
from psp_jax.errors import ConfigError, UserError, check_choice

# One thread a record scales better than OpenCV's own threads within one.
cv2.setNumThreads(0)
memory.keep_freed()

WORKERS = ("threads", "processes")
# Batches that lie in shared memory for each worker process: the one it has just
# made, one in its queue, and as many where this process takes them out.
_SHARED_BATCHES = 4


def check(config) -> None:
  """Raises ConfigError where the reading part of config.data cannot work."""
  c = config.data
  check_choice("data.workers", c.workers, WORKERS)
  if c.num_threads < 1:
    raise ConfigError(f"config.data.num_threads={c.num_threads}: must be 1 or "
                      "more")
  if not 0 <= c.cache_gib < math.inf:
    raise ConfigError(f"config.data.cache_gib={c.cache_gib}: must be 0, which "
                      "is off, or a number of GiB")


def check_shared_memory(config, parts: int, folder: str = "/dev/shm") -> None:
  """Raises ConfigError where `train_batches` may find `folder` too small.

  Worker processes hand their batches, of which each has one of `parts`, over
  there, and a full one kills them.
  """
  c = config.data
  if c.workers != "processes" or not pathlib.Path(folder).is_dir():
    return
  images = config.global_batch_size // parts
  pixels = math.prod(augment.crop_shape(config))
  needed = _SHARED_BATCHES * c.num_threads * images * pixels * 4
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise ConfigError(
        f"config.data.workers='processes' with config.data.num_threads="
        f"{c.num_threads} may need {needed / 2**30:.2f} GiB of {folder}, which "
        f"has {free / 2**30:.2f}: give a container more (docker --shm-size), "
        "or use fewer processes or workers='threads'")


@dataclasses.dataclass(frozen=True)
class _Augment(grain.transforms.RandomMap):
  """A record to its augmented crop; whatever else it holds stays behind."""
  config: Any

  def random_map(self, element, rng):
    image, label = element["image"], element["label"]
    crop = augment.crop_shape(self.config)
    drawn = augment.draw_for(rng, label, crop, self.config)
    image, label = augment.apply(drawn, image, label, crop)
    return {"image": image, "label": label}


def train_dataset(split, config, part: int = 0, parts: int = 1
                  ) -> grain.MapDataset:
  """One part of every training batch, in order, without end.

  Element `step` is {"image": uint8 (n, height, width, 3), "label": uint8 (n,
  height, width)} with n = global_batch_size / parts. All parts, put together
  in order, do not depend on their number. Each pass over the records has an
  order of its own; a batch may span two passes.
  """
  return (
      grain.MapDataset.source(split)
      .seed(config.seed)
      .shuffle()
      .repeat()
      .random_map(_Augment(config))
      # Without a remainder to keep, Grain counts in integers: a batch of one
      # overflows its float.
      .batch(config.global_batch_size // parts, drop_remainder=True)
      [part::parts])


def record_indices(split, config, step: int) -> list[int]:
  """Of the records in the whole batch with which step `step` + 1 is made."""
  indices = grain.MapDataset.source(range(len(split))).seed(
      config.seed).shuffle().repeat()
  start = step * config.global_batch_size
  return [int(indices[i])
          for i in range(start, start + config.global_batch_size)]


def train_batches(split, config, start_step: int,
                  part: int = 0, parts: int = 1):
  """Iterates over `train_dataset` from `start_step`, read ahead by workers.

  `config.data.num_threads` threads, or as many processes, make whole batches;
  which of the two, and how many, changes no batch. Of `config.data.cache_gib`
  every worker takes its share, for each keeps records of its own.

  Returns:
    An iterator to be closed: `close()` ends its workers. What a worker raises
    is raised where its batch would have come.
  """
  c = config.data
  processes = c.workers == "processes"
  if c.cache_gib:
    split = CachedSplit(
        split, c.cache_gib / (c.num_threads if processes else 1))
  dataset = train_dataset(split, config, part, parts)
  dataset = dataset[start_step:]
  if not processes:
    return iter(dataset.to_iter_dataset(_read_options(c.num_threads)))
  if not flags.FLAGS.is_parsed():  # In a notebook; Grain looks at its own.
    flags.FLAGS.mark_as_parsed()
  # A worker makes its batches itself: threads of its own would only add to
  # the number that is configured.
  dataset = dataset.to_iter_dataset(_read_options(0)).mp_prefetch(
      grain.MultiprocessingOptions(c.num_threads, per_worker_buffer_size=1),
      _start_worker)
  # Copied in a thread of its own: the main one never holds shared memory, so
  # that Ctrl-C cannot meet it in the middle of giving some back.
  return _from_processes(grain.experimental.ThreadPrefetchIterDataset(
      dataset.map(_copy), prefetch_buffer_size=1))


def _copy(batch):
  """In this process's own memory; shared memory is freed at once."""
  return {name: np.array(array) for name, array in batch.items()}


def _from_processes(dataset):
  iterator = iter(dataset)
  try:
    yield from iterator
  except UserError as error:
    # Its traceback would hold the batch before it, in shared memory.
    raise error.with_traceback(None) from None
  finally:
    iterator.close()


def _read_options(threads: int) -> grain.ReadOptions:
  return grain.ReadOptions(
      num_threads=threads,
      prefetch_buffer_size=max(2, threads) if threads else 0)


def _start_worker(index: int, count: int) -> None:
  """First thing in a worker process: it ends with the one that started it."""
  del index, count
  # Ctrl-C reaches the whole group; the main process closes its workers.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # Killed, that one cannot: workers would wait for it in vain, for ever.
  threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
  parent = multiprocessing.parent_process()
  assert parent is not None  # This is a worker.
  parent.join()
  time.sleep(1)  # Shared memory that is just being made would stay.
  os._exit(1)


def subset_indices(size: int, limit: int | None) -> np.ndarray:
  """At most `limit` indices, evenly spread; None or 0 for all."""
  if not limit or limit >= size:
    return np.arange(size)
  return np.linspace(0, size - 1, limit).round().astype(int)


def evaluation_records(split, indices, config):
  """Iterates over decoded records in the given order, read ahead.

  By threads, whatever `config.data.workers` says: the device is the slower
  part, and workers to start for every validation are not.
  """
  threads = config.data.num_threads
  dataset = grain.MapDataset.source(list(map(int, indices))).map(
      split.__getitem__)
  return iter(dataset.to_iter_dataset(grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=4 * threads)))
