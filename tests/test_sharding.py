"""Meshes, what cannot be divided, and where a batch comes to lie."""

import re
import types

import jax
import numpy as np
import pytest

from psp_jax import default_config, sharding
from psp_jax.data.taxonomy import IGNORE_LABEL
from psp_jax.errors import ConfigError


@pytest.mark.parametrize(("data", "space", "expected"), [
    (-1, 1, (8, 1)), (-1, 2, (4, 2)), (-1, 8, (1, 8)), (8, 1, (8, 1)),
    (4, -1, (4, 2)), (2, 4, (2, 4))])
def test_mesh_shapes(data, space, expected):
  mesh = sharding.create_mesh(data, space)
  assert dict(mesh.shape) == {"data": expected[0], "space": expected[1]}
  assert mesh.axis_names == ("data", "space")
  assert set(mesh.devices.ravel()) == set(jax.devices())
  assert len(jax.devices()) == 8


def test_devices_can_be_named():
  mesh = sharding.create_mesh(devices=jax.devices()[:3])
  assert dict(mesh.shape) == {"data": 3, "space": 1}
  assert list(mesh.devices.ravel()) == jax.devices()[:3]


@pytest.mark.parametrize(("data", "space"), [
    (3, 1), (-1, 3), (-1, 0), (16, 1), (4, 1), (-1, -1), (0, 8), (-2, -4),
    (-1, 16), (16, -1)])
def test_meshes_that_do_not_fit_are_refused(data, space):
  with pytest.raises(ConfigError) as error:
    sharding.create_mesh(data, space)
  message = str(error.value)
  assert f"mesh.data={data}" in message and f"mesh.space={space}" in message
  assert "8 device" in message


def mesh_of(data, space=1):
  """A stand-in with no devices: only the shape is looked at."""
  return types.SimpleNamespace(shape={"data": data, "space": space})


@pytest.mark.parametrize(("batch", "data"), [(16, 8), (8, 8), (3, 3), (5, 1)])
def test_batches_that_divide_are_accepted(batch, data):
  sharding.check_batch(batch, mesh_of(data))


@pytest.mark.parametrize(("batch", "data", "near"), [
    (12, 8, 16), (1, 8, 8), (15, 8, 16), (17, 8, 16), (0, 4, 4), (-8, 8, 8)])
def test_other_batches_are_refused_with_a_remedy(batch, data, near):
  with pytest.raises(ConfigError) as error:
    sharding.check_batch(batch, mesh_of(data))
  message = str(error.value)
  assert f"global_batch_size={batch}" in message
  assert re.search(rf"multiple of {data}, such as {near}(,|$)", message)


def test_meshes_that_would_do_are_named():
  with pytest.raises(ConfigError) as error:
    sharding.check_batch(12, mesh_of(8))
  meshes = [f"config.mesh.data={data} config.mesh.space={8 // data}"
            for data in (4, 2, 1)]
  assert str(error.value).endswith(" or ".join(meshes))


@pytest.mark.parametrize(("batch", "each", "parts", "expected"), [
    (16, 0, 1, 16), (16, 2, 1, 8), (16, 3, 2, 24), (16, 0, 4, 16)])
def test_the_batch_may_be_told_by_device(batch, each, parts, expected):
  config = default_config.get_config()
  config.global_batch_size, config.batch_per_device = batch, each
  config.accumulation_steps = parts
  sharding.settle_batch(config, mesh_of(4, 2))
  assert config.global_batch_size == expected


def test_parts_that_do_not_divide_are_refused_with_those_that_do():
  config = default_config.get_config()
  config.accumulation_steps = 3
  with pytest.raises(ConfigError) as error:
    sharding.settle_batch(config, mesh_of(2))
  message = str(error.value)
  assert "accumulation_steps=3" in message and "8 images" in message
  assert "1, 2, 4, 8," in message and "multiple of 6" in message


@pytest.mark.parametrize(("data", "space", "parts", "expected"), [
    (8, 1, 1, "2 on each of 8 devices"),
    (4, 2, 1, "4 on each 2 of 8 devices, 237 rows of an image on each"),
    (1, 1, 4, "16 on one, in 4 parts one after the other")])
