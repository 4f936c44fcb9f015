"""Convolution, max pooling, resizing: in the form that is fast where they run.

The one place that knows platforms. `jax.lax.platform_dependent` chooses while
lowering: a program for a TPU or GPU has the native operations only. On a CPU
the work is put into matrix products, which XLA runs at the machine's speed
there; docs/performance.md has the measurements.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata

from psp_jax.models import winograd

Array = jax.Array

# Rows of a matrix product that cost as much as transforming its kernel, and as
# reading one that is transformed (measured).
_ROWS_TO_TRANSFORM = 130
_ROWS_TO_READ_A_KERNEL = 30


def conv2d(x: Array, kernel: Array, stride: int = 1, dilation: int = 1,
           values: Array | None = None):
  """PyTorch's Conv2d with padding dilation * (size // 2), odd sizes only.

  Args:
    x: (N, H, W, C).
    kernel: (kh, kw, C, O).
    stride: of both axes.
    dilation: of both axes.
    values: the kernel's from `kernel_values`, for inference on a CPU.

  Returns:
    (N, ceil(H / stride), ceil(W / stride), O).
  """
  if values is not None:
    return winograd.convolve(x, values, dilation)
  if kernel.shape[:2] == (1, 1):
    # A product over channels: faster than a convolution on CPU and TPU.
    return _product(winograd.cut(x, *jnp.s_[::stride, ::stride]), kernel[0, 0])
  return _spatial_conv(x, kernel, stride, dilation)


def kernel_values(x: Array, kernel: Array, stride: int = 1,
                  dilation: int = 1) -> Array | None:
  """What a CPU's `conv2d` of maps like x makes of the kernel alone, if it does.

  Where a kernel serves more than once this is worth keeping.
  """
  m = _tile(x, kernel, stride, dilation, _ROWS_TO_READ_A_KERNEL)
  return winograd.kernel_values(kernel, m) if m else None


def by_itself(function):
  """`function`, kept apart from what XLA fuses around it.

  On CPUs it computes cheap things again in all that uses them: each block's
  sum with those of all blocks before it.
  """
  @jax.jit
  def apart(*args):
    with set_xla_metadata(inlineable=None):  # What it calls is a part of it.
      return function(*args)

  def call(*args):
    with set_xla_metadata(inlineable="false"):
      return apart(*args)
  return call


def add_relu(x: Array, y: Array) -> Array:
  """relu(x + y): how a residual block ends."""
  return jax.lax.platform_dependent(
      x, y, cpu=by_itself(_add_relu), default=_add_relu)


def _add_relu(x, y):
  return jax.nn.relu(x + y)


def _plain_product(x, kernel):
  return jnp.einsum("nhwc,co->nhwo", x, kernel)


_product = jax.custom_vjp(_plain_product)


def _product_bwd(residuals, dy):
  # Autodiff's own where it is not the CPU: TPU's compiler lays out maps by the
  # order of a product's operands.
  dx, = jax.vjp(lambda x: _plain_product(x, residuals[1]), residuals[0])[1](dy)
  dkernel = jax.lax.platform_dependent(
      *residuals, dy, cpu=lambda x, kernel, dy: _summed_products(x, dy),
      default=lambda x, kernel, dy: jax.vjp(
          lambda kernel: _plain_product(x, kernel), kernel)[1](dy)[0])
  return dx, dkernel


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)),
                _product_bwd)


def _summed_products(x, dy):
  """einsum("nhwc,nhwo->co") as a product of two matrices.

  Of a sum over several axes XLA's CPU backend makes transposed copies first,
  element by element, and computes what led to dy once more for them.
  """
  return jnp.einsum("mc,mo->co", x.reshape(-1, x.shape[-1]),
                    dy.reshape(-1, dy.shape[-1]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spatial_conv(x, kernel, stride, dilation):
  native = functools.partial(_native_conv, stride=stride, dilation=dilation)
  m = _tile(x, kernel, stride, dilation)
  if not m:
    return native(x, kernel)
  return jax.lax.platform_dependent(
      x, kernel, default=native,
      cpu=lambda x, k: winograd.convolve(
          x, winograd.kernel_values(k, m), dilation))


def _spatial_conv_fwd(x, kernel, stride, dilation):
  return _spatial_conv(x, kernel, stride, dilation), (x, kernel)


def _spatial_conv_bwd(stride, dilation, residuals, dy):
  x, kernel = residuals
  conv = functools.partial(_native_conv, stride=stride, dilation=dilation)
  m = _tile(x, kernel, stride, dilation)

  def native_dx(kernel, dy):
    return jax.vjp(lambda x: conv(x, kernel), x)[1](dy)[0]

  def native_dkernel(x, dy):
    return jax.vjp(lambda k: conv(x, k), kernel)[1](dy)[0]

  if not m:
    dx = native_dx(kernel, dy)
    dkernel = jax.lax.platform_dependent(
        x, dy, default=native_dkernel,
        cpu=lambda x, dy: _kernel_gradient_as_dots(
            x, dy, kernel.shape, stride, dilation))
    return dx, dkernel
  # The gradient by the input is a convolution with the turned kernel.
  dx = jax.lax.platform_dependent(
      kernel, dy, default=native_dx,
      cpu=lambda k, dy: winograd.convolve(
          dy, winograd.kernel_values(k, m, turned=True), dilation, turned=True))
  dkernel = jax.lax.platform_dependent(
      x, dy, default=native_dkernel,
      cpu=lambda x, dy: winograd.kernel_gradient(x, dy, dilation, m))
  return dx, dkernel


_spatial_conv.defvjp(_spatial_conv_fwd, _spatial_conv_bwd)


def _native_conv(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
  pads = [(dilation * (k // 2),) * 2 for k in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _tile(x, kernel, stride, dilation, kernel_rows=_ROWS_TO_TRANSFORM) -> int:
  """The side of Winograd's tiles, or 0 where a plain convolution is quicker.

  By the rows of the matrix products, where the kernel costs as much as
  `kernel_rows` more; a symbolic batch is 1. bfloat16 has too few digits for it.
  """
  if (kernel.shape[:2] != (3, 3) or stride > 1 or x.dtype.itemsize < 4
      or min(kernel.shape[2:]) < 64):
    return 0
  n, height, width = (d if isinstance(d, int) else 1 for d in x.shape[:3])

  def cost(m):
    tiles = (-(-size // (m * dilation)) * dilation for size in (height, width))
    return (m + 2)**2 * (n * math.prod(tiles) + kernel_rows)

  m = min((2, 4), key=cost)
  return m if cost(m) < 9 * n * height * width else 0


def _kernel_gradient_as_dots(x, dy, kernel_shape, stride, dilation):
  """The kernel's gradient as one matrix product a tap.

  XLA's CPU backend runs the convolution that autodiff emits here several
  times slower than these products.
  """
  kh, kw = kernel_shape[:2]
  ph, pw = dilation * (kh // 2), dilation * (kw // 2)
  x = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
  h, w = dy.shape[1:3]
  taps = []
  for i in range(kh):
    for j in range(kw):
      top, left = i * dilation, j * dilation
      view = x[:, top:top + (h - 1) * stride + 1:stride,
               left:left + (w - 1) * stride + 1:stride]
      taps.append(_summed_products(view, dy))
  return jnp.stack(taps).reshape(kernel_shape)


@jax.custom_vjp
def max_pool_3x3(x: Array) -> Array:
  """MaxPool2d(3, stride=2, padding=1): (N,H,W,C) -> (N,ceil(H/2),ceil(W/2),C).

  As PyTorch's, the gradient goes to the first of equal maxima, by rows.
  """
  return jax.lax.platform_dependent(
      x, default=_native_max_pool,
      cpu=lambda x: functools.reduce(jnp.maximum, _pooled_taps(x)))


def _native_max_pool(x):
  return jax.lax.reduce_window(
      x, x.dtype.type(-jnp.inf), jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1),
      ((0, 0), (1, 1), (1, 1), (0, 0)))


def _pooled_taps(x):
  """The nine elements of every window, by rows; -inf outside the map."""
  height, width = x.shape[1:3]
  h, w = (height + 1) // 2, (width + 1) // 2
  x = jnp.pad(x, ((0, 0), (1, 2 * h - height), (1, 2 * w - width), (0, 0)),
              constant_values=-jnp.inf)
  return [winograd.cut(x, *jnp.s_[i:i + 2 * h - 1:2, j:j + 2 * w - 1:2])
          for i in range(3) for j in range(3)]


def _max_pool_bwd(x, dy):
  return jax.lax.platform_dependent(
      x, dy, cpu=_max_pool_gradient,
      default=lambda x, dy: jax.vjp(_native_max_pool, x)[1](dy)[0]),


max_pool_3x3.defvjp(lambda x: (max_pool_3x3(x), x), _max_pool_bwd)


def _max_pool_gradient(x, dy):
  """XLA's CPU backend takes scatters one element at a time; these are sums."""
  n, height, width, channels = x.shape
  h, w = dy.shape[1:3]
  taps = _pooled_taps(x)
  most, first = taps[0], jnp.zeros(dy.shape, jnp.int32)
  for i, tap in enumerate(taps[1:], 1):
    # Not-a-number wins, and the first of them, as in PyTorch.
    later = ~(tap <= most) & ~jnp.isnan(most)
    most, first = jnp.where(later, tap, most), jnp.where(later, i, first)
  (a, b, c), (d, e, f), (g, p, q) = [
      [jnp.where(first == 3 * i + j, dy, 0) for j in range(3)]
      for i in range(3)]
  # Row 2r of x is the middle of window r; row 2r + 1 its last and the next's
  # first. Columns likewise.
  def below(y):
    return jnp.pad(y[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))

  def right(y):
    return jnp.pad(y[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))

  even = jnp.stack([e, f + right(d)], 3)
  odd = jnp.stack([p + below(b), q + right(g) + below(c + right(a))], 3)
  dx = jnp.stack([even, odd], 2).reshape(n, 2 * h, 2 * w, channels)
  return dx[:, :height, :width]


