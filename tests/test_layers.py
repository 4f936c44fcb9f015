"""Convolution, BatchNorm and max pooling against loops and closed forms.

PyTorch's definitions are restated as numpy loops: explicit padding on both
sides, biased variance to normalise with, unbiased variance to remember.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax.models import convolution, layers

CASES = [
    # size, stride, dilation, height, width
    (1, 1, 1, 5, 6), (1, 2, 1, 7, 8),
    (3, 1, 1, 6, 7), (3, 2, 1, 8, 7), (3, 2, 1, 9, 10),
    (3, 1, 2, 8, 9), (3, 2, 2, 9, 8), (3, 1, 4, 7, 10), (3, 2, 4, 10, 11),
    (7, 1, 1, 8, 5), (7, 2, 1, 11, 12), (7, 1, 2, 9, 8),
]


def conv_loop(x, kernel, stride, dilation):
  """Conv2d with padding dilation * (size // 2), in float64."""
  size = kernel.shape[0]
  pad = dilation * (size // 2)
  n, h, w, _ = x.shape
  rows = (h + 2 * pad - dilation * (size - 1) - 1) // stride + 1
  columns = (w + 2 * pad - dilation * (size - 1) - 1) // stride + 1
  out = np.zeros((n, rows, columns, kernel.shape[3]))
  for r in range(rows):
    for c in range(columns):
      for i in range(size):
        for j in range(size):
          y = r * stride - pad + i * dilation
          z = c * stride - pad + j * dilation
          if 0 <= y < h and 0 <= z < w:
            out[:, r, c] += x[:, y, z].astype(float) @ kernel[i, j]
  return out


def lax_conv(x, kernel, stride, dilation):
  pad = dilation * (kernel.shape[0] // 2)
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
      rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


def draw(case, seed=0):
  size, _, _, h, w = case
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(2, h, w, 3)).astype(np.float32),
          rng.normal(size=(size, size, 3, 4)).astype(np.float32))


@pytest.mark.parametrize("case", CASES)
def test_conv2d_equals_the_loop(case):
  x, kernel = draw(case)
  _, stride, dilation, h, w = case
  out = convolution.conv2d(x, kernel, stride, dilation)
  assert out.shape == (2, -(-h // stride), -(-w // stride), 4)
  np.testing.assert_allclose(
      out, conv_loop(x, kernel, stride, dilation), atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_conv2d_gradients_equal_autodiff_and_finite_differences(case):
  x, kernel = draw(case)
  _, stride, dilation, _, _ = case
  reference = conv_loop(x, kernel, stride, dilation)
  rng = np.random.default_rng(1)
  dy = rng.normal(size=reference.shape).astype(np.float32)

  def gradients(conv):
    return jax.grad(
        lambda x, k: jnp.sum(conv(x, k, stride, dilation) * dy),
        argnums=(0, 1))(x, kernel)

  dx, dkernel = gradients(convolution.conv2d)
  plain_dx, plain_dkernel = gradients(lax_conv)
  np.testing.assert_allclose(dx, plain_dx, atol=5e-5)
  np.testing.assert_allclose(dkernel, plain_dkernel, atol=2e-4)

  # A convolution is linear in either argument, so a central difference of
  # the float64 loop is exact for any step.
  for _ in range(3):
    vx, vk = rng.normal(size=x.shape), rng.normal(size=kernel.shape)
    by_x = (conv_loop(x + vx, kernel, stride, dilation)
            - conv_loop(x - vx, kernel, stride, dilation)) / 2
    by_kernel = (conv_loop(x, kernel + vk, stride, dilation)
                 - conv_loop(x, kernel - vk, stride, dilation)) / 2
    scale = np.linalg.norm(dy) * np.linalg.norm(by_x)
    assert abs(np.sum(dx * vx) - np.sum(by_x * dy)) < 1e-6 * scale
    scale = np.linalg.norm(dy) * np.linalg.norm(by_kernel)
    assert abs(np.sum(dkernel * vk) - np.sum(by_kernel * dy)) < 1e-6 * scale


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 2), (3, 4)])
@pytest.mark.parametrize("offset", [0.0, -10.0])
def test_max_pool_pads_with_minus_infinity(size, offset):
  h, w = size
  rng = np.random.default_rng(0)
  # With an offset of -10 every value is negative: zero padding would win.
  x = (rng.normal(size=(2, h, w, 3)) + offset).astype(np.float32)
  expected = np.zeros((2, (h + 1) // 2, (w + 1) // 2, 3), np.float32)
  for r in range(expected.shape[1]):
    for c in range(expected.shape[2]):
      window = x[:, max(0, 2 * r - 1):2 * r + 2, max(0, 2 * c - 1):2 * c + 2]
      expected[:, r, c] = window.max((1, 2))
  np.testing.assert_array_equal(
      convolution.max_pool_3x3(jnp.array(x)), expected)


def batch_norm_state(rng, features, near=0.0):
  return {
      "params": {
          "scale": rng.uniform(0.5, 1.5, features).astype(np.float32),
          "bias": rng.normal(size=features).astype(np.float32)},
      "batch_stats": {
          "mean": (near + rng.normal(size=features)).astype(np.float32),
          "var": rng.uniform(0.5, 2, features).astype(np.float32)}}


@pytest.mark.parametrize("momentum", [0.9, 0.5])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (4, 1, 1, 4)])
def test_batch_norm_trains_as_torch(shape, momentum):
  rng = np.random.default_rng(0)
  state = batch_norm_state(rng, 4)
  x = (3 * rng.normal(size=shape) + 2).astype(np.float32)
  y, updates = layers.BatchNorm(momentum=momentum, epsilon=1e-2).apply(
      state, x, True, mutable=["batch_stats"])

  x = x.astype(float).reshape(-1, 4)
  n = len(x)
  mean = x.sum(0) / n
  biased = ((x - mean)**2).sum(0) / n
  expected = (state["params"]["scale"] * (x - mean) / np.sqrt(biased + 1e-2)
              + state["params"]["bias"])
  np.testing.assert_allclose(y, expected.reshape(shape), atol=2e-5)
  old, new = state["batch_stats"], updates["batch_stats"]
  np.testing.assert_allclose(
      new["mean"], momentum * old["mean"] + (1 - momentum) * mean, rtol=1e-5)
  np.testing.assert_allclose(
      new["var"], momentum * old["var"]
      + (1 - momentum) * biased * n / (n - 1), rtol=1e-5)


def test_batch_norm_defaults_are_torchs():
  # An input of variance 1e-5 shows the epsilon; the mean shows the momentum.
  x = np.float32(np.sqrt(1e-5)) * np.array([1, -1] * 8, np.float32)
  x = x.reshape(4, 2, 2, 1)
  module = layers.BatchNorm()
  state = module.init(jax.random.key(0), x, True)
  np.testing.assert_array_equal(state["batch_stats"]["mean"], 0)
  np.testing.assert_array_equal(state["batch_stats"]["var"], 1)
  y, _ = module.apply(state, x, True, mutable=["batch_stats"])
  np.testing.assert_allclose(np.abs(y), 0.5**0.5, rtol=1e-3)
  _, updates = module.apply(state, x + 5, True, mutable=["batch_stats"])
  np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.5, rtol=1e-3)


