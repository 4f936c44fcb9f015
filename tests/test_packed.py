"""Maps rearranged for TPUs: the same functions as of maps as they are.

Convolutions and pooling are compared with the plain ones one by one, whole
networks in float64, where another order of sums shows as 1e-12.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import default_config, sharding
from psp_jax.errors import ConfigError
from psp_jax.models import (
  convolution,
  create_model,
  is_packed,
  layers,
  pairs,
  phases,
  resnet,
)

SIZES = [(5, 4), (6, 7), (9, 9), (1, 3)]


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def with_gradients(function, x, kernel, seed=1):
  """The value and both gradients, in float64."""
  @jax.jit
  def both(x, kernel):
    y, vjp = jax.vjp(function, x, kernel)
    return y, *vjp(jnp.array(draw(*y.shape, seed=seed)))

  with jax.enable_x64(True):
    return [np.asarray(a) for a in both(jnp.array(x), jnp.array(kernel))]


def plain(stride=1, dilation=1):
  return lambda x, kernel: convolution._native_conv(
      x, kernel, stride, dilation)


def assert_close(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-10)


# ---- Phases.


@pytest.mark.parametrize("p", [1, 2, 3])
def test_phases_are_every_pth_pixel_and_back(p):
  x = draw(2, 6, 12, 3)
  y = np.asarray(phases.change(jnp.array(x), 1, p))
  assert y.shape == (2 * p * p, 6 // p, 12 // p, 3)
  for n, a, b in np.ndindex(2, p, p):
    np.testing.assert_array_equal(
        y[(n * p + a) * p + b], x[n, a::p, b::p].astype(np.float32))
  for after in (1, 2, 3):
    np.testing.assert_array_equal(
        phases.change(y, p, after), phases.change(jnp.array(x), 1, after))


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_rows_side_by_side_are_the_convolution(size, dilation):
  x, kernel = draw(2, *size, 3), draw(3, 3, 3, 5)
  assert_close(
      with_gradients(functools.partial(
          phases.conv_by_rows, dilation=dilation), x, kernel),
      with_gradients(plain(dilation=dilation), x, kernel))


@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize(("size", "p"), [
    *((size, 1) for size in SIZES), ((6, 4), 2), ((8, 2), 2), ((6, 9), 3)])
def test_products_and_shifts_are_the_convolution(size, p, taps):
  x, kernel = draw(2, *size, 6), draw(taps, taps, 6, 4)

  def ours(x, kernel):
    return phases.change(phases.conv(phases.change(x, 1, p), kernel, p), p, 1)

  assert_close(
      with_gradients(ours, x, kernel),
      with_gradients(plain(), x, kernel))


# ---- Pairs.


def to_pairs(x):
  n, h, w, c = x.shape
  x = jnp.pad(x, ((0, 0), (0, 0), (0, w % 2), (0, 0)))
  return x.reshape(n, h, -1, 2 * c)


def from_pairs(x, width):
  n, h, p, c = x.shape
  return x.reshape(n, h, 2 * p, c // 2)[:, :, :width]


@pytest.mark.parametrize("size", SIZES)
def test_a_convolution_of_pairs_is_the_convolution(size):
  x, kernel = draw(2, *size, 3), draw(3, 3, 3, 4)
  assert_close(
      with_gradients(lambda x, k: from_pairs(
          pairs.conv(to_pairs(x), k), size[1]), x, kernel),
      with_gradients(plain(), x, kernel))


@pytest.mark.parametrize("taps", [3, 7])
@pytest.mark.parametrize("size", [*SIZES, (7, 11), (7, 13), (5, 15), (5, 16)])
def test_the_first_convolution_makes_pairs(size, taps):
  x, kernel = draw(2, *size, 3), draw(taps, taps, 3, 4)
  assert_close(
      with_gradients(lambda x, k: from_pairs(
          pairs.conv_of_images(x, k), -(-size[1] // 2)), x, kernel),
      with_gradients(plain(stride=2), x, kernel))


@pytest.mark.parametrize("size", SIZES)
def test_pooling_of_pairs_is_pooling_and_picks_one_of_equals(size):
  # Few values: most windows hold the largest more than once.
  x = np.random.default_rng(0).integers(0, 3, (2, *size, 3)).astype(float)
  ours, theirs = (with_gradients(f, x, np.zeros(1)) for f in (
      lambda x, _: pairs.max_pool_3x3(to_pairs(x)),
      lambda x, _: convolution.max_pool_3x3(x)))
  np.testing.assert_array_equal(ours[0], theirs[0])
  np.testing.assert_allclose(ours[1][x > 0], theirs[1][x > 0], atol=1e-12)


def test_filler_is_the_second_half_of_the_last_pair_of_an_odd_width():
  assert pairs.inside(4, 3).all()
  inside = pairs.inside(5, 2)
  assert inside.shape == (3, 4) and inside.sum() == 10
  assert not inside[2, 2:].any()


def test_batchnorm_of_pairs_does_not_count_the_filler():
  x = draw(3, 4, 7, 5)
  filled = np.array(to_pairs(jnp.array(x, jnp.float32)))
  filled[:, :, -1, 5:] = 1e6
  results = []
  for width, value in ((None, x), (7, filled)):
    module = layers.BatchNorm(pair_width=width)
    value = jnp.array(value, jnp.float32)
    variables = module.init(jax.random.key(0), value, True)
    y, updates = module.apply(variables, value, True, mutable=["batch_stats"])
    results.append((y, updates["batch_stats"]))
  (plain, stats), (paired, paired_stats) = results
  np.testing.assert_allclose(from_pairs(paired, 7), plain, atol=1e-5)
  np.testing.assert_array_equal(paired[:, :, -1, 5:], 0)
  for name in ("mean", "var"):
    np.testing.assert_allclose(stats[name], paired_stats[name], rtol=1e-5)


# ---- Whole networks.

NETWORKS = {
    "semseg, odd map": ({}, (49, 57)),
    "others' ways, even map": (
        {"contract_dilation": True, "stem": "7x7", "stride_in": "1x1",
         "avg_down": True, "align_corners": False, "pyramid.pool": "max"},
        (48, 64)),
}


def network(fields, layout):
  config = default_config.get_config()
  config.model.update({"depth": 14, "width_multiplier": 1 / 16,
                       "num_classes": 5, "layout": layout})
  for name, value in fields.items():
    *inner, last = name.split(".")
    setattr(config.model.pyramid if inner else config.model, last, value)
  return create_model(config)


def step(model, variables, images, key):
  """Logits, batch statistics and gradients of a loss of both heads."""
  def loss(params):
    outputs, updates = model.apply(
        {**variables, "params": params}, images, train=True,
        mutable=["batch_stats"], rngs={"dropout": key})
    return sum((x**2).mean() for x in outputs), (outputs, updates)

  (_, rest), gradients = jax.value_and_grad(loss, has_aux=True)(
      variables["params"])
  return rest, gradients, model.apply(variables, images)


def drawn(model):
  """Variables, without the compilation of `model.init`."""
  shapes = jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=True))
  rng = np.random.default_rng(0)

  def draw_leaf(leaf):
    if len(leaf.shape) < 4:  # BatchNorm's; a variance is positive.
      return jnp.array(rng.uniform(0.5, 1.5, leaf.shape))
    deviation = np.prod(leaf.shape[:3])**-0.5
    return jnp.array(rng.normal(0, deviation, leaf.shape))

  return jax.tree.map(draw_leaf, shapes)


@pytest.mark.parametrize("case", NETWORKS)
def test_the_packed_network_is_the_network(case, monkeypatch):
  fields, size = NETWORKS[case]
  # Blocks that follow others, whose sums they compute again.
  monkeypatch.setitem(
      resnet.ARCHITECTURES, 14, ((1, 1, 2, 1), "bottleneck"))
  with jax.enable_x64(True):
    images = jnp.array(draw(2, *size, 3))
    results = []
    for layout in ("plain", "packed"):
      model = network(fields, layout).clone(dtype=jnp.float64)
      assert model.packed == (layout == "packed")
      results.append(jax.jit(functools.partial(step, model))(
          drawn(model), images, jax.random.key(1)))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
      assert np.abs(a - b).max() <= 1e-9 * max(1, np.abs(a).max())


def test_a_batch_on_many_devices_stays_on_them():
  """No activation crosses devices for the rearrangement's sake."""
  model = network({}, "packed")
  images = jax.ShapeDtypeStruct((16, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(lambda: drawn(model))
  mesh = sharding.create_mesh(8, 1)
  compiled = jax.jit(
      functools.partial(step, model),
      in_shardings=(sharding.replicated(mesh), sharding.batch_sharding(mesh),
                    None)).lower(
          variables, images, jax.eval_shape(lambda: jax.random.key(0)))
  text = compiled.compile().as_text()
  assert "all-reduce" in text
  for moved in ("all-gather(", "all-to-all(", "collective-permute("):
    assert moved not in text, moved


@pytest.mark.parametrize(("layout", "space", "packed"), [
    ("packed", 1, True), ("packed", 2, True), ("plain", 1, False),
    ("auto", 1, False)])
def test_the_layout_is_the_platforms_unless_named(layout, space, packed):
  config = default_config.get_config()
  config.model.layout, config.mesh.space = layout, space
  assert is_packed(config) == packed


def test_on_a_tpu_maps_are_packed_unless_rows_are_split(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  config = default_config.get_config()
  assert is_packed(config)
  config.mesh.space = 2
  assert not is_packed(config)


def test_an_unknown_layout_is_refused():
  config = default_config.get_config()
  config.model.layout = "tpu"
  with pytest.raises(ConfigError, match="model.layout='tpu'.*'packed'"):
    create_model(config)


def test_computing_again_changes_memory_and_nothing_else():
  images = jnp.array(draw(2, 33, 33, 3), jnp.float32)
  results = []
  for remat in (False, True):
    model = network({"remat": remat, "depth": 10}, "plain")
    results.append(jax.jit(functools.partial(step, model))(
        drawn(model), images, jax.random.key(1)))
    text = str(jax.make_jaxpr(functools.partial(step, model))(
        drawn(model), images, jax.random.key(1)))
    assert ("checkpoint" in text or "remat" in text) == remat
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
