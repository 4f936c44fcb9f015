"""Keras's ResNet-50 into our tree: every tensor in its place, or an error.

Each synthetic tensor holds its own number, so that a swap shows; the stem's
folding is checked against what Keras computes; the real weights have to name
what a road photograph shows.
"""

import cv2
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import default_config
from psp_jax.data.normalize import normalize
from psp_jax.errors import CheckpointError
from psp_jax.models import pspnet, resnet
from psp_jax.pretrained import keras_resnet, load

BLOCKS = {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}
OUR_CONV = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "downsample"}


def keras_layers(width=64):
  """(suffix of the Keras name, kernel shape, our path) of every layer."""
  yield "conv1", (7, 7, 3, width), ("stem_conv1",)
  inputs = width
  for stage, letters in BLOCKS.items():
    inner = width * 2**(stage - 2)
    for i, letter in enumerate(letters):
      convs = {"2a": (1, 1, inputs, inner), "2b": (3, 3, inner, inner),
               "2c": (1, 1, inner, 4 * inner)}
      if i == 0:
        convs["1"] = (1, 1, inputs, 4 * inner)
      for branch, shape in convs.items():
        yield (f"{stage}{letter}_branch{branch}", shape,
               (f"layer{stage - 1}_{i}", OUR_CONV[branch]))
      inputs = 4 * inner


def keras_tensors(width=64):
  """Every tensor of the archive, each full of a number of its own."""
  tensors, number = {}, 0
  for suffix, shape, _ in keras_layers(width):
    conv, bn = (("conv1", "bn_conv1") if suffix == "conv1"
                else (f"res{suffix}", f"bn{suffix}"))
    for name, size in (
        (f"{conv}/kernel", shape), (f"{conv}/bias", shape[3:]),
        *((f"{bn}/{field}", shape[3:])
          for field in ("gamma", "beta", "moving_mean", "moving_variance"))):
      number += 1
      tensors[name] = np.full(size, number, np.float16)
  tensors["fc1000/kernel"] = np.zeros((32 * width, 1000), np.float16)
  tensors["fc1000/bias"] = np.zeros(1000, np.float16)
  return tensors


def variables_of(width=64):
  model = pspnet.PSPNet(3, 50, "7x7", stride_in="1x1",
                        width_multiplier=width / 64)
  images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
  return jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, True), images)


def load_backbone(path, variables, **fields):
  """As `config.model.pretrained=path` does."""
  config = default_config.get_config()
  config.model.update({"stem": "7x7", "stride_in": "1x1", **fields})
  return load(path, variables, config)


def at(tree, *path):
  for name in path:
    tree = tree[name]
  return tree


def test_every_tensor_comes_to_its_place(tmp_path):
  tensors = keras_tensors()
  assert len(tensors) == 320
  path = tmp_path / "resnet50.npz"
  np.savez(path, **tensors)
  variables = variables_of()
  loaded = load_backbone(str(path), variables)

  # What is not the backbone stays; the tree keeps its shapes and dtypes.
  assert set(loaded) == {"params", "batch_stats"}
  for collection in loaded:
    for name, value in variables[collection].items():
      if name != "backbone":
        assert loaded[collection][name] is value
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(
            (a.shape, a.dtype), (b.shape, b.dtype)),
        loaded[collection]["backbone"], variables[collection]["backbone"])

  for suffix, _, ours in keras_layers():
    conv, bn = (("conv1", "bn_conv1") if suffix == "conv1"
                else (f"res{suffix}", f"bn{suffix}"))

    def number(name):
      return float(tensors[name].flat[0])

    params = at(loaded["params"]["backbone"], *ours)
    stats = at(loaded["batch_stats"]["backbone"], *ours, "bn")
    expected = [
        (params["bn"]["scale"], number(f"{bn}/gamma")),
        (params["bn"]["bias"], number(f"{bn}/beta")),
        (stats["var"], number(f"{bn}/moving_variance") + 1e-3 - 1e-5)]
    if suffix != "conv1":  # The stem's fold has a test of its own.
      expected += [
          (params["conv"]["kernel"], number(f"{conv}/kernel")),
          (stats["mean"],
           number(f"{bn}/moving_mean") - number(f"{conv}/bias"))]
    for array, value in expected:
      np.testing.assert_allclose(array, value, rtol=1e-6, err_msg=suffix)


