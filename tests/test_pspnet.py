"""The whole network against a textbook restatement and published counts.

The restatement builds what the code avoids: upsampled bins, concatenated, and
one 3x3 convolution over them all.
"""

import functools
import importlib.util
import math
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import default_config
from psp_jax.data import scene_renderer
from psp_jax.models import create_model, pooling, prepack, pspnet

ROOT = pathlib.Path(__file__).parent.parent


def small_model(**kwargs):
  return pspnet.PSPNet(**{
      "num_classes": 5, "depth": 14, "stem": "32-32-64",
      "width_multiplier": 1 / 8, **kwargs})


def shapes_of(model):
  images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
  return jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, True), images)


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


def photo(*shape, seed=1):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- Published numbers.

V1C = "32-32-64"
DEEP = "64-64-128"


@pytest.mark.parametrize(("depth", "stem", "classes", "auxiliary", "count"), [
    (50, DEEP, 150, True, 49_180_908), (50, DEEP, 19, True, 49_080_038),
    (50, DEEP, 21, True, 49_081_578), (50, DEEP, 150, False, 46_782_550),
    (50, V1C, 150, True, 49_076_364), (101, DEEP, 150, True, 68_173_036),
    (152, DEEP, 150, False, 81_418_326), (269, DEEP, 150, False, 123_298_902)])
def test_parameter_counts_are_the_published_ones(
    depth, stem, classes, auxiliary, count):
  config = default_config.get_config()
  config.model.depth, config.model.stem = depth, stem
  config.model.num_classes, config.model.auxiliary = classes, auxiliary
  params = shapes_of(create_model(config))["params"]
  assert sum(p.size for p in jax.tree.leaves(params)) == count
  assert params["pyramid"]["kernel"].shape == (3, 3, 4096, 512)


# ---- The textbook network.


class Textbook:
  """PSPNet of one-block bottleneck stages, straight from its definition."""

  def __init__(self, train, strides, dilations, stride_in="3x3",
               bins=(1, 2, 3, 6), pool=jnp.mean, reduce=True):
    self.train, self.strides, self.dilations = train, strides, dilations
    self.stride_in, self.bins = stride_in, bins
    self.pool, self.reduce = pool, reduce

  def conv(self, x, kernel, stride=1, dilation=1):
    pad = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"))

  def norm(self, x, *path):
    params, stats = self.params, self.stats
    for name in path:
      params, stats = params[name], stats[name]
    if self.train:
      stats = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
    return ((x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5)
            * params["scale"] + params["bias"])

  def unit(self, x, *path, stride=1, dilation=1, relu=True):
    params = self.params
    for name in path:
      params = params[name]
    x = self.conv(x, params["conv"]["kernel"], stride, dilation)
    x = self.norm(x, *path, "bn")
    return jnp.maximum(x, 0) if relu else x

  def resize(self, x, height, width):
    def interpolate(x, axis, target):
      source = x.shape[axis]
      place = np.linspace(0, source - 1, target)
      low = np.floor(place).astype(int)
      high = np.ceil(place).astype(int)
      share = (place - low).astype(np.float32)
      share = share.reshape([-1 if a == axis else 1 for a in range(4)])
      return ((1 - share) * jnp.take(x, low, axis)
              + share * jnp.take(x, high, axis))
    return interpolate(interpolate(x, 1, height), 2, width)

  def adaptive_pool(self, x, bins):
    _, h, w, _ = x.shape
    return jnp.stack([jnp.stack([
        self.pool(x[:, i * h // bins:math.ceil((i + 1) * h / bins),
                    j * w // bins:math.ceil((j + 1) * w / bins)], axis=(1, 2))
        for j in range(bins)], 1) for i in range(bins)], 1)

  def classify(self, x, name, size):
    conv = self.params[name]["conv"]
    return self.resize(self.conv(x, conv["kernel"]) + conv["bias"], *size)

  def __call__(self, variables, images):
    self.params, self.stats = variables["params"], variables["batch_stats"]
    size, x = images.shape[1:3], images
    for i, stride in ((1, 2), (2, 1), (3, 1)):
      x = self.unit(x, "backbone", f"stem_conv{i}", stride=stride)
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1),
                              (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))
    for stage, (stride, dilation) in enumerate(
        zip(self.strides, self.dilations, strict=True), start=1):
      block = "backbone", f"layer{stage}_0"
      in_1x1, in_3x3 = (
          (stride, 1) if self.stride_in == "1x1" else (1, stride))
      y = self.unit(x, *block, "conv1", stride=in_1x1)
      y = self.unit(y, *block, "conv2", stride=in_3x3, dilation=dilation)
      y = self.unit(y, *block, "conv3", relu=False)
      x = self.unit(x, *block, "downsample", stride=stride, relu=False)
      x = jnp.maximum(x + y, 0)
      if stage == 3:
        layer3 = x
    maps = [x]
    for b in self.bins:
      z = self.adaptive_pool(x, b)
      if self.reduce:
        z = self.unit(z, "pyramid", f"bin{b}")
      maps.append(self.resize(z, *x.shape[1:3]))
    x = self.conv(jnp.concatenate(maps, -1), self.params["pyramid"]["kernel"])
    x = jnp.maximum(self.norm(x, "pyramid", "bn"), 0)
    logits = self.classify(x, "classifier", size)
    aux = self.classify(self.unit(layer3, "aux"), "aux_classifier", size)
    return logits, aux


