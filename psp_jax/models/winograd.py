"""3x3 convolutions of stride 1 with fewer multiplications (Winograd).

F(m x m, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks" (CVPR 2016): an m x m tile of the output is
  A^T [(G k G^T) * (B^T d B)] A
of the (m + 2) x (m + 2) tile d of the input that it depends on; the product
sums over channels, so that a layer becomes (m + 2)^2 matrix products instead
of 9 m^2 of the same size. Exact but for rounding. A dilated convolution is a
plain one of every d-th pixel; those phases are axes of the tiles here and cost
nothing.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

# Where the polynomials behind the algorithm are evaluated, besides infinity.
# Of those tried these lose the fewest digits.
_POINTS = {2: (0, 1, -1), 4: (0, 0.5**0.5, -0.5**0.5, 2**0.5, -2**0.5)}


def cut(x: Array, *slices: slice) -> Array:
  """x[:, *slices], as slices also where the batch is symbolic.

  Indexing an array whose shape is not known in full makes a gather.
  """
  for axis, wanted in enumerate(slices, 1):
    if wanted not in (slice(None), slice(None, None, 1)):
      x = jax.lax.slice_in_dim(x, *wanted.indices(x.shape[axis]), axis)
  return x


@functools.cache
def matrices(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A^T (m, m + 2), G (m + 2, 3) and B^T (m + 2, m + 2); m is 2 or 4.

  Toom-Cook: two polynomials are multiplied by their values at some points and
  at infinity, and convolution of a tile is the transpose of that.
  """
  points = np.array(_POINTS[m], float)
  others = [np.delete(points, i) for i in range(m + 1)]
  infinity = np.eye(1, m + 2, m + 1)
  a = np.vander(points, m, increasing=True)
  a = np.concatenate([a, infinity[:, 2:]]).T
  g = np.vander(points, 3, increasing=True) / [
      [np.prod(p - o)] for p, o in zip(points, others, strict=True)]
  g = np.concatenate([g, infinity[:, -3:]])
  b = np.zeros((m + 2, m + 2))
  for row, roots in zip(b, (*others, points), strict=True):
    coefficients = np.poly(roots)[::-1]
    row[:len(coefficients)] = coefficients
  # The middle coefficients are zeros but for rounding where roots are +-p.
  return a, g, np.where(np.abs(b) < 1e-12, 0, b)


def kernel_values(kernel: Array, m: int, turned: bool = False) -> Array:
  """G k G^T: (3, 3, C, O) to ((m + 2)^2, C, O), or of the kernel upside down.

  m is the output tile's side, 2 or 4.
  """
  g = np.kron(*[matrices(m)[1]] * 2)
  return _times(g[:, ::-1] if turned else g,
                kernel.reshape(9, *kernel.shape[2:]))


def convolve(x: Array, values: Array, dilation: int,
             turned: bool = False) -> Array:
  """The convolution of stride 1, padded with zeros to keep the size.

  Args:
    x: (N, H, W, C).
    values: ((m + 2)^2, C, O), the kernel's.
    dilation: of both axes.
    turned: `values` is ((m + 2)^2, O, C), as in the gradient by the input.

  Returns:
    (N, H, W, O).
  """
  m = math.isqrt(len(values)) - 2
  at = matrices(m)[0]
  n, height, width, _ = x.shape
  tiles, (h, w) = _input_tiles(x, dilation, m)
  products = jnp.einsum("trc,toc->tro" if turned else "trc,tco->tro",
                        tiles, values)
  out = _times(np.kron(at, at), products)
  out = out.reshape(m, m, n, h, dilation, w, dilation, -1)
  out = out.transpose(2, 3, 0, 4, 5, 1, 6, 7)
  out = out.reshape(n, h * m * dilation, w * m * dilation, -1)
  return cut(out, *np.s_[:height, :width])


def kernel_gradient(x: Array, dy: Array, dilation: int, m: int) -> Array:
  """The gradient of sum(convolve(x, kernel) * dy) by the kernel.

  G^T [sum over tiles of (B^T d B)^T (A dy A^T)] G.
  """
  at, g, _ = matrices(m)
  tiles, (h, w) = _input_tiles(x, dilation, m)
  n, height, width, features = dy.shape
  dy = jnp.pad(dy, ((0, 0), (0, h * m * dilation - height),
                    (0, w * m * dilation - width), (0, 0)))
  dy = dy.reshape(n, h, m, dilation, w, m, dilation, features)
  dy = dy.transpose(2, 5, 0, 1, 3, 4, 6, 7).reshape(m * m, -1, features)
  dy = _times(np.kron(at, at).T, dy)
  values = jnp.einsum("trc,tro->tco", tiles, dy)
  return _times(np.kron(g, g).T, values).reshape(3, 3, *values.shape[1:])


def _input_tiles(x, dilation, m):
  """B^T d B of all tiles, ((m + 2)^2, rows, C), and their number by axis.

  A row is an image, a tile's row, a phase's row, a tile's column and a phase's
  column.
  """
  n, height, width, channels = x.shape
  h, w = (-(-size // (m * dilation)) for size in (height, width))
  x = jnp.pad(x, ((0, 0),
                  (dilation, (h * m + 1) * dilation - height),
                  (dilation, (w * m + 1) * dilation - width), (0, 0)))
  x = x.reshape(n, h * m + 2, dilation, w * m + 2, dilation, channels)
  bt = matrices(m)[2]
  # Each axis by itself, with additions: half the time of one matrix product.
  parts = [cut(x, np.s_[i:i + (h - 1) * m + 1:m]) for i in range(m + 2)]
  x = jnp.stack([_combination(c, parts) for c in bt])
  parts = [cut(x, *np.s_[:, :, :, j:j + (w - 1) * m + 1:m])
           for j in range(m + 2)]
  x = jnp.stack([_combination(c, parts) for c in bt], 1)
  return x.reshape((m + 2)**2, -1, channels), (h, w)


def _combination(coefficients, parts):
  """The sum of the products, without those by zero."""
  terms = [p if c == 1 else -p if c == -1 else p * p.dtype.type(c)
           for c, p in zip(coefficients, parts, strict=True) if c]
  return functools.reduce(jnp.add, terms)


def _times(matrix, x):
  return jnp.tensordot(matrix.astype(x.dtype), x, 1)
