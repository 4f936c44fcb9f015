"""The device mesh ("data", "space") and where arrays lie on it."""

import collections
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from psp_jax.errors import ConfigError

# Of rows that are there to make them divide; in labels the ignore label, which
# this module need not know to be it.
_FILLER = 255


def create_mesh(data: int = -1, space: int = 1, devices=None) -> Mesh:
  """A (data, space) mesh; -1 takes what the other axis leaves.

  Those of a process are side by side, first along "space".

  Raises:
    ConfigError: the axes do not multiply to the number of devices, or "space"
      divides those of a process unevenly.
  """
  devices = in_order(jax.devices() if devices is None else devices)
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
  local = sum(d.process_index == devices[0].process_index for d in devices)
  if space % local and local % space:
    raise ConfigError(
        f"config.mesh.space={space}: each process has {local} devices; use a "
        "divisor or a multiple of that")
  grid = np.asarray(devices).reshape(data, space)
  return Mesh(grid, ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def in_order(devices) -> list:
  """Those of a process side by side, as their parts of a batch are."""
  return sorted(devices, key=lambda device: (device.process_index, device.id))


def settle_batch(config, mesh: Mesh) -> None:
  """Sets `config.global_batch_size` where `config.batch_per_device` says it.

  Raises:
    ConfigError: it does not divide over "data", or into
      `config.accumulation_steps` parts on each device.
  """
  parts = config.accumulation_steps
  if config.batch_per_device:
    config.global_batch_size = (
        config.batch_per_device * parts * mesh.shape["data"])
  check_batch(config.global_batch_size, mesh)
  each = config.global_batch_size // mesh.shape["data"]
  if each % parts:
    choices = [n for n in range(1, each + 1) if each % n == 0]
    raise ConfigError(
        f"config.accumulation_steps={parts} does not divide the {each} images "
        f"of a device: use one of {', '.join(map(str, choices))}, or a "
        "config.global_batch_size that is a multiple of "
        f"{parts * mesh.shape['data']}")


def describe_batch(config, mesh: Mesh) -> str:
  """How a batch lies on the devices, in words."""
  data, space = mesh.shape["data"], mesh.shape["space"]
  each = config.global_batch_size // data
  text = f"{each} on each of {data} devices" if data > 1 else f"{each} on one"
  if space > 1:
    rows = padded(config.data.crop_size, mesh) // space
    text = (f"{each} on each {space} of {data * space} devices, {rows} rows of "
            "an image on each")
  if config.accumulation_steps > 1:
    text += f", in {config.accumulation_steps} parts one after the other"
  return text


def check_batch(global_batch_size: int, mesh: Mesh) -> None:
  """Raises ConfigError where the batch does not divide over "data"."""
  n = mesh.shape["data"]
  if global_batch_size < 1 or global_batch_size % n:
    near = max(1, round(global_batch_size / n)) * n
    every = n * mesh.shape["space"]
    meshes = [f"config.mesh.data={data} config.mesh.space={every // data}"
              for data in range(n - 1, 0, -1)
              if every % data == 0 and max(global_batch_size, 0) % data == 0]
    shared = f", or share the rows of an image: {' or '.join(meshes)}"
    raise ConfigError(
        f"config.global_batch_size={global_batch_size} does not divide over "
        f"{n} data-parallel devices: use a multiple of {n}, such as {near}"
        + shared * bool(meshes))


def padded(rows: int, mesh: Mesh) -> int:
  """The next number of rows that divides over "space"."""
  return rows + -rows % mesh.shape["space"]


def data_share(mesh: Mesh) -> tuple[int, int]:
  """(index, count): which of `count` parts of a batch this process reads.

  Processes that share images read the same part.
  """
  rows = [i for i, row in enumerate(mesh.devices) if any(
      device.process_index == jax.process_index() for device in row)]
  return rows[0] // len(rows), len(mesh.devices) // len(rows)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Batch over "data", image rows over "space"."""
  return NamedSharding(mesh, PartitionSpec("data", "space"))


def shard_batch(batch, mesh: Mesh):
  """This process's share of a batch, as part of global arrays on the mesh.

  Rows are padded until they divide over "space"; who computes cuts them off.

  Args:
    batch: of arrays (N, H, ...), the part that `data_share` says.
    mesh: where they go.

  Returns:
    Arrays (N * parts, padded H, ...).
  """
  return {name: _shard(array, mesh) for name, array in batch.items()}


def _shard(array, mesh):
  count, rows = array.shape[:2]
  filler = padded(rows, mesh) - rows
  if filler:
    array = np.pad(array, [(0, 0), (0, filler), *[(0, 0)] * (array.ndim - 2)],
                   constant_values=_FILLER)
  index, parts = data_share(mesh)

  def part(where):
    images = range(*where[0].indices(count * parts))
    start = images.start - index * count
    return array[start:start + len(images), *where[1:]]

  return jax.make_array_from_callback(
      (count * parts, *array.shape[1:]), batch_sharding(mesh), part)


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
