"""Adaptive pooling, bilinear resizing and their folding, as matrices.

Each is linear along one axis at a time, so each is a small constant matrix
built by numpy at trace time and applied by einsum: exact against PyTorch,
fast on matrix units, differentiable, exportable, any size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from psp_jax.models import phases
from psp_jax.models.convolution import along_both_axes, by_itself, taps_of
from psp_jax.models.winograd import cut


def bin_edges(size: int, bins: int) -> list[tuple[int, int]]:
  """[start, end) of each adaptive bin; bins overlap where size % bins."""
  return [(i * size // bins, -(-(i + 1) * size // bins)) for i in range(bins)]


def average_matrix(size: int, bins: int) -> np.ndarray:
  """(bins, size) matrix of torch's AdaptiveAvgPool along one axis."""
  matrix = np.zeros((bins, size))
  for i, (start, end) in enumerate(bin_edges(size, bins)):
    matrix[i, start:end] = 1 / (end - start)
  return matrix


def interpolation_taps(source: int, target: int, align_corners: bool = True):
  """(low, high, weight), each (target,): (1 - weight) x[low] + weight x[high].

  Either end on end, or (`align_corners=False`) half-pixel centres, as
  cv2.resize and torch's interpolate by default.
  """
  if align_corners:
    scale = (source - 1) / (target - 1) if target > 1 else 0.0
    position = np.arange(target) * scale
  else:
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    position = np.clip(position, 0, source - 1)
  low = np.minimum(np.floor(position).astype(int), source - 1)
  return low, np.minimum(low + 1, source - 1), position - low


def interpolation_matrix(
    source: int, target: int, align_corners: bool = True) -> np.ndarray:
  """(target, source) matrix of `interpolation_taps`."""
  low, high, weight = interpolation_taps(source, target, align_corners)
  matrix = np.zeros((target, source))
  np.add.at(matrix, (np.arange(target), low), 1 - weight)
  np.add.at(matrix, (np.arange(target), high), weight)
  return matrix


def adaptive_pools(x: jax.Array, bins, kind: str = "average",
                   num_phases: int = 1):
  """A map in phases -> [(N, b, b, C) for b in bins], "average" or "max"."""
  if kind == "max":
    x = phases.change(x, num_phases, 1)
    return [_max_pool(x, size) for size in bins]
  # fp32 sums: a bin averages up to a whole map, too many terms for bf16.
  wide = jnp.promote_types(x.dtype, jnp.float32)
  if num_phases == 1:
    return [along_both_axes(
        x.astype(wide), average_matrix(x.shape[1], size),
        average_matrix(x.shape[2], size)).astype(x.dtype) for size in bins]
  # TPUs want one pass over the map for all bins.
  p = num_phases
  height, width = (size * p for size in x.shape[1:3])
  rows = np.concatenate([average_matrix(height, size) for size in bins])
  pooled = jnp.einsum("rha,nabhwc->nrbwc",
                      rows.reshape(-1, height // p, p).astype(wide),
                      phases.axes(x, p), preferred_element_type=wide)
  out, start = [], 0
  for size in bins:
    columns = average_matrix(width, size).reshape(size, -1, p).astype(wide)
    out.append(jnp.einsum("swb,nrbwc->nrsc", columns,
                          pooled[:, start:start + size]).astype(x.dtype))
    start += size
  return out


def _max_pool(x: jax.Array, bins: int) -> jax.Array:
  height, width = x.shape[1:3]
  rows = [_max(cut(x, np.s_[a:b]), 1) for a, b in bin_edges(height, bins)]
  x = jnp.stack(rows, 1)
  columns = [_max(cut(x, *np.s_[:, a:b]), 2)
             for a, b in bin_edges(width, bins)]
  return jnp.stack(columns, 2)


def _max(x: jax.Array, axis: int) -> jax.Array:
  """x.max(axis) whose gradient goes to one element, as PyTorch's.

  jnp.max's gradient looks for elements equal to the maximum. XLA may compute
  x anew for that, rounded otherwise: then few or none are, and the gradient is
  wrong or 0 / 0.
  """
  chosen = jnp.argmax(x, axis, keepdims=True)
  here = jax.lax.broadcasted_iota(chosen.dtype, x.shape, axis) == chosen
  return jnp.where(here, x, 0).sum(axis)


def resize(x: jax.Array, height: int, width: int,
           align_corners: bool = True) -> jax.Array:
  """Bilinear: (N, h, w, C) -> (N, height, width, C)."""
  if x.shape[1:3] == (height, width):
    return x
  sizes = zip(x.shape[1:3], (height, width))

  def by_taps(x):
    for axis, size in enumerate((height, width), 1):
      x = _interpolate(x, axis, *interpolation_taps(
          x.shape[axis], size, align_corners))
    return x

  return jax.lax.platform_dependent(
      x, cpu=by_itself(by_taps), default=lambda x: along_both_axes(
          x, *(interpolation_matrix(*each, align_corners) for each in sizes)))


def _interpolate(x, axis, low, high, weight):
  shape = [1] * x.ndim
  shape[axis] = -1
  weight = jnp.asarray(weight, x.dtype).reshape(shape)
  return (jnp.take(x, low, axis) * (1 - weight)
          + jnp.take(x, high, axis) * weight)


def conv_of_upsampled(z: jax.Array, kernel: jax.Array, height: int,
                      width: int, align_corners: bool = True,
                      num_phases: int = 1) -> jax.Array:
  """conv2d(resize(z, height, width), kernel) without upsampling.

  With U the interpolation matrices and S_i the shift by i - k // 2 rows that
  fills with zeros (the convolution's padding),
    conv(U_h z U_w^T) = sum_ij S_i U_h (z kernel_ij) (S_j U_w)^T,
  so the channel products run on the few positions of z.

  Args:
    z: (N, a, b, C), a and b small.
    kernel: (k, k, C, O), k odd.
    height: of the map that z stands for.
    width: likewise.
    align_corners: of the upsampling.
    num_phases: p, of the result.

  Returns:
    (N * p * p, height / p, width / p, O).
  """
  taps = taps_of(z, kernel)
  p, size = num_phases, kernel.shape[0]
  rows, columns = (
      _shifted(interpolation_matrix(source, target, align_corners), size)
      .reshape(size, target // p, p, source).astype(z.dtype)
      for source, target in zip(z.shape[1:3], (height, width)))
  taps = jnp.einsum("jwqb,ijnabo->inaqwo", columns, taps)
  y = jnp.einsum("ihpa,inaqwo->npqhwo", rows, taps)
  return y.reshape(-1, *y.shape[3:])


def _shifted(matrix: np.ndarray, taps: int) -> np.ndarray:
  """(taps, H, a): row h of plane i is row h + i - taps // 2, or zero."""
  padded = np.pad(matrix, ((taps // 2, taps // 2), (0, 0)))
  return np.stack([padded[i:i + len(matrix)] for i in range(taps)])