def test_batch_norm_evaluates_with_the_running_statistics():
  rng = np.random.default_rng(0)
  state = batch_norm_state(rng, 3)
  x = (100 + 7 * rng.normal(size=(2, 4, 3, 3))).astype(np.float32)
  y, updates = layers.BatchNorm().apply(state, x, False, mutable=True)
  params, stats = state["params"], state["batch_stats"]
  expected = ((x - stats["mean"].astype(float))
              / np.sqrt(stats["var"] + 1e-5) * params["scale"]
              + params["bias"])
  np.testing.assert_allclose(y, expected, rtol=1e-4)
  np.testing.assert_array_equal(updates["batch_stats"]["mean"], stats["mean"])
  np.testing.assert_array_equal(updates["batch_stats"]["var"], stats["var"])


def test_initialising_batch_norm_leaves_its_statistics():
  x = 5 + jnp.arange(12.0).reshape(1, 2, 2, 3)
  state = layers.BatchNorm().init(jax.random.key(0), x, True)
  np.testing.assert_array_equal(state["batch_stats"]["mean"], np.zeros(3))
  np.testing.assert_array_equal(state["batch_stats"]["var"], np.ones(3))


def test_a_large_mean_does_not_cancel_in_the_variance():
  # E[x^2] is 1e6, where float32 steps are 0.06: six times this variance.
  rng = np.random.default_rng(0)
  state = batch_norm_state(rng, 4, near=1e3)
  x = (1e3 + 0.1 * rng.normal(size=(2, 16, 16, 4))).astype(np.float32)
  y, updates = layers.BatchNorm().apply(state, x, True,
                                        mutable=["batch_stats"])
  flat = x.astype(float).reshape(-1, 4)
  expected = (state["params"]["scale"] * (x - flat.mean(0))
              / np.sqrt(flat.var(0) + 1e-5) + state["params"]["bias"])
  np.testing.assert_allclose(y, expected, atol=1e-2)
  learned = (updates["batch_stats"]["var"]
             - 0.9 * state["batch_stats"]["var"]) / 0.1
  np.testing.assert_allclose(learned, flat.var(0, ddof=1), rtol=2e-2)