NETS = {
    # The published network, and variants one or two choices away.
    "semseg": ({}, (1, 2, 1, 1), (1, 1, 2, 4), {}),
    "contracted, 1x1": ({"contract_dilation": True, "stride_in": "1x1"},
                        (1, 2, 1, 1), (1, 1, 1, 2), {"stride_in": "1x1"}),
    "output stride 16": ({"output_stride": 16}, (1, 2, 2, 1), (1, 1, 1, 2), {}),
    "max": ({"pool": "max"}, (1, 2, 1, 1), (1, 1, 2, 4), {"pool": jnp.max}),
    "no reduction": ({"reduce": False}, (1, 2, 1, 1), (1, 1, 2, 4),
                     {"reduce": False}),
    "bins 1 and 4": ({"bins": (1, 4)}, (1, 2, 1, 1), (1, 1, 2, 4),
                     {"bins": (1, 4)}),
    "no pyramid": ({"bins": ()}, (1, 2, 1, 1), (1, 1, 2, 4), {"bins": ()}),
}


@pytest.mark.parametrize(
    ("net", "size"), [("semseg", (49, 49)), *((n, (40, 57)) for n in NETS)])
def test_equals_the_textbook_network(net, size):
  options, strides, dilations, textbook_options = NETS[net]
  model = small_model(**options)
  variables = randomised(shapes_of(model))
  textbook = Textbook(False, strides, dilations, **textbook_options)
  images = photo(2, *size, 3)
  logits = jax.jit(model.apply)(variables, images)
  expected, _ = jax.jit(textbook)(variables, images)
  assert logits.shape == (2, *size, 5)
  assert expected.std() > 0.1  # Something to compare.
  np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)


def test_training_equals_the_textbook_network_with_batch_statistics():
  model = small_model(dropout=0.0)
  variables = randomised(shapes_of(model))
  images = photo(4, 40, 57, 3)
  (logits, aux), updates = jax.jit(functools.partial(
      model.apply, train=True, mutable=["batch_stats"]))(variables, images)
  expected = jax.jit(Textbook(True, (1, 2, 1, 1), (1, 1, 2, 4)))(
      variables, images)
  for ours, theirs in zip((logits, aux), expected, strict=True):
    # The loss upsamples, see losses.
    assert ours.shape == (4, 5, 8, 5) and ours.dtype == jnp.float32
    ours = pooling.resize(ours, 40, 57)
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
  # Every BatchNorm has seen the batch.
  for old, new in zip(jax.tree.leaves(variables["batch_stats"]),
                      jax.tree.leaves(updates["batch_stats"]), strict=True):
    assert np.abs(old - new).max() > 1e-3


# ---- Shapes, parts and options.