def test_how_a_batch_lies_is_told(data, space, parts, expected):
  config = default_config.get_config()
  config.accumulation_steps = parts
  assert sharding.describe_batch(config, mesh_of(data, space)) == expected


def processes_mesh(data, space, per_process):
  """A stand-in whose devices know their process, as `create_mesh` has them."""
  devices = [types.SimpleNamespace(process_index=i // per_process, id=i)
             for i in range(data * space)]
  grid = np.array(devices).reshape(data, space)
  return types.SimpleNamespace(
      shape={"data": data, "space": space}, devices=grid)


@pytest.mark.parametrize(("data", "space", "per_process", "shares"), [
    (8, 1, 8, [(0, 1)]),
    (8, 1, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (4, 2, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
    (4, 2, 4, [(0, 2), (1, 2)]),
    (2, 4, 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # Two share their images.
    (1, 4, 1, [(0, 1)] * 4)])
def test_processes_that_share_images_read_the_same(
    monkeypatch, data, space, per_process, shares):
  mesh = processes_mesh(data, space, per_process)
  for process, share in enumerate(shares):
    monkeypatch.setattr(jax, "process_index", lambda p=process: p)
    assert sharding.data_share(mesh) == share


def test_rows_may_not_divide_a_processs_devices_unevenly():
  devices = processes_mesh(12, 1, 4).devices.ravel()
  with pytest.raises(ConfigError, match="space=6: each process has 4 devices"):
    sharding.create_mesh(2, 6, devices)


def test_devices_of_a_process_are_side_by_side():
  devices = [types.SimpleNamespace(process_index=p, id=i)
             for i, p in enumerate((1, 0, 1, 0))]
  with pytest.raises(ConfigError):  # Sorted first; 3 does not go into 4.
    sharding.create_mesh(3, 1, devices)
  assert [d.id for d in sharding.in_order(devices)] == [1, 3, 0, 2]


@pytest.mark.parametrize("space", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 64, 65, 473])
def test_rows_are_padded_to_the_next_that_divides(space, rows):
  padded = sharding.padded(rows, mesh_of(1, space))
  assert padded % space == 0 and rows <= padded < rows + space


def test_filler_rows_are_of_the_ignored_label():
  mesh = sharding.create_mesh(2, 4)
  rng = np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (4, 9, 5, 3)).astype(np.uint8),
           "label": rng.integers(0, 9, (4, 9, 5)).astype(np.uint8)}
  found = sharding.shard_batch(batch, mesh)
  for name, array in found.items():
    assert array.shape == (4, 12, *batch[name].shape[2:])
    np.testing.assert_array_equal(array[:, :9], batch[name])
    assert {s.data.shape[:2] for s in array.addressable_shards} == {(2, 3)}
  assert (np.asarray(found["label"])[:, 9:] == IGNORE_LABEL).all()


def test_a_batch_lies_by_images_and_rows():
  mesh = sharding.create_mesh(4, 2)
  image = np.arange(8 * 6 * 5 * 3).reshape(8, 6, 5, 3).astype(np.uint8)
  label = image[..., 0]
  batch = sharding.shard_batch({"image": image, "label": label}, mesh)
  assert set(batch) == {"image", "label"}
  for array, source in ((batch["image"], image), (batch["label"], label)):
    np.testing.assert_array_equal(array, source)
    assert array.dtype == np.uint8
    places = {shard.device: shard.data for shard in array.addressable_shards}
    for i in range(4):
      for j in range(2):
        np.testing.assert_array_equal(
            places[mesh.devices[i, j]],
            source[2 * i:2 * i + 2, 3 * j:3 * j + 3])


def test_replicated_arrays_lie_whole_on_every_device():
  mesh = sharding.create_mesh()
  value = np.arange(6.0).reshape(2, 3)
  array = jax.device_put(value, sharding.replicated(mesh))
  assert len(array.addressable_shards) == 8
  for shard in array.addressable_shards:
    np.testing.assert_array_equal(shard.data, value)
