"""Maps whose neighbouring columns share a pixel, for the stem on TPUs.

TPUs move arrays in tiles of 128 channels, of which the stem's 64 use half. In
pairs, (N, H, W, C) is (N, H, ceil(W / 2), 2 C): channel b * C + c of pair j is
channel c of column 2 j + b. Of an odd width the last half pair is filler; what
reads it must see zeros (`inside` tells which they are).

Exact: every function here is its namesake of `layers` on pairs. Each is a few
matrix products and shifts, so that the compiler finds no small-batch
convolution to rearrange.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def inside(width: int, channels: int) -> np.ndarray:
  """(ceil(width / 2), 2 * channels) bool: False is filler."""
  columns = np.arange(width + width % 2) < width
  return columns.repeat(channels).reshape(-1, 2 * channels)


def conv_of_images(images: Array, kernel: Array) -> Array:
  """A convolution of stride 2, padded as `layers.conv2d`, into pairs.

  Args:
    images: (N, H, W, C), not in pairs.
    kernel: (k, k, C, O), k odd.

  Returns:
    (N, ceil(H / 2), ceil(W / 4), 2 O): pairs of the ceil(W / 2) columns.
  """
  n, height, width, channels = images.shape
  size, _, _, features = kernel.shape
  rows, pairs = -(-height // 2), -(-width // 4)
  # A pair needs size + 2 columns from 4 j on: some blocks of four.
  blocks = -(-(size + 2) // 4)
  pad = size // 2
  images = jnp.pad(images, (
      (0, 0), (pad, 2 * rows + size - 2 - height - pad + 1),
      (pad, 4 * (pairs + blocks - 1) - width - pad), (0, 0)))
  x = images.reshape(n, -1, pairs + blocks - 1, 4 * channels)
  x = jnp.concatenate(
      [x[:, i:i + 2 * rows - 1:2] for i in range(size)], -1)
  # Column 2 j + b of the result reads its taps two columns further on.
  taps = jnp.stack([jnp.pad(kernel, (
      (0, 0), (2 * b, 4 * blocks - size - 2 * b), (0, 0), (0, 0)))
      for b in range(2)], 3)
  taps = taps.reshape(size, blocks, 4, channels, 2 * features)
  taps = taps.swapaxes(0, 1).reshape(blocks, -1, 2 * features)
  y = jax.lax.conv_general_dilated(
      x.reshape(n * rows, pairs + blocks - 1, -1), taps, (1,), "VALID",
      dimension_numbers=("NWC", "WIO", "NWC"))
  return y.reshape(n, rows, pairs, 2 * features)


def conv(x: Array, kernel: Array) -> Array:
  """A plain 3x3 convolution: (N, H, P, 2 C) -> (N, H, P, 2 O)."""
  n, height, _, _ = x.shape
  _, _, channels, features = kernel.shape
  padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
  rows = jnp.concatenate([padded[:, i:i + height] for i in range(3)], -1)
  # What each column gives to both of its own pair, and to the nearer column
  # of the pair before and of the one after.
  left, middle, right = kernel[:, 0], kernel[:, 1], kernel[:, 2]
  nothing = jnp.zeros_like(left)
  even = jnp.concatenate([middle, left, right, nothing], -1)
  odd = jnp.concatenate([right, middle, nothing, left], -1)
  taps = jnp.stack([even, odd], 1).reshape(6 * channels, 4 * features)
  y = jnp.einsum("nhwc,co->nhwo", rows, taps)
  own, before, after = jnp.split(y, (2 * features, 3 * features), -1)
  shifted = jnp.concatenate([
      jnp.pad(after[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0))),
      jnp.pad(before[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))], -1)
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return (own.astype(wide) + shifted.astype(wide)).astype(x.dtype)


def max_pool_3x3(x: Array) -> Array:
  """Out of pairs: (N, H, P, 2 C), none below 0, -> (N, ceil(H / 2), P, C).

  A gradient goes to the first of equal values, as PyTorch's.
  """
  even, odd = jnp.split(x, 2, -1)
  before = jnp.pad(odd[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
  x = _first_largest(before, even, odd)
  height = x.shape[1]
  # Zero stands for no pixel: after a ReLU it is the least value.
  x = jnp.pad(x, ((0, 0), (1, 1 + height % 2), (0, 0), (0, 0)))
  rows = -(-height // 2)
  return _first_largest(
      x[:, 0:2 * rows:2], x[:, 1:2 * rows:2], x[:, 2:2 * rows + 1:2])


def _first_largest(a: Array, b: Array, c: Array) -> Array:
  a = jnp.where(b > a, b, a)
  return jnp.where(c > a, c, a)