@pytest.mark.parametrize("size", [(33, 33), (32, 48), (25, 70), (8, 8), (1, 9)])
def test_logits_have_the_resolution_of_any_input(size):
  model = small_model()
  images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
  logits = jax.eval_shape(
      lambda v, x: model.apply(v, x), shapes_of(model), images)
  assert logits.shape == (2, *size, 5) and logits.dtype == jnp.float32
  (logits, aux), _ = jax.eval_shape(
      lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"],
                               rngs={"dropout": jax.random.key(0)}),
      shapes_of(model), images)
  assert logits.shape == aux.shape == (2, *(-(-s // 8) for s in size), 5)
  assert logits.dtype == aux.dtype == jnp.float32


def test_parts_by_name_and_size():
  params = shapes_of(small_model())["params"]
  assert set(params) == {
      "backbone", "pyramid", "classifier", "aux", "aux_classifier"}
  assert set(params["pyramid"]) == {
      "bin1", "bin2", "bin3", "bin6", "kernel", "bn"}
  assert params["pyramid"]["bin6"]["conv"]["kernel"].shape == (1, 1, 256, 64)
  assert params["pyramid"]["kernel"].shape == (3, 3, 512, 64)
  assert params["aux"]["conv"]["kernel"].shape == (3, 3, 128, 32)
  assert params["classifier"]["conv"]["bias"].shape == (5,)


def test_without_bins_there_is_no_pyramid():
  params = shapes_of(small_model(bins=()))["params"]
  assert set(params["pyramid"]) == {"kernel", "bn"}
  assert params["pyramid"]["kernel"].shape == (3, 3, 256, 64)


def test_without_reduction_pooled_features_keep_their_channels():
  params = shapes_of(small_model(reduce=False))["params"]
  assert set(params["pyramid"]) == {"kernel", "bn"}
  assert params["pyramid"]["kernel"].shape == (3, 3, 5 * 256, 64)


def test_head_and_auxiliary_channels_can_be_set():
  params = shapes_of(small_model(head_channels=24, aux_channels=12))["params"]
  assert params["pyramid"]["kernel"].shape == (3, 3, 512, 24)
  assert params["aux"]["conv"]["kernel"].shape == (3, 3, 128, 12)


def test_evaluation_does_not_touch_the_auxiliary_head():
  model = small_model(depth=10)
  variables = randomised(shapes_of(model))
  images = photo(1, 17, 25, 3)
  logits = jax.jit(model.apply)(variables, images)
  for name in ("aux", "aux_classifier"):
    del variables["params"][name]
  variables["batch_stats"].pop("aux")
  np.testing.assert_array_equal(
      jax.jit(model.apply)(variables, images), logits)


@pytest.mark.parametrize("bins", [(1, 2, 3, 6), ()])
def test_prepacked_inference_gives_the_same_without_the_kernels(bins):
  model = small_model(bins=bins, width_multiplier=1, num_stages=3)
  variables = randomised(shapes_of(model))
  images = photo(1, 121, 129, 3)
  infer = jax.jit(functools.partial(model.apply, train=False))
  kept = prepack(model, variables, images.shape)
  expected = infer(variables, images)
  # Dilated 3x3 convolutions and the head's are not looked at any more.
  params = flax.traverse_util.flatten_dict(variables["params"])
  used = [("backbone", "layer3_0", "conv2", "conv", "kernel"),
          ("pyramid", "kernel")]
  params |= {name: params[name] * np.nan for name in used}
  variables["params"] = flax.traverse_util.unflatten_dict(params)
  assert np.isnan(infer(variables, images)).all()
  for each in (images, photo(2, 65, 65, 3)):
    found = infer(variables | kept, each)
    assert not np.isnan(found).any()
  np.testing.assert_allclose(
      infer(variables | kept, images), expected,
      atol=1e-5 * np.abs(expected).max())


def test_parameters_alone_are_prepacked():
  model = small_model(width_multiplier=1, num_stages=3)
  variables = randomised(shapes_of(model))
  twice = jax.tree.map(lambda x: 2 * x, variables)
  one, other = (prepack(model, v, (1, 121, 121, 3))
                for v in (variables, twice))
  for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
    np.testing.assert_allclose(2 * a, b, rtol=1e-6)
  assert set(shapes_of(model)) == {"params", "batch_stats"}


def test_without_auxiliary_head_training_returns_none():
  model = small_model(depth=10, auxiliary=False)
  variables = randomised(shapes_of(model))
  assert not any("aux" in name for name in variables["params"])
  (logits, aux), _ = jax.eval_shape(
      lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"],
                               rngs={"dropout": jax.random.key(0)}),
      variables, photo(2, 17, 25, 3))
  assert aux is None and logits.shape == (2, 3, 4, 5)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_whole_channels(rate):
  channels = 400
  # An identity classifier shows what reaches it.
  variables = {"params": {"conv": {
      "kernel": jnp.eye(channels)[None, None], "bias": jnp.zeros(channels)}}}
  module = pspnet.Classifier(channels, rate)
  x = np.random.default_rng(0).uniform(1, 2, (2, 3, 4, channels))
  y = np.asarray(module.apply(
      variables, jnp.array(x, jnp.float32), True,
      rngs={"dropout": jax.random.key(0)}))
  dropped = (y == 0).all((1, 2))
  np.testing.assert_array_equal((y == 0).any((1, 2)), dropped)
  # Four standard deviations of 800 draws.
  assert abs(dropped.mean() - rate) < 4 * (rate * (1 - rate) / 800)**0.5
  assert (dropped[0] != dropped[1]).any()
  np.testing.assert_allclose(
      y, x * ~dropped[:, None, None] / (1 - rate), rtol=1e-5)
  np.testing.assert_allclose(
      module.apply(variables, jnp.array(x, jnp.float32), False), x, rtol=1e-6)


def test_both_heads_have_the_dropout():
  variables = randomised(shapes_of(small_model(depth=10)))
  images = photo(2, 17, 25, 3)
  for rate in (0.0, 0.5):
    model = small_model(depth=10, dropout=rate)
    apply = jax.jit(lambda key, model=model: model.apply(
        variables, images, train=True, mutable=["batch_stats"],
        rngs={"dropout": key})[0])
    for a, b in zip(*(apply(jax.random.key(i)) for i in (0, 1)), strict=True):
      assert np.abs(a - b).max() > 0.1 if rate else (a == b).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_and_parameters_are_float32_in_any_dtype(dtype):
  config = default_config.get_config()
  config.model.depth, config.model.width_multiplier = 10, 1 / 16
  config.model.num_classes, config.model.dtype = 5, dtype
  model = create_model(config)
  shapes = shapes_of(model)
  assert {p.dtype for p in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
  variables, images = randomised(shapes), photo(1, 33, 33, 3)
  logits = jax.jit(model.apply)(variables, images)
  assert logits.dtype == jnp.float32
  exact = jax.jit(model.clone(dtype=jnp.float32).apply)(variables, images)
  error = np.abs(logits - exact).max() / np.abs(exact).max()
  # bfloat16 keeps 8 bits; computing in it shows, and does not spoil.
  assert error == 0 if dtype == "float32" else 1e-4 < error < 0.1


# ---- The claim that the rendered scenes rest on.


def scene_logits(bins):
  """Logits of one scene as harbour and as city, and where its objects are."""
  spec = importlib.util.spec_from_file_location(
      "scenes_config", ROOT / "configs" / "scenes.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  config.model.pyramid.bins = bins
  config.model.dtype = "float32"
  model = create_model(config)
  variables = randomised(shapes_of(model))
  predict = jax.jit(model.apply)
  outputs = []
  for kind in scene_renderer.KINDS:
    image, label = scene_renderer.render(5, kind)
    image = (image.astype(np.float32) - 120) / 58
    outputs.append(np.asarray(predict(variables, image[None]))[0])
  objects = np.isin(label, (scene_renderer.CAR, scene_renderer.SKYSCRAPER))
  assert objects.sum() > 500
  return *outputs, objects


def test_a_net_without_pyramid_cannot_know_the_kind_of_scene():
  harbour, city, objects = scene_logits(())
  first = scene_renderer.STRIP_FLOOR + scene_renderer.CONTEXT_GAP
  assert not objects[:first].any()
  # Bit by bit, and in all rows where some scene may have an object.
  np.testing.assert_array_equal(harbour[first:], city[first:])
  assert np.abs(harbour - city).max() > 0.1  # The strip itself is seen.


def test_a_net_with_pyramid_can_know_the_kind_of_scene():
  harbour, city, objects = scene_logits((1, 2, 3, 6))
  difference = np.abs(harbour - city)[objects].max(-1)
  assert (difference > 1e-3).all()
