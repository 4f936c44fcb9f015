"""Batches are on their way to the devices before they are asked for."""

import jax
import numpy as np
import pytest

from psp_jax import sharding
from psp_jax.errors import DataError


class Reader:
  """`count` batches, each filled with its number; then an error, or the end."""

  def __init__(self, count, error=None):
    self._count, self._error = count, error
    self.given = 0

  def __iter__(self):
    return self

  def __next__(self):
    if self.given == self._count:
      raise self._error or StopIteration
    self.given += 1
    return {"image": np.full((8, 4, 4, 3), self.given, np.uint8),
            "label": np.full((8, 4, 4), self.given, np.uint8)}


@pytest.fixture
def mesh():
  return sharding.create_mesh(4, 2)


@pytest.mark.parametrize("ahead", [0, 1, 2, 20])
def test_every_batch_comes_once_in_order_on_the_mesh_as_uint8(ahead, mesh):
  batches = list(sharding.prefetch_to_mesh(Reader(7), mesh, ahead))
  assert [int(b["label"][0, 0, 0]) for b in batches] == list(range(1, 8))
  for batch in batches:
    for name, array in batch.items():
      assert isinstance(array, jax.Array) and array.dtype == np.uint8
      assert array.sharding == sharding.batch_sharding(mesh), name
      assert len(np.unique(array)) == 1


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_so_many_are_ahead_and_no_more(ahead, mesh):
  reader = Reader(100)
  batches = sharding.prefetch_to_mesh(reader, mesh, ahead)
  assert reader.given == 0
  for step in range(1, 20):
    next(batches)
    assert reader.given == step + ahead


@pytest.mark.parametrize("ahead", [0, 2, 9])
def test_an_error_comes_in_its_batchs_place(ahead, mesh):
  error = DataError("bad.png: mend it")
  batches = sharding.prefetch_to_mesh(Reader(4, error), mesh, ahead)
  for step in range(1, 5):
    assert int(next(batches)["label"].max()) == step
  with pytest.raises(DataError, match=r"^bad.png: mend it$") as raised:
    next(batches)
  assert raised.value is error
  assert any(f.name == "__next__" for f in raised.traceback)  # Its origin.


def test_an_interruption_does_not_wait_its_turn(mesh):
  batches = sharding.prefetch_to_mesh(Reader(1, KeyboardInterrupt()), mesh)
  with pytest.raises(KeyboardInterrupt):
    next(batches)


def test_it_can_be_closed(mesh):
  reader = Reader(100)
  batches = sharding.prefetch_to_mesh(reader, mesh)
  next(batches)
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)
  assert reader.given == 3
