"""Records to batches, through Grain.

The batch of a step is a pure function of (seed, step): resuming at a step is
indexing, and the step number is the whole state of the input.
"""

import cv2
import grain
import jax
import numpy as np

from psp_jax.data import augment

# One thread a record scales better than OpenCV's own threads within one.
cv2.setNumThreads(0)


def train_dataset(split, config, process_index: int | None = None,
                  process_count: int | None = None) -> grain.MapDataset:
  """This process's share of every training batch, in order, without end.

  Element `step` is {"image": uint8 (n, crop, crop, 3), "label": uint8 (n,
  crop, crop)} with n = global_batch_size / process_count. The shares of all
  processes, put together in order, do not depend on their number. Each pass
  over the records has an order of its own; a batch may span two passes.
  """
  if process_index is None:
    process_index, process_count = jax.process_index(), jax.process_count()
  crop_size = config.data.crop_size

  def augmented(record, rng):
    image, label = record["image"], record["label"]
    drawn = augment.draw_for(rng, label, crop_size, config)
    image, label = augment.apply(drawn, image, label, crop_size)
    return {"image": image, "label": label}

  return (
      grain.MapDataset.source(split)
      .seed(config.seed)
      .shuffle()
      .repeat()
      .random_map(augmented)
      # Without a remainder to keep, Grain counts in integers: a batch of one
      # overflows its float.
      .batch(config.global_batch_size // process_count, drop_remainder=True)
      [process_index::process_count])


def train_batches(split, config, start_step: int):
  """Iterates over `train_dataset` from `start_step`, read ahead by threads."""
  threads = config.data.num_threads
  dataset = train_dataset(split, config)[start_step:]
  return iter(dataset.to_iter_dataset(grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=max(2, threads))))


def subset_indices(size: int, limit: int | None) -> np.ndarray:
  """At most `limit` indices, evenly spread; None or 0 for all."""
  if not limit or limit >= size:
    return np.arange(size)
  return np.linspace(0, size - 1, limit).round().astype(int)


def evaluation_records(split, indices, config):
  """Iterates over decoded records in the given order, read ahead."""
  threads = config.data.num_threads
  dataset = grain.MapDataset.source(list(map(int, indices))).map(
      split.__getitem__)
  return iter(dataset.to_iter_dataset(grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=4 * threads)))
