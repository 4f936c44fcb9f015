"""The device mesh ("data", "space") and where arrays lie on it."""

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from psp_jax.errors import ConfigError


def create_mesh(data: int = -1, space: int = 1, devices=None) -> Mesh:
  """A (data, space) mesh; -1 takes what the other axis leaves.

  Raises:
    ConfigError: the axes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  n = len(devices)
  wanted = (data, space)
  if data == -1 and space > 0:
    data = n // space
  elif space == -1 and data > 0:
    space = n // data
  if data < 1 or space < 1 or data * space != n:
    raise ConfigError(
        f"config.mesh.data={wanted[0]}, config.mesh.space={wanted[1]}: must "
        f"multiply to the {n} device(s) found; -1 fills one axis")
  grid = np.asarray(devices).reshape(data, space)
  return Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def check_batch(global_batch_size: int, mesh: Mesh) -> None:
  """Raises ConfigError where the batch does not divide over "data"."""
  n = mesh.shape["data"]
  if global_batch_size < 1 or global_batch_size % n:
    near = max(1, round(global_batch_size / n)) * n
    raise ConfigError(
        f"config.global_batch_size={global_batch_size} does not divide over "
        f"{n} data-parallel devices: use a multiple of {n}, such as {near}, "
        "or set config.mesh.data")


def check_crop(crop_size: int, mesh: Mesh) -> None:
  """Raises ConfigError where rows do not divide over "space"."""
  n = mesh.shape["space"]
  if crop_size % n:
    raise ConfigError(
        f"config.data.crop_size={crop_size} does not divide over "
        f"config.mesh.space={n}: use a multiple of {n}")


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batch over "data", image rows over "space"."""
  return NamedSharding(mesh, PartitionSpec("data", "space"))


def shard_batch(batch, mesh: Mesh):
  """This process's arrays, as parts of global arrays on the mesh."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, array)
          for name, array in batch.items()}


def prefetch_to_mesh(batches: Iterable, mesh: Mesh,
                     ahead: int = 2) -> Iterator:
  """`shard_batch` of every batch, its transfer begun `ahead` batches early.

  Transfers run beside the step that the device is at. On it lie, as uint8,
  `ahead` batches and the one in use.

  Args:
    batches: dicts of this process's arrays.
    mesh: where they go.
    ahead: 0 transfers a batch when it is asked for.

  Yields:
    The batches, in order. What `batches` raises comes after those before it.
  """
  batches = iter(batches)
  waiting = collections.deque()
  error: Exception | None = None
  while True:
    while error is None and len(waiting) <= ahead:
      try:
        waiting.append(shard_batch(next(batches), mesh))
      except Exception as raised:  # Held back until it is its turn.
        error = raised
    if waiting:
      yield waiting.popleft()
    elif isinstance(error, StopIteration):
      return
    elif error is not None:
      raise error
