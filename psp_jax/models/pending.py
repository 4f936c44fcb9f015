"""Maps that are normalised where they are wanted, and in training once more.

Between two convolutions lies relu(BatchNorm(y) [+ shortcut]). Automatic
differentiation keeps y for the one and the result for the other; on a TPU,
whose compiler joins such sums to what reads them, it is quicker to compute the
result from y again than to write it and read it. `jax.checkpoint` would do so,
but what it puts around its maps keeps the compiler from joining: here only the
vectors are held back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array


class Term(NamedTuple):
  """A convolution's result and what BatchNorm does to it: gain * y + offset."""
  y: Array  # (N, H, W, C).
  gain: Array  # (C,), or (W, C) with zeros for filler; fp32 or wider.
  offset: Array


class Pending(NamedTuple):
  """relu(sum of terms + shortcut), not computed yet."""
  terms: tuple[Term, ...]
  shortcut: Array | None

  @property
  def shape(self):
    return self.terms[0].y.shape


def settle(pending: Pending) -> Array:
  """The map, rounded as one that was computed step by step."""
  total: Any = pending.shortcut
  for y, gain, offset in pending.terms:
    term = (y.astype(gain.dtype) * gain + offset).astype(y.dtype)
    total = term if total is None else total + term
  return jax.nn.relu(total)


def conv_of_pending(convolve: Callable[[Array, Array], Array],
                    pending: Pending, kernel: Array) -> tuple[Array, Array]:
  """(x, convolve(x, kernel)) of x = `settle(pending)`, which is not kept."""
  @jax.custom_vjp
  def both(pending, kernel):
    x = settle(pending)
    return x, convolve(x, kernel)

  def forward(pending, kernel):
    return both(pending, kernel), (pending, kernel)

  def backward(residuals, gradients):
    (terms, shortcut), kernel = residuals
    dx, dy = gradients
    # Else the compiler sees that it has computed this before, and keeps it.
    terms = tuple(Term(y, *jax.lax.optimization_barrier(vectors))
                  for y, *vectors in terms)
    x, gradient = jax.vjp(settle, Pending(terms, shortcut))
    more, dkernel = jax.vjp(convolve, x, kernel)[1](dy)
    return (*gradient(dx + more), dkernel)

  both.defvjp(forward, backward)
  return both(pending, kernel)