def test_batch_norm_gradient_equals_the_closed_form():
  rng = np.random.default_rng(0)
  state = batch_norm_state(rng, 3)
  x = (2 + rng.normal(size=(3, 4, 2, 3))).astype(np.float32)
  dy = rng.normal(size=x.shape).astype(np.float32)

  def loss(params, x):
    y, _ = layers.BatchNorm().apply(
        {"params": params, "batch_stats": state["batch_stats"]}, x, True,
        mutable=["batch_stats"])
    return jnp.sum(y * dy)

  dparams, dx = jax.grad(loss, argnums=(0, 1))(state["params"], x)
  x, dy = x.reshape(-1, 3).astype(float), dy.reshape(-1, 3)
  std = np.sqrt(x.var(0) + 1e-5)
  unit = (x - x.mean(0)) / std
  expected = state["params"]["scale"] / std * (
      dy - dy.mean(0) - unit * (dy * unit).mean(0))
  np.testing.assert_allclose(dx.reshape(-1, 3), expected, atol=1e-5)
  np.testing.assert_allclose(dparams["scale"], (dy * unit).sum(0), rtol=1e-4)
  np.testing.assert_allclose(dparams["bias"], dy.sum(0), rtol=1e-4)


def test_one_value_a_channel_stays_finite():
  # Pyramid bin 1 at batch 1, where PyTorch refuses to train.
  rng = np.random.default_rng(0)
  state = batch_norm_state(rng, 3)
  x = rng.normal(size=(1, 1, 1, 3)).astype(np.float32)
  y, updates = layers.BatchNorm().apply(state, x, True,
                                        mutable=["batch_stats"])
  np.testing.assert_allclose(y[0, 0, 0], state["params"]["bias"], atol=1e-3)
  np.testing.assert_allclose(updates["batch_stats"]["var"],
                             0.9 * state["batch_stats"]["var"], atol=1e-5)


def test_bfloat16_keeps_float32_parameters_and_statistics():
  rng = np.random.default_rng(0)
  x = jnp.array(3 + rng.normal(size=(4, 9, 9, 5)), jnp.bfloat16)
  module = layers.ConvBNReLU(6, 3, dtype=jnp.bfloat16)
  state = module.init(jax.random.key(0), x, True)
  assert {a.dtype for a in jax.tree.leaves(state)} == {jnp.dtype("float32")}
  y, _ = module.apply(state, x, True, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16

  norm = layers.BatchNorm(dtype=jnp.bfloat16)
  state = norm.init(jax.random.key(0), x, True)
  # A running mean that bfloat16 cannot hold.
  state["batch_stats"]["mean"] = jnp.full(5, 1.2345)
  _, updates = norm.apply(state, x, True, mutable=["batch_stats"])
  flat = np.asarray(x, np.float64).reshape(-1, 5)
  np.testing.assert_allclose(updates["batch_stats"]["mean"],
                             0.9 * 1.2345 + 0.1 * flat.mean(0), rtol=1e-5)
  np.testing.assert_allclose(updates["batch_stats"]["var"],
                             0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5)


def test_relu_can_be_left_out():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(1, 6, 6, 2)).astype(np.float32)
  with_relu, without = layers.ConvBNReLU(3), layers.ConvBNReLU(3, relu=False)
  state = with_relu.init(jax.random.key(0), x, False)
  linear = without.apply(state, x, False)
  assert linear.min() < -0.1
  np.testing.assert_array_equal(
      with_relu.apply(state, x, False), np.maximum(linear, 0))


def test_initial_distributions():
  x = jnp.zeros((1, 4, 4, 50))
  state = layers.Conv(80, 3).init(jax.random.key(0), x)["params"]
  # Kaiming over fan-out, 3 * 3 * 80; four standard errors of 36,000 values.
  assert state["kernel"].std() == pytest.approx((2 / 720)**0.5, rel=0.015)
  assert "bias" not in state

  state = layers.Conv(80, 3, use_bias=True, kernel_init=layers.torch_uniform
                      ).init(jax.random.key(0), x)["params"]
  bound = (3 * 3 * 50)**-0.5
  for values, least in ((state["kernel"], 0.999), (state["bias"], 0.9)):
    assert least * bound < jnp.abs(values).max() <= bound * 1.0001
  assert state["kernel"].std() == pytest.approx(bound / 3**0.5, rel=0.015)
  assert abs(state["bias"].mean()) < 0.3 * bound