def taps_of(z: Array, kernel: Array) -> Array:
  """Each tap of a kernel applied to a few pixels.

  Args:
    z: (N, a, b, C).
    kernel: (k, k, C, O).

  Returns:
    (k, k, N, a, b, O).
  """
  def cpu(z, kernel):
    taps, (n, a, b, channels) = kernel.shape[:2], z.shape
    z = jnp.broadcast_to(z.reshape(-1, channels), (*taps, n * a * b, channels))
    return jnp.einsum("ijmc,ijco->ijmo", z, kernel).reshape(
        *taps, n, a, b, -1)

  return jax.lax.platform_dependent(
      z, kernel, cpu=cpu,
      default=lambda z, k: jnp.einsum("nabc,ijco->ijnabo", z, k))


def along_both_axes(x: Array, rows: Array | np.ndarray,
                    columns: Array | np.ndarray) -> Array:
  """Linear maps of a picture's axes, such as resizing: rows x columns^T.

  Args:
    x: (N, h, w, C).
    rows: (H, h); not differentiated.
    columns: (W, w); likewise.

  Returns:
    (N, H, W, C).
  """
  rows, columns = rows.astype(x.dtype), columns.astype(x.dtype)

  @jax.custom_vjp
  def cpu(x):
    return _in_turn(_rows, _columns, rows, columns, x)

  cpu.defvjp(
      lambda x: (cpu(x), None),
      lambda _, dy: (_in_turn(_rows, _columns, rows.T, columns.T, dy),))
  return jax.lax.platform_dependent(
      x, cpu=cpu, default=lambda x: _in_turn(
          lambda rows, x: jnp.einsum("ha,nabc->nhbc", rows, x),
          lambda columns, x: jnp.einsum("wb,nabc->nawc", columns, x),
          rows, columns, x))


def _in_turn(along_rows, along_columns, rows, columns, x):
  """Both maps, in the order that takes fewer products."""
  (new_height, height), (new_width, width) = rows.shape, columns.shape
  rows_first = new_height * width * (height + new_width)
  columns_first = height * new_width * (width + new_height)
  if rows_first <= columns_first:
    return along_columns(columns, along_rows(rows, x))
  return along_rows(rows, along_columns(columns, x))


# Products with a batch, whose result lies in the order that is wanted: XLA's
# CPU backend spends more on transposing such maps than on computing them.


def _rows(matrix, x):
  n, height, width, channels = x.shape
  x = jnp.einsum("nha,nax->nhx", jnp.broadcast_to(matrix, (n, *matrix.shape)),
                 x.reshape(n, height, width * channels))
  return x.reshape(n, -1, width, channels)


def _columns(matrix, x):
  n, height, width, channels = x.shape
  x = jnp.einsum("nwb,nbc->nwc", jnp.broadcast_to(
      matrix, (n * height, *matrix.shape)),
                 x.reshape(n * height, width, channels))
  return x.reshape(n, height, -1, channels)
