"""Adaptive pooling, align-corners resizing and their folding, against loops.

The loops restate PyTorch's definitions; the textbook form of the head builds
the concatenation of upsampled bins that the folded form avoids.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax.models import pooling

MAPS = [(60, 60), (7, 9), (13, 6), (5, 4), (1, 3)]


def pool_loop(x, bins, reduction):
  n, h, w, c = x.shape
  out = np.zeros((n, bins, bins, c))
  for i in range(bins):
    for j in range(bins):
      rows = slice(math.floor(i * h / bins), math.ceil((i + 1) * h / bins))
      columns = slice(math.floor(j * w / bins), math.ceil((j + 1) * w / bins))
      out[:, i, j] = reduction(x[:, rows, columns].astype(float), (1, 2))
  return out


def resize_loop(x, height, width):
  """Sample position (target - 1 -> source - 1), in float64."""
  n, h, w, c = x.shape
  out = np.zeros((n, height, width, c))
  for i in range(height):
    for j in range(width):
      y = i * (h - 1) / (height - 1) if height > 1 else 0.0
      z = j * (w - 1) / (width - 1) if width > 1 else 0.0
      for r in range(h):
        for s in range(w):  # Hats: linear interpolation by definition.
          weight = max(0, 1 - abs(y - r)) * max(0, 1 - abs(z - s))
          out[:, i, j] += weight * x[:, r, s]
  return out


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [60, 90, 7, 13, 6, 5, 1])
def test_bin_edges_are_torchs(size, bins):
  expected = [(math.floor(i * size / bins), math.ceil((i + 1) * size / bins))
              for i in range(bins)]
  assert pooling.bin_edges(size, bins) == expected


def test_bins_overlap_where_the_size_does_not_divide():
  assert pooling.bin_edges(7, 3) == [(0, 3), (2, 5), (4, 7)]
  assert pooling.bin_edges(2, 3) == [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", MAPS)
@pytest.mark.parametrize("kind", ["average", "max"])
def test_adaptive_pool_equals_the_loop(kind, size, bins):
  rng = np.random.default_rng(0)
  x = (rng.normal(size=(2, *size, 3)) - 2).astype(np.float32)
  out = pooling.adaptive_pools(x, [bins], kind)[0]
  expected = pool_loop(x, bins, np.mean if kind == "average" else np.max)
  np.testing.assert_allclose(out, expected, atol=2e-6)


def test_averages_of_bfloat16_maps_are_summed_in_float32():
  rng = np.random.default_rng(0)
  x = jnp.array(1 + 0.1 * rng.normal(size=(1, 60, 60, 4)), jnp.bfloat16)
  out = pooling.adaptive_pools(x, [1])[0]
  assert out.dtype == jnp.bfloat16
  exact = np.asarray(x, np.float64).mean((1, 2))
  # Half a step of bfloat16 at 1, and no more.
  np.testing.assert_allclose(
      np.asarray(out, np.float64)[:, 0, 0], exact, atol=2**-8)


@pytest.mark.parametrize("source", [(1, 1), (2, 3), (6, 6), (9, 5)])
@pytest.mark.parametrize("target", [(1, 1), (1, 7), (8, 13), (17, 5), (3, 2)])
def test_resize_aligns_corners(source, target):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *source, 3)).astype(np.float32)
  out = pooling.resize(x, *target)
  np.testing.assert_allclose(out, resize_loop(x, *target), atol=1e-6)


def test_resize_keeps_corners_and_hits_every_eighth_pixel():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 5, 8, 2)).astype(np.float32)
  out = pooling.resize(x, 33, 57)
  np.testing.assert_allclose(out[:, ::8, ::8], x, atol=1e-6)


def test_resize_to_the_same_size_changes_nothing():
  x = np.random.default_rng(0).normal(size=(1, 5, 4, 2)).astype(np.float32)
  np.testing.assert_array_equal(pooling.resize(x, 5, 4), x)


def lax_conv(x, kernel):
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), ((1, 1), (1, 1)),
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("size", [(8, 8), (7, 12), (9, 5), (1, 4), (2, 1)])
def test_folded_convolution_equals_the_upsampled_one(size, bins):
  rng = np.random.default_rng(0)
  z = rng.normal(size=(2, bins, bins, 3)).astype(np.float32)
  kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
  expected = lax_conv(resize_loop(z, *size).astype(np.float32), kernel)
  out = pooling.conv_of_upsampled(z, kernel, *size)
  np.testing.assert_allclose(out, expected, atol=2e-5)


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (5, 11)])
def test_folded_head_equals_the_textbook_head_in_value_and_gradient(size):
  """conv3x3([x, upsampled bins]) against the sum of its folded parts."""
  bins, channels = (1, 2, 3, 6), 3
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *size, 4)).astype(np.float32)
  zs = [rng.normal(size=(2, b, b, channels)).astype(np.float32) for b in bins]
  kernel = rng.normal(
      size=(3, 3, 4 + channels * len(bins), 5)).astype(np.float32)
  dy = rng.normal(size=(2, *size, 5)).astype(np.float32)

  # Upsampling is linear: its loop on unit maps gives its matrices, which
  # autodiff can go through.
  def upsampled(z):
    b = z.shape[1]
    rows = resize_loop(np.eye(b)[None, :, None, :], size[0], 1)[0, :, 0]
    columns = resize_loop(np.eye(b)[None, None, :, :], 1, size[1])[0, 0]
    return jnp.einsum("ha,wb,nabc->nhwc", rows, columns, z)

  def textbook(x, zs, kernel):
    y = jnp.concatenate([x, *map(upsampled, zs)], -1)
    return lax_conv(y.astype(jnp.float32), kernel)

  def folded(x, zs, kernel):
    y = lax_conv(x, kernel[:, :, :4])
    for i, z in enumerate(zs):
      part = kernel[:, :, 4 + i * channels:4 + (i + 1) * channels]
      y = y + pooling.conv_of_upsampled(z, part, *size)
    return y

  def value_and_gradients(f):
    y, pull_back = jax.vjp(f, x, zs, kernel)
    return y, pull_back(dy)

  ours = jax.jit(lambda: value_and_gradients(folded))()
  expected = jax.jit(lambda: value_and_gradients(textbook))()
  for a, b in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("kind", ["average", "max"])
def test_pooling_gradient_equals_finite_differences(kind):
  rng = np.random.default_rng(0)
  x = rng.permutation(7 * 5 * 2).reshape(1, 7, 5, 2).astype(np.float32)
  dy = rng.normal(size=(1, 3, 3, 2)).astype(np.float32)
  gradient = jax.grad(
      lambda x: jnp.sum(pooling.adaptive_pools(x, [3], kind)[0] * dy))(x)
  reduction = np.mean if kind == "average" else np.max
  for index in np.ndindex(x.shape):
    # The values are whole numbers apart: a step of 0.25 reorders nothing.
    step = np.zeros(x.shape)
    step[index] = 0.25
    difference = (pool_loop(x + step, 3, reduction)
                  - pool_loop(x - step, 3, reduction))
    assert gradient[index] == pytest.approx(
        np.sum(difference * dy) / 0.5, abs=1e-5)


@pytest.mark.parametrize("level", ["0", "3"])
@pytest.mark.parametrize("bins", [1, 2, 6])
def test_the_gradient_of_max_goes_to_one_element(bins, level):
  """However XLA rounds what it pools when it computes that again.

  It does: jnp.max's own gradient is NaN or wrong at level 0, and lacks some
  elements at level 3, the default.
  """
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 9, 9, 64)).astype(np.float32)
  weights = rng.normal(size=(2, bins, bins, 64)).astype(np.float32)

  def features(x):  # A BatchNorm and a ReLU before the pooling, as there are.
    x = (x - x.mean((0, 1, 2))) * jax.lax.rsqrt(x.var((0, 1, 2)) + 1e-5)
    return jax.nn.relu(x * 1.3 + 0.1)

  def loss(offset, x):
    return (pooling.adaptive_pools(features(x) + offset, [bins], "max")[0]
            * weights).sum()

  gradient = jax.jit(jax.grad(loss)).lower(jnp.zeros_like(x), x).compile(
      compiler_options={"xla_backend_optimization_level": level})
  expected = np.zeros_like(x)
  values = np.asarray(features(x))
  for i, (top, bottom) in enumerate(pooling.bin_edges(9, bins)):
    for j, (left, right) in enumerate(pooling.bin_edges(9, bins)):
      for n, c in np.ndindex(2, 64):
        cell = values[n, top:bottom, left:right, c]
        y, z = np.unravel_index(cell.argmax(), cell.shape)
        expected[n, top + y, left + z, c] += weights[n, i, j, c]
  np.testing.assert_allclose(gradient(jnp.zeros_like(x), x), expected,
                             atol=1e-6)


def test_the_gradient_of_max_is_whole_where_elements_tie():
  gradient = jax.grad(lambda x: pooling.adaptive_pools(x, [1], "max")[0].sum())(
      jnp.ones((1, 3, 3, 2)))
  assert sorted(gradient[..., 0].ravel().tolist()) == [0.0] * 8 + [1.0]
