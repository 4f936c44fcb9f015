"""Backbones: sizes, strides, dilations, channel counts and parameter counts.

Dilation is judged by behaviour: what a convolution computed is recomputed
with the dilation that the convention asks for, and the receptive field is
measured by disturbing the input.
"""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import default_config
from psp_jax.errors import ConfigError
from psp_jax.models import create_model
from psp_jax.models.resnet import ResNet


def shapes_of(model, height=65, width=65):
  images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
  return jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, False), images)


def randomised(shapes, seed=0):
  """Kaiming kernels and BatchNorms that all differ from the identity."""
  rng = np.random.default_rng(seed)
  flat = {}
  for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
    if path[-1] == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      value = rng.normal(0, (2 / fan_in)**0.5, leaf.shape)
    elif path[-1] in ("scale", "var"):
      value = rng.uniform(0.7, 1.4, leaf.shape)
    else:
      value = rng.normal(0, 0.3, leaf.shape)
    flat[path] = value.astype(np.float32)
  return flax.traverse_util.unflatten_dict(flat)


@pytest.mark.parametrize("size", [(65, 65), (64, 64), (33, 50), (17, 8)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("depth", [10, 14])
def test_output_shapes(depth, output_stride, size):
  model = ResNet(depth, output_stride=output_stride, width_multiplier=0.25)
  shapes = shapes_of(model)
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  layer3, layer4 = jax.eval_shape(
      lambda v, x: model.apply(v, x, False), shapes, images)
  expansion = 4 if depth == 14 else 1
  for x, stride, channels in ((layer3, min(output_stride, 16), 64),
                              (layer4, output_stride, 128)):
    height, width = ((side - 1) // stride + 1 for side in size)
    assert x.shape == (2, height, width, channels * expansion)


def recompute(x, kernel, stride, dilation):
  pad = dilation * (kernel.shape[0] // 2)
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
      rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize(
    ("output_stride", "contract", "stride_in", "first", "others", "strides"), [
        (8, False, "3x3", (1, 1, 2, 4), (1, 1, 2, 4), (1, 2, 1, 1)),
        (8, True, "1x1", (1, 1, 1, 2), (1, 1, 2, 4), (1, 2, 1, 1)),
        (16, False, "1x1", (1, 1, 1, 2), (1, 1, 1, 2), (1, 2, 2, 1)),
        (16, True, "3x3", (1, 1, 1, 1), (1, 1, 1, 2), (1, 2, 2, 1)),
    ])
def test_every_3x3_has_its_dilation_and_stride(
    output_stride, contract, stride_in, first, others, strides):
  model = ResNet(50, "32-32-64", output_stride, stride_in, contract, 1 / 16)
  variables = randomised(shapes_of(model))
  x = np.random.default_rng(1).normal(size=(1, 97, 97, 3)).astype(np.float32)
  _, captured = jax.jit(functools.partial(
      model.apply, train=False, capture_intermediates=True,
      mutable=["intermediates"]))(variables, x)
  captured = captured["intermediates"]
  blocks = [f"layer{s + 1}_{b}" for s, n in enumerate((3, 4, 6, 3))
            for b in range(n)]
  assert {name for name in variables["params"] if "layer" in name
          } == set(blocks)
  for name in blocks:
    stage, block = int(name[5]) - 1, int(name[7])
    kernels = variables["params"][name]
    stride = strides[stage] if block == 0 else 1
    before, after = (stride, 1) if stride_in == "1x1" else (1, stride)
    inputs, = captured[name]["conv1"]["__call__"]
    outputs, = captured[name]["conv2"]["conv"]["__call__"]
    np.testing.assert_allclose(
        outputs, recompute(inputs, kernels["conv2"]["conv"]["kernel"], after,
                           (first if block == 0 else others)[stage]),
        rtol=1e-5, atol=1e-3, err_msg=name)
    if block == 0 and stage > 0:
      # The 1x1 convolutions that carry the stride, or do not.
      x, = captured[f"layer{stage}_{(3, 4, 6)[stage - 1] - 1}"]["__call__"]
      for conv, s in (("conv1", before), ("downsample", stride)):
        out, = captured[name][conv]["conv"]["__call__"]
        np.testing.assert_allclose(
            out, recompute(x, kernels[conv]["conv"]["kernel"], s, 1),
            rtol=1e-5, atol=1e-3, err_msg=f"{name} {conv}")
    assert ("downsample" in kernels) == (block == 0)


def test_basic_blocks_dilate_their_first_convolution():
  # As mmsegmentation's: the second 3x3 is never dilated or strided.
  model = ResNet(18, "7x7", 8, width_multiplier=1 / 16)
  variables = randomised(shapes_of(model))
  x = np.random.default_rng(1).normal(size=(1, 65, 65, 3)).astype(np.float32)
  _, captured = jax.jit(functools.partial(
      model.apply, train=False, capture_intermediates=True,
      mutable=["intermediates"]))(variables, x)
  captured = captured["intermediates"]
  previous = "layer2_1"
  for name, dilation in (("layer3_0", 2), ("layer3_1", 2), ("layer4_0", 4),
                         ("layer4_1", 4)):
    block, kernels = captured[name], variables["params"][name]
    for conv, source, d in (("conv1", captured[previous], dilation),
                            ("conv2", block["conv1"], 1)):
      np.testing.assert_allclose(
          block[conv]["conv"]["__call__"][0],
          recompute(source["__call__"][0], kernels[conv]["conv"]["kernel"],
                    1, d), rtol=1e-5, atol=1e-3, err_msg=f"{name} {conv}")
    previous = name


# Each 3x3 adds 2 * dilation * (stride so far) pixels: the stem to 11, the
# pooling to 15, layer1 to 23, layer2 to 31.
@pytest.mark.parametrize(("contract", "layer3", "layer4"), [
    (False, 31 + 2 * 2 * 8, 63 + 2 * 4 * 8),
    (True, 31 + 2 * 1 * 8, 47 + 2 * 2 * 8)])
def test_receptive_field(contract, layer3, layer4):
  model = ResNet(14, "32-32-64", 8, "3x3", contract, 1 / 16)
  # All weights positive: a larger input can only give a larger output.
  variables = jax.tree.map(
      lambda leaf: np.full(leaf.shape, 1 / np.prod(leaf.shape[:-1] or (1,)),
                           np.float32), shapes_of(model))
  centre, images = 64, [np.ones((129, 129, 3), np.float32)]
  radii = (layer3 // 2, layer4 // 2)
  for radius in radii:
    for margin in (1, 0):  # The field's edge is disturbed only with 0.
      for flip in (False, True):
        image = images[0].copy()
        image[:centre - radius + 1 - margin] += 1e3
        images.append(image[::-1] if flip else image)
        images.append(images[-1].transpose(1, 0, 2))
  outputs = jax.jit(lambda v, x: model.apply(v, x, False))(
      variables, np.stack(images))
  for i, x in enumerate(outputs):
    value = np.asarray(x)[:, centre // 8, centre // 8].sum(-1)
    changed = (value != value[0])[1 + 8 * i:9 + 8 * i]
    assert changed.tolist() == [False] * 4 + [True] * 4, f"layer{i + 3}"


@pytest.mark.parametrize(("stem", "channels", "size"), [
    ("64-64-128", (64, 64, 128), 3), ("32-32-64", (32, 32, 64), 3),
    ("7x7", (64,), 7)])
def test_stem_channels(stem, channels, size):
  params = shapes_of(ResNet(10, stem))["params"]
  before = 3
  for i, features in enumerate(channels, start=1):
    kernel = params[f"stem_conv{i}"]["conv"]["kernel"]
    assert kernel.shape == (size, size, before, features)
    before = features
  assert sum("stem" in name for name in params) == len(channels)
  assert params["layer1_0"]["conv1"]["conv"]["kernel"].shape[2] == before


def test_stem_computes_what_it_should():
  """Stride 2 in the first convolution alone, then the pooling."""
  model = ResNet(10, "32-32-64", width_multiplier=1 / 8)
  variables = randomised(shapes_of(model))
  x = np.random.default_rng(1).normal(size=(1, 21, 24, 3)).astype(np.float32)
  _, captured = model.apply(
      variables, x, False, capture_intermediates=True,
      mutable=["intermediates"])
  for i, stride in ((1, 2), (2, 1), (3, 1)):
    layer = variables["params"][f"stem_conv{i}"]
    stats = variables["batch_stats"][f"stem_conv{i}"]["bn"]
    x = recompute(x, layer["conv"]["kernel"], stride, 1)
    x = ((x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
         * layer["bn"]["scale"] + layer["bn"]["bias"]).clip(0)
    out, = captured["intermediates"][f"stem_conv{i}"]["__call__"]
    np.testing.assert_allclose(out, x, atol=1e-4)
  block, = captured["intermediates"]["layer1_0"]["conv1"]["conv"]["__call__"]
  assert block.shape[1:3] == (6, 6)


@pytest.mark.parametrize(("depth", "stem", "count"), [
    # torchvision's, less the classifier (513,000 or 2,049,000).
    (18, "7x7", 11_176_512), (34, "7x7", 21_284_672), (50, "7x7", 23_508_032),
    (101, "7x7", 42_500_160), (152, "7x7", 58_143_808),
    # semseg's deep stem and mmsegmentation's V1c.
    (50, "64-64-128", 23_631_808), (50, "32-32-64", 23_527_264)])
def test_parameter_counts(depth, stem, count):
  params = shapes_of(ResNet(depth, stem))["params"]
  assert sum(p.size for p in jax.tree.leaves(params)) == count


def test_width_multiplier_scales_every_stage():
  params = shapes_of(ResNet(14, "32-32-64", width_multiplier=0.25))["params"]
  assert params["stem_conv3"]["bn"]["scale"].shape == (16,)
  assert [params[f"layer{s}_0"]["conv3"]["bn"]["scale"].shape[0]
          for s in (1, 2, 3, 4)] == [64, 128, 256, 512]


@pytest.mark.parametrize(("field", "value"), [
    ("depth", 51), ("stem", "64-64-64"), ("output_stride", 4),
    ("stride_in", "2x2"), ("pyramid.pool", "median"), ("dtype", "float16"),
    ("pyramid.bins", (1, 0)), ("pyramid.bins", (1, 2.5)),
    ("pyramid.bins", (2, 2))])
def test_unknown_values_are_refused_by_name(field, value):
  config = default_config.get_config()
  create_model(config)
  with config.ignore_type():
    config.update_from_flattened_dict({f"model.{field}": value})
  with pytest.raises(ConfigError) as error:
    create_model(config)
  assert f"model.{field}" in str(error.value)
  assert repr(value) in str(error.value)
