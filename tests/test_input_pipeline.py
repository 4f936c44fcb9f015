"""Batches are a pure function of (seed, step), whatever reads them.

The images of `Counted` are their own index, so that a batch tells which
records it holds. Splits are not tiny, for Grain's shuffle takes the longer the
fewer records there are.
"""

import itertools

import numpy as np
import pytest

from psp_jax import default_config
from psp_jax.data import input_pipeline

SIZE = 8


class Counted:
  """`count` records: the image shows the index, the label its rest by 11."""

  def __init__(self, count, sizes=(SIZE,)):
    self._count = count
    self._sizes = sizes

  def __len__(self):
    return self._count

  def __getitem__(self, index):
    assert isinstance(index, int) and 0 <= index < self._count
    size = self._sizes[index % len(self._sizes)]
    return {"image": np.full((size, size, 3), index, np.uint8),
            "label": np.full((size, size), index % 11, np.uint8),
            "name": f"{index}"}


class Pictures:
  """Records with something to see, larger than the crop."""

  def __len__(self):
    return 400

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    return {"image": rng.integers(0, 256, (20, 24, 3)).astype(np.uint8),
            "label": rng.integers(0, 11, (20, 24)).astype(np.uint8),
            "name": f"{index}"}


def config(batch=4, seed=0, augmented=False):
  c = default_config.get_config()
  c.seed = seed
  c.global_batch_size = batch
  c.data.crop_size = SIZE
  c.data.num_threads = 2
  if not augmented:
    c.data.augment.scale = (1.0, 1.0)
    c.data.augment.rotate_probability = 0.0
    c.data.augment.blur_probability = 0.0
    c.data.augment.mirror_probability = 0.0
  return c


def dataset(split, c, process=(0, 1)):
  return input_pipeline.train_dataset(split, c, *process)


def order(split, c, steps):
  """Record numbers of the first `steps` batches, one after the other."""
  batches = dataset(split, c)
  return np.concatenate(
      [batches[s]["image"][:, 0, 0, 0] for s in range(steps)])


def same(a, b):
  return set(a) == set(b) == {"image", "label"} and all(
      np.array_equal(a[k], b[k]) for k in a)


def test_a_batch_has_the_configured_shape_and_whole_records():
  batch = dataset(Counted(200), config(batch=6))[3]
  assert set(batch) == {"image", "label"}
  assert batch["image"].shape == (6, SIZE, SIZE, 3)
  assert batch["label"].shape == (6, SIZE, SIZE)
  assert batch["image"].dtype == batch["label"].dtype == np.uint8
  for image, label in zip(batch["image"], batch["label"], strict=True):
    assert (image == image[0, 0, 0]).all()
    assert (label == image[0, 0, 0] % 11).all()


@pytest.mark.parametrize("step", [0, 1, 7, 10**6])
def test_a_batch_can_be_made_again(step):
  c = config(augmented=True)
  assert same(dataset(Pictures(), c)[step], dataset(Pictures(), c)[step])


def test_other_steps_and_seeds_give_other_batches():
  batches = [dataset(Pictures(), config(seed=seed, augmented=True))[step]
             for seed in (0, 1, 2) for step in (0, 1, 10**6)]
  for a, b in itertools.combinations(batches, 2):
    assert not same(a, b)


def test_other_seeds_order_the_records_otherwise():
  orders = [tuple(order(Counted(200), config(seed=seed), 5))
            for seed in range(4)]
  assert len(set(orders)) == 4


@pytest.mark.parametrize(("records", "batch"), [(96, 8), (101, 7), (60, 64)])
def test_each_pass_covers_every_record_once_in_an_order_of_its_own(
    records, batch):
  passes = 3
  seen = order(Counted(records), config(batch), -(-passes * records // batch))
  orders = seen[:passes * records].reshape(passes, records)
  for one in orders:
    assert sorted(one) == list(range(records))
  assert len({tuple(one) for one in orders}) == passes
  assert tuple(range(records)) not in {tuple(one) for one in orders}


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 16])
def test_every_batch_size_is_kept_at_every_step(batch):
  batches = dataset(Counted(50), config(batch))
  # Where a pass ends within the batch, or with it, and far on.
  steps = (0, 50 // batch - 1, 50 // batch, 10**6)
  assert {len(batches[s]["label"]) for s in steps} == {batch}


def test_a_record_is_augmented_anew_each_time():
  class Equal(Pictures):
    def __len__(self):
      return 2

    def __getitem__(self, index):
      return super().__getitem__(0)

  batches = dataset(Equal(), config(batch=2, augmented=True))
  # Both records of a batch, and those of three passes.
  images = np.concatenate([batches[step]["image"] for step in range(3)])
  for a, b in itertools.combinations(images, 2):
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("step", [0, 2, 5, 10**6])
def test_processes_share_the_batch_that_one_would_make(count, step):
  c = config(batch=8, augmented=True)
  whole = dataset(Pictures(), c)[step]
  shares = [dataset(Pictures(), c, (i, count))[step] for i in range(count)]
  assert all(len(s["label"]) == 8 // count for s in shares)
  assert same(whole, {k: np.concatenate([s[k] for s in shares])
                      for k in whole})


@pytest.mark.parametrize("start", [0, 3, 10**6])
def test_iterating_from_a_step_is_indexing(start):
  c = config(augmented=True)
  batches = dataset(Pictures(), c)
  iterator = input_pipeline.train_batches(Pictures(), c, start)
  for step in range(start, start + 5):
    assert same(next(iterator), batches[step])


def test_starting_late_reads_no_record_that_is_not_due():
  class Watched(Counted):
    def __init__(self):
      super().__init__(250)
      self.read = 0

    def __getitem__(self, index):
      self.read += 1
      return super().__getitem__(index)

  split, c = Watched(), config(batch=2)
  next(input_pipeline.train_batches(split, c, 10**6))
  assert split.read < 50


# ---- Evaluation.


@pytest.mark.parametrize(("size", "limit", "expected"), [
    (5, None, [0, 1, 2, 3, 4]), (5, 0, [0, 1, 2, 3, 4]),
    (5, 5, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (5, 3, [0, 2, 4]),
    (5, 1, [0]), (1, 1, [0]), (101, 5, [0, 25, 50, 75, 100]), (9, 2, [0, 8])])
def test_a_subset_is_spread_from_the_first_to_the_last(size, limit, expected):
  assert input_pipeline.subset_indices(size, limit).tolist() == expected


@pytest.mark.parametrize("size", [2, 3, 17, 101, 500, 2000])
def test_a_subset_is_of_the_size_asked_for_unique_and_even(size):
  for limit in {2, size // 3, size // 2, size - 1} - {0, 1}:
    indices = input_pipeline.subset_indices(size, limit)
    gaps = np.diff(indices)
    assert len(indices) == limit and gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1
    assert indices[0] == 0 and indices[-1] == size - 1


def test_evaluation_reads_the_records_asked_for_in_their_order():
  split = Counted(60, sizes=(5, 9, 7))
  indices = np.array([3, 50, 4, 4, 0, 59, 21])
  records = list(input_pipeline.evaluation_records(split, indices, config()))
  assert [r["name"] for r in records] == [str(i) for i in indices]
  for i, record in zip(indices, records, strict=True):
    expected = split[int(i)]
    np.testing.assert_array_equal(record["image"], expected["image"])
    np.testing.assert_array_equal(record["label"], expected["label"])


def test_evaluation_of_nothing_is_nothing():
  assert not list(input_pipeline.evaluation_records(
      Counted(3), np.array([], int), config()))