def test_the_stem_folds_exactly():
  """One output of the stem's BatchNorm, as Keras and as we compute it."""
  rng = np.random.default_rng(0)
  tensors = {
      "conv1/kernel": rng.normal(size=(7, 7, 3, 8)) / 500,
      "conv1/bias": rng.normal(size=8),
      "bn_conv1/gamma": rng.uniform(0.5, 2, 8),
      "bn_conv1/beta": rng.normal(size=8),
      "bn_conv1/moving_mean": rng.normal(size=8),
      # The smallest shows the epsilon.
      "bn_conv1/moving_variance": np.geomspace(1e-4, 10, 8)}
  ours = keras_resnet.convert(tensors)
  patch = rng.integers(0, 256, (7, 7, 3)).astype(float)  # RGB

  bgr = patch[..., ::-1] - [103.939, 116.779, 123.68]
  keras = (np.einsum("hwc,hwco->o", bgr, tensors["conv1/kernel"])
           + tensors["conv1/bias"])
  keras = ((keras - tensors["bn_conv1/moving_mean"])
           / np.sqrt(tensors["bn_conv1/moving_variance"] + 1e-3)
           * tensors["bn_conv1/gamma"] + tensors["bn_conv1/beta"])

  rgb = (patch - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
  x = np.einsum("hwc,hwco->o", rgb,
                ours["params", "stem_conv1", "conv", "kernel"])
  x = ((x - ours["batch_stats", "stem_conv1", "bn", "mean"])
       / np.sqrt(ours["batch_stats", "stem_conv1", "bn", "var"] + 1e-5)
       * ours["params", "stem_conv1", "bn", "scale"]
       + ours["params", "stem_conv1", "bn", "bias"])
  np.testing.assert_allclose(x, keras, rtol=1e-4, atol=1e-4)
  assert all(value.dtype == np.float32 for value in ours.values())
  assert len(ours) == 5  # The bias has gone into the mean.


def test_all_that_does_not_fit_is_listed_at_once(tmp_path):
  tensors = keras_tensors(4)
  del tensors["res3b_branch2b/kernel"], tensors["bn5c_branch2a/moving_mean"]
  tensors["res2a_branch1/kernel"] = np.zeros((1, 1, 4, 5))
  tensors["bn4f_branch2c/gamma"] = np.zeros(7)
  tensors["res6a_branch2a/kernel"] = np.zeros((2, 3))
  tensors["bn2a_branch2a/renorm"] = np.zeros(9)
  tensors["res3e_branch2c/kernel"] = np.zeros((1, 1, 8, 32))
  path = tmp_path / "odd.npz"
  np.savez(path, **tensors)
  with pytest.raises(CheckpointError) as error:
    load_backbone(str(path), variables_of(4))
  lines = str(error.value).splitlines()
  assert f"config.model.pretrained={path}" in lines[0]
  problems = {
      "missing": ["layer2_1/conv2/conv/kernel (3, 3, 8, 8)",
                  "layer4_2/conv1/bn/mean (32,)"],
      "left over": ["res6a_branch2a/kernel (2, 3)",
                    "bn2a_branch2a/renorm (9,)",
                    "layer2_4/conv3/conv/kernel (1, 1, 8, 32)"],
      "shape of": [
          "layer1_0/downsample/conv/kernel: (1, 1, 4, 5) in the file, "
          "(1, 1, 4, 16) in the model",
          "layer3_5/conv3/bn/scale: (7,) in the file, (64,) in the model"]}
  for kind, details in problems.items():
    found = [line for line in lines[1:] if line.strip().startswith(kind)]
    assert len(found) == len(details), kind
    for detail in details:
      assert any(line.endswith(detail) for line in found), detail
  assert len(lines) == 8


@pytest.mark.parametrize("fields", [
    {"stem": "32-32-64"}, {"stride_in": "3x3"}, {"avg_down": True}])
def test_a_net_of_another_make_is_refused(fields, tmp_path):
  # The stride's place does not show in any shape.
  path = tmp_path / "resnet50.npz"
  np.savez(path, **keras_tensors(4))
  needed = {"stem": "7x7", "stride_in": "1x1", "avg_down": False}
  field, = fields
  with pytest.raises(CheckpointError,
                     match=f"set --config.model.{field}={needed[field]}"):
    load_backbone(str(path), variables_of(4), **fields)


def new_name(name):
  """keras.applications' own renaming of its layers, in version 2.2.3."""
  layer, field = name.split("/")
  if layer in ("conv1", "bn_conv1"):
    return f"{'conv1_conv' if layer == 'conv1' else 'conv1_bn'}/{field}"
  if layer == "fc1000":
    return f"predictions/{field}"
  kind = "conv" if layer.startswith("res") else "bn"
  place, branch = layer.removeprefix("res").removeprefix("bn").split("_branch")
  number = {"1": 0, "2a": 1, "2b": 2, "2c": 3}[branch]
  return (f"conv{place[0]}_block{ord(place[1]) - 96}_{number}_{kind}/{field}")


@pytest.mark.parametrize("nested", [False, True])
def test_an_h5_of_either_generation_is_the_npz(nested, tmp_path):
  """Old names with epsilon 1e-3, new ones with 1.001e-5."""
  tensors = keras_tensors(4)
  np.savez(tmp_path / "old.npz", **tensors)
  for path, rename in (("old.h5", str), ("new.h5", new_name)):
    with h5py.File(tmp_path / path, "w") as file:
      for name, value in tensors.items():
        layer, field = rename(name).split("/")
        top = "model_weights/" if nested else ""
        file[f"{top}{layer}/{layer}/{field}:0"] = value
  npz, old, new = (load_backbone(str(tmp_path / name), variables_of(4))
                   for name in ("old.npz", "old.h5", "new.h5"))
  jax.tree.map(np.testing.assert_array_equal, npz["batch_stats"]["backbone"],
               old["batch_stats"]["backbone"])
  jax.tree.map(np.testing.assert_array_equal, npz["params"]["backbone"],
               new["params"]["backbone"])
  flat = jax.tree_util.tree_leaves_with_path(npz["batch_stats"]["backbone"])
  for (path, a), b in zip(
      flat, jax.tree.leaves(new["batch_stats"]["backbone"]), strict=True):
    change = 1e-3 - 1.001e-5 if path[-1].key == "var" else 0
    np.testing.assert_allclose(a, b + change, rtol=1e-6)


def text(path):
  path.write_text("<html>404: Not Found</html>")


def empty(path):
  path.write_bytes(b"")


def truncated(path):
  np.savez(path, **{"conv1/kernel": np.zeros((7, 7, 3, 64))})
  path.write_bytes(path.read_bytes()[:5_000])


def damaged(path):
  np.savez_compressed(
      path, **{"conv1/kernel": np.random.default_rng(0).random((7, 7, 3, 64))})
  data = bytearray(path.read_bytes())
  data[20_000:20_400] = bytes(400)
  path.write_bytes(data)


def one_array(path):
  with path.open("wb") as file:
    np.save(file, np.zeros((2, 2, 2)))


def pickled(path):
  np.savez(path, **{"conv1/kernel": np.array([{"a": 1}], dtype=object)})


@pytest.mark.parametrize(
    "write", [text, empty, truncated, damaged, one_array, pickled])
def test_files_of_another_kind_are_refused(write, tmp_path):
  path = tmp_path / "weights.npz"
  write(path)
  with pytest.raises(CheckpointError) as error:
    load_backbone(str(path), {})
  assert str(path) in str(error.value) and ".npz" in str(error.value)


@pytest.mark.parametrize("name", ["absent.npz", "."])
def test_an_absent_file_is_named(name, tmp_path):
  with pytest.raises(CheckpointError, match="no such file") as error:
    load_backbone(str(tmp_path / name), {})
  assert str(tmp_path / name) in str(error.value)


# ImageNet's classes that a road photograph may well be said to show.
ROAD_CLASSES = {
    436, 468, 511, 609, 627, 654, 656, 675, 705, 717, 734, 751, 779, 817, 820,
    829, 864, 874, 919, 920}


def test_the_real_weights_see_a_road(shared):
  path = shared / "weights" / "resnet50_imagenet_keras.npz"
  loaded = load_backbone(str(path), variables_of())
  backbone = {name: loaded[name]["backbone"] for name in loaded}
  variances = [
      leaf for key, leaf in jax.tree_util.tree_leaves_with_path(
          backbone["batch_stats"]) if key[-1].key == "var"]
  assert len(variances) == 53
  assert min(v.min() for v in variances) > 0
  assert max(v.max() for v in variances) > 80_000

  photos = sorted((shared / "data" / "CamVid" / "test").glob("*.png"))
  images = np.stack([
      cv2.resize(cv2.imread(str(photo))[:, :, ::-1], (224, 224),
                 interpolation=cv2.INTER_AREA)
      for photo in photos[::len(photos) // 2][:2]])
  model = resnet.ResNet(50, "7x7", output_stride=32, stride_in="1x1")
  _, layer4 = jax.jit(lambda v, x: model.apply(v, x, False))(
      backbone, normalize(images))
  with np.load(path) as archive:
    kernel, bias = archive["fc1000/kernel"], archive["fc1000/bias"]
  scores = np.asarray(layer4).mean((1, 2)) @ kernel.astype(np.float32) + bias
  for row in scores:
    top = set(np.argsort(row)[-5:].tolist())
    assert len(top & ROAD_CLASSES) >= 2, top
