"""Winograd's algorithm against its definition by numpy, in both precisions."""

import functools

import jax
import numpy as np
import pytest

from psp_jax.models import winograd

# height, width, dilation: below a tile, whole tiles, odd, phases of one pixel.
SIZES = [(1, 2, 1), (8, 4, 1), (5, 7, 1), (9, 8, 2), (7, 3, 4)]


def loop(x, kernel, dilation):
  height, width = x.shape[1:3]
  x = np.pad(x, ((0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0)))
  return sum(
      x[:, i * dilation:, j * dilation:][:, :height, :width] @ kernel[i, j]
      for i in range(3) for j in range(3))


def gradient_loop(x, dy, dilation):
  height, width = x.shape[1:3]
  x = np.pad(x, ((0, 0), (dilation,) * 2, (dilation,) * 2, (0, 0)))
  return np.array([[np.tensordot(
      x[:, i * dilation:, j * dilation:][:, :height, :width], dy,
      ((0, 1, 2),) * 2) for j in range(3)] for i in range(3)])


def draw(size, channels=5, features=3):
  rng = np.random.default_rng(0)
  return (rng.normal(size=(2, *size[:2], channels)),
          rng.normal(size=(3, 3, channels, features)),
          rng.normal(size=(2, *size[:2], features)))


@functools.partial(jax.jit, static_argnums=(3, 4))
def all_three(x, kernel, dy, dilation, m):
  values, turned = (winograd.kernel_values(kernel, m, t)
                    for t in (False, True))
  return (winograd.convolve(x, values, dilation),
          winograd.convolve(dy, turned, dilation, turned=True),
          winograd.kernel_gradient(x, dy, dilation, m))


def expected(x, kernel, dy, dilation):
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  return (loop(x, kernel, dilation), loop(dy, turned, dilation),
          gradient_loop(x, dy, dilation))


@pytest.mark.parametrize("m", [2, 4])
def test_matrices_are_exact(m):
  # Of one axis: what each input and each tap contribute to each output.
  at, g, bt = winograd.matrices(m)
  tensor = np.einsum("rt,tk,ti->rki", at, g, bt)
  for output in range(m):
    np.testing.assert_allclose(
        tensor[output], np.eye(3, m + 2, output), atol=1e-14)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_in_float64(size, m):
  arrays = draw(size)
  with jax.enable_x64(True):
    found = all_three(*arrays, size[2], m)
  for one, other in zip(found, expected(*arrays, size[2]), strict=True):
    assert one.dtype == np.float64
    np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(("m", "bound"), [(2, 1e-6), (4, 4e-6)])
def test_float32_keeps_its_digits(m, bound):
  x, kernel, dy = draw((12, 12), 256, 128)
  arrays = np.maximum(x, 0), kernel, dy  # As after a ReLU.
  found = all_three(*(a.astype(np.float32) for a in arrays), 1, m)
  for one, other in zip(found, expected(*arrays, 1), strict=True):
    assert np.abs(one - other).max() < bound * np.abs(other).max()
