"""Meshes, what cannot be divided, and where a batch comes to lie."""

import types

import jax
import numpy as np
import pytest

from psp_jax import sharding
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
  assert f"multiple of {data}" in message and f"such as {near}," in message


def test_crops_divide_over_space():
  sharding.check_crop(473, mesh_of(8, 1))
  sharding.check_crop(480, mesh_of(2, 4))
  with pytest.raises(ConfigError) as error:
    sharding.check_crop(473, mesh_of(2, 4))
  message = str(error.value)
  assert "crop_size=473" in message and "space=4" in message


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
