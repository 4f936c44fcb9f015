"""Which form runs where, and that every form is the same function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax.models import convolution
from psp_jax.sharding import batch_sharding, create_mesh, replicated


def draw(*shapes, seed=0):
  rng = np.random.default_rng(seed)
  return [rng.normal(size=s).astype(np.float32) for s in shapes]


def native(x, kernel, stride, dilation):
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((dilation, dilation),) * 2,
      rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def value_and_gradients(conv, x, kernel, dy, stride, dilation):
  y, vjp = jax.vjp(lambda x, k: conv(x, k, stride, dilation), x, kernel)
  return y, *vjp(dy)


@pytest.mark.parametrize(("m", "size", "stride", "dilation"), [
    (2, (3, 12, 13), 1, 1), (4, (2, 32, 29), 1, 1), (4, (2, 35, 34), 1, 2),
    (0, (2, 5, 6), 1, 1), (0, (1, 30, 31), 2, 1)])
def test_wide_convolutions_and_their_gradients(m, size, stride, dilation):
  n, h, w = size
  x, kernel, dy = draw((n, h, w, 64), (3, 3, 64, 72),
                       (n, -(-h // stride), -(-w // stride), 72))
  assert convolution._tile(x, kernel, stride, dilation) == m
  found = value_and_gradients(
      convolution.conv2d, x, kernel, dy, stride, dilation)
  expected = value_and_gradients(native, x, kernel, dy, stride, dilation)
  for one, other in zip(found, expected, strict=True):
    scale = np.abs(other).max()
    np.testing.assert_allclose(one, other, atol=5e-6 * scale)
    # It is the other algorithm: its rounding differs.
    assert m == 0 or np.abs(one - other).max() > 0


@pytest.mark.parametrize(("shape", "dilation", "points"), [
    ((1, 30, 31, 64), 1, 36), ((2, 35, 34, 64), 2, 36),
    ((1, 10, 10, 64), 1, 16)])
def test_a_kernel_that_is_kept_gives_the_same(shape, dilation, points):
  x, other, kernel = draw(shape, (3, 20, 41, 64), (3, 3, 64, 72))
  values = convolution.kernel_values(x, kernel, 1, dilation)
  assert values.shape == (points, 64, 72)
  for each in (x, other):  # Maps of another size as well.
    expected = native(each, kernel, 1, dilation)
    # The kernel itself is not looked at.
    found = convolution.conv2d(each, None, 1, dilation, values)
    np.testing.assert_allclose(
        found, expected, atol=5e-6 * np.abs(expected).max())


def test_nothing_is_kept_of_other_convolutions():
  x = np.zeros((2, 40, 40, 64), np.float32)
  for kernel, stride in (((1, 1, 64, 64), 1), ((3, 3, 64, 64), 2),
                         ((3, 3, 64, 32), 1)):
    assert convolution.kernel_values(x, np.zeros(kernel), stride) is None
  assert convolution.kernel_values(
      x.astype(jnp.bfloat16), np.zeros((3, 3, 64, 64))) is None


def test_what_has_few_digits_or_channels_stays_plain():
  wide = np.zeros((2, 40, 40, 64), np.float32)
  assert convolution._tile(wide, np.zeros((3, 3, 64, 64)), 1, 1) == 4
  for x, kernel in ((wide.astype(jnp.bfloat16), (3, 3, 64, 64)),
                    (wide, (3, 3, 64, 32)), (wide, (7, 7, 64, 64)),
                    (wide[..., :3], (3, 3, 3, 64))):
    assert convolution._tile(x, np.zeros(kernel), 1, 1) == 0


def test_other_platforms_get_the_native_operations():
  x, kernel = draw((2, 32, 32, 64), (3, 3, 64, 64))

  def loss(x, kernel):
    y = convolution.max_pool_3x3(convolution.conv2d(x, kernel))
    return jnp.sum(y**2)

  traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
  for platform in ("tpu", "cuda"):
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.convolution") == 3
    assert "dot_general" not in text
    assert "select_and_scatter" in text
  text = traced.lower(lowering_platforms=("cpu",)).as_text()
  assert "stablehlo.convolution" not in text
  assert "select_and_scatter" not in text


def test_a_sharded_batch_is_not_gathered():
  mesh = create_mesh()
  x, kernel, dy = draw((8, 24, 24, 64), (3, 3, 64, 64), (8, 24, 24, 64))
  expected = value_and_gradients(convolution.conv2d, x, kernel, dy, 1, 2)
  assert convolution._tile(x, kernel, 1, 2)
  whole, parts = replicated(mesh), batch_sharding(mesh)
  compiled = jax.jit(
      lambda *a: value_and_gradients(convolution.conv2d, *a, 1, 2),
      in_shardings=(parts, whole, parts),
      out_shardings=(parts, parts, whole)).lower(x, kernel, dy).compile()
  text = compiled.as_text()
  assert "all-gather" not in text and "all-to-all" not in text
  assert "all-reduce" in text  # The kernel's gradient.
  found = compiled(*(jax.device_put(a, s) for a, s in (
      (x, parts), (kernel, whole), (dy, parts))))
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


def first_maxima(x, dy):
  """The gradient of 3x3 stride-2 pooling, window by window."""
  n, height, width, channels = x.shape
  dx = np.zeros_like(x)
  for i, r, c, k in np.ndindex(dy.shape):
    window = [(y, z) for y in range(max(0, 2 * r - 1), 2 * r + 2)
              for z in range(max(0, 2 * c - 1), 2 * c + 2)
              if y < height and z < width]
    y, z = max(window, key=lambda p: x[i, p[0], p[1], k])  # The first.
    dx[i, y, z, k] += dy[i, r, c, k]
  return dx


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 2)])
def test_max_pool_gradient_goes_to_the_first_maximum(size):
  h, w = size
  rng = np.random.default_rng(0)
  x = rng.integers(0, 3, (2, h, w, 3)).astype(np.float32)  # Many are equal.
  dy, = draw((2, -(-h // 2), -(-w // 2), 3))
  dx = jax.vjp(jax.jit(convolution.max_pool_3x3), x)[1](dy)[0]
  np.testing.assert_allclose(dx, first_maxima(x, dy), atol=1e-6)


def test_max_pool_shows_what_is_not_a_number():
  x = np.ones((1, 5, 5, 1), np.float32)
  x[0, 0, 0] = np.nan
  y, vjp = jax.vjp(convolution.max_pool_3x3, x)
  np.testing.assert_array_equal(
      np.argwhere(np.isnan(y[0, :, :, 0])), [[0, 0]])
  assert vjp(np.ones((1, 3, 3, 1), np.float32))[0][0, 0, 0] == 1


def test_resizing_is_the_same_in_either_order():
  x, rows, columns, dy = draw((2, 5, 4, 3), (7, 5), (9, 4), (2, 7, 9, 3))

  def loss(x):
    return jnp.sum(convolution.along_both_axes(x, rows, columns) * dy)

  value, gradient = jax.value_and_grad(loss)(x)
  expected = np.einsum("ha,wb,nabc->nhwc", rows, columns, x)
  assert value == pytest.approx(np.sum(expected * dy), rel=1e-5)
  np.testing.assert_allclose(
      gradient, np.einsum("ha,wb,nhwc->nabc", rows, columns, dy), atol=1e-5)


def test_sums_of_blocks_are_not_computed_again_in_later_ones():
  def blocks(x, kernels):
    for kernel in kernels:
      y = convolution.conv2d(x, kernel)
      x = convolution.add_relu(x, jnp.tanh(y))
    return x

  x, *kernels = draw((2, 8, 8, 16), *[(1, 1, 16, 16)] * 6)
  text = jax.jit(blocks).lower(x, kernels).compile().as_text()
  assert text.count(" tanh(") == 6 and text.count(" maximum(") == 6
  for platform in ("tpu", "cuda"):
    text = jax.jit(blocks).trace(x, kernels).lower(
        lowering_platforms=(platform,)).as_text()
    assert "inlineable" not in text


def test_a_blocks_end_is_relu_of_the_sum():
  x, y, dy = draw(*[(2, 3, 5, 7)] * 3)
  x[0], y[0] = 1, -1  # Where relu has no derivative, it is 0.
  found, vjp = jax.vjp(convolution.add_relu, x, y)
  np.testing.assert_array_equal(found, np.maximum(x + y, 0))
  for gradient in vjp(dy):
    np.testing.assert_array_equal(gradient, np.where(x + y > 0, dy, 0))
