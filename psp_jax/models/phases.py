"""Maps whose every p-th pixel lies apart, for dilated convolutions on TPUs.

In p phases, (N, H, W, C) is (N * p * p, H / p, W / p, C): image n, phase (a, b)
holds rows a, a + p, ... and columns b, b + p, ... A convolution of dilation d
is one of dilation d / p there, and what works on single pixels (1x1
convolutions, BatchNorm, ReLU) sees no difference. The larger batch is what
matters: around each convolution of a small one TPU's compiler pads and copies.

A map in one phase is the map itself. All that is here is exact.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

Array = jax.Array


def change(x: Array, before: int, after: int) -> Array:
  """A map in `before` phases an axis, in `after`, which divides H and W."""
  if before == after:
    return x
  x = axes(x, before).transpose(0, 3, 1, 4, 2, 5)
  n, h, p, w, _, c = x.shape
  p, h, w = after, h * p // after, w * p // after
  x = x.reshape(n, h, p, w, p, c).transpose(0, 2, 4, 1, 3, 5)
  return x.reshape(n * p * p, h, w, c)


def axes(x: Array, phases: int) -> Array:
  """(N * p * p, h, w, C) -> (N, p, p, h, w, C)."""
  return x.reshape(-1, phases, phases, *x.shape[1:])


def conv_by_rows(x: Array, kernel: Array, dilation: int = 1) -> Array:
  """A convolution as one of rows: the rows that a pixel needs, side by side.

  (N, H, W, C) -> (N, H, W, O), for maps of one phase. Every row is an image of
  its own then, and the batch is large.
  """
  n, h, w, _ = x.shape
  size = kernel.shape[0]
  pad = dilation * (size // 2)
  x = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0)))
  x = jnp.concatenate(
      [x[:, i:i + h] for i in range(0, dilation * size, dilation)], -1)
  kernel = kernel.swapaxes(0, 1).reshape(size, x.shape[-1], -1)
  y = jax.lax.conv_general_dilated(
      x.reshape(n * h, w, -1), kernel, (1,), [(pad, pad)],
      rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC"))
  return y.reshape(n, h, w, -1)


def _products(x, kernel):
  return jnp.einsum("nhwc,ijco->ijnhwo", x, kernel)


def _shifted_sum(taps, phases):
  size = taps.shape[0]
  wide = jnp.promote_types(taps.dtype, jnp.float32)
  total: Any = 0
  for j in range(size):
    column: Any = sum(
        _shift(axes(taps[i, j], phases).astype(wide), i - size // 2, 1, 3)
        for i in range(size))
    total += _shift(column, j - size // 2, 2, 4)
  return total.reshape(taps.shape[2:]).astype(taps.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, phases: int) -> Array:
  """A plain convolution of odd size: one product, then shifted sums.

  For few outputs of many channels, as in the heads: the product is all of the
  work, and the shifts are of what it leaves.

  Args:
    x: (N * p * p, h, w, C).
    kernel: (k, k, C, O), of the map's pixels, neighbours lying in other phases.
    phases: p.

  Returns:
    (N * p * p, h, w, O).
  """
  return _shifted_sum(_products(x, kernel), phases)


def _conv_fwd(x, kernel, phases):
  return conv(x, kernel, phases), (x, kernel)


def _conv_bwd(phases, residuals, dy):
  # Autodiff's gradients; only the layouts of two arrays are ours. Left alone,
  # the compiler turns each of the taps around, and parameter and momentum, in
  # fp32, at every step.
  size = residuals[1].shape[0]
  taps = jax.ShapeDtypeStruct((size, size, *dy.shape), dy.dtype)
  dtaps, = jax.linear_transpose(
      lambda taps: _shifted_sum(taps, phases), taps)(dy)
  dx, dkernel = jax.vjp(_products, *residuals)[1](_in_order(dtaps))
  return dx, _in_order(dkernel)


conv.defvjp(_conv_fwd, _conv_bwd)


def _in_order(x: Array) -> Array:
  """The last axis innermost in a TPU's memory, then the one before it."""
  layout = Layout(tuple(range(x.ndim)))
  return jax.lax.platform_dependent(
      x, tpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x)


def _shift(x: Array, offset: int, phase_axis: int, space_axis: int) -> Array:
  """Pixel r becomes pixel r + offset of x, or 0 beyond the map's edge."""
  if offset == 0:
    return x
  phases = x.shape[phase_axis]
  moved = []
  for phase in range(phases):
    steps, source = divmod(phase + offset, phases)
    part = jax.lax.slice_in_dim(x, source, source + 1, axis=phase_axis)
    size = part.shape[space_axis]
    steps = max(-size, min(size, steps))
    pads = [(0, 0)] * x.ndim
    pads[space_axis] = (max(-steps, 0), max(steps, 0))
    part = jax.lax.slice_in_dim(
        part, max(steps, 0), size + min(steps, 0), axis=space_axis)
    moved.append(jnp.pad(part, pads))
  return jnp.concatenate(moved, phase_axis)
