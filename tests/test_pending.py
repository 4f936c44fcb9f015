"""Maps computed again in the backward pass: autodiff's values, less kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax.models import pairs, phases
from psp_jax.models.convolution import conv2d
from psp_jax.models.pending import Pending, Term, conv_of_pending, settle

N, H, W, C, K = 2, 5, 6, 4, 3
CONVOLUTIONS = {
    "1x1": (conv2d, (1, 1, C, K)),
    "3x3 of stride 2": (functools.partial(conv2d, stride=2), (3, 3, C, K)),
    "rows side by side": (phases.conv_by_rows, (3, 3, C, K)),
    "pairs": (pairs.conv, (3, 3, C // 2, K)),
}


def make(terms, shortcut, filler=False, seed=0):
  """A map of that many terms, in float64."""
  rng = np.random.default_rng(seed)
  vectors = (W, C) if filler else (C,)
  made = []
  for _ in range(terms):
    gain, offset = rng.uniform(0.5, 2, vectors), rng.normal(size=vectors)
    if filler:
      gain[-1, C // 2:] = offset[-1, C // 2:] = 0
    made.append(Term(jnp.array(rng.normal(size=(N, H, W, C))),
                     jnp.array(gain), jnp.array(offset)))
  return Pending(tuple(made), jnp.array(rng.normal(size=(N, H, W, C)))
                 if shortcut else None)


def plainly(convolve, pending, kernel):
  """What `conv_of_pending` is, left to autodiff."""
  x = sum(y * gain + offset for y, gain, offset in pending.terms)
  if pending.shortcut is not None:
    x = x + pending.shortcut
  x = jax.nn.relu(x)  # Whose gradient at 0 is 0.
  return x, convolve(x, kernel)


@pytest.mark.parametrize(("terms", "shortcut", "filler"), [
    (1, False, False), (1, True, False), (2, False, False), (1, False, True)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_values_and_gradients_are_autodiffs(name, terms, shortcut, filler):
  convolve, shape = CONVOLUTIONS[name]
  with jax.enable_x64(True):
    pending = make(terms, shortcut, filler)
    kernel = jnp.array(np.random.default_rng(1).normal(size=shape))
    results = []
    for function in (conv_of_pending, plainly):
      out, vjp = jax.vjp(functools.partial(function, convolve), pending, kernel)
      rng = np.random.default_rng(2)
      results.append((out, vjp(tuple(
          jnp.array(rng.normal(size=o.shape)) for o in out))))
    ours, theirs = map(jax.tree.leaves, results)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_the_map_is_not_kept():
  pending = jax.tree.map(lambda x: x.astype(jnp.float32), make(1, True))
  kernel = jnp.ones((1, 1, C, K))
  kept = []
  for function in (conv_of_pending, plainly):
    (x, _), vjp = jax.vjp(functools.partial(function, conv2d), pending, kernel)
    kept.append(any(r.shape == x.shape and bool((r == x).all())
                    for r in jax.tree.leaves(vjp)))
  assert kept == [False, True]


def test_the_compiler_is_kept_from_finding_it_computed_before():
  def loss(pending, kernel):
    return sum((a**2).sum()
               for a in conv_of_pending(conv2d, pending, kernel))

  pending = jax.tree.map(lambda x: x.astype(jnp.float32), make(2, False))
  text = jax.jit(jax.grad(loss)).lower(
      pending, jnp.ones((1, 1, C, K))).as_text()
  # Of both terms, and of vectors alone: a map's would cost its fusion.
  barriers = [line for line in text.splitlines()
              if "optimization_barrier" in line]
  assert len(barriers) == 2
  assert all(f"tensor<{C}xf32>" in line and f"x{W}x{C}xf32" not in line
             for line in barriers)


def test_a_sum_is_rounded_as_one_computed_step_by_step():
  pending = jax.tree.map(lambda x: x.astype(jnp.float32), make(2, True))
  terms = tuple(Term(t.y.astype(jnp.bfloat16), t.gain, t.offset)
                for t in pending.terms)
  shortcut = pending.shortcut.astype(jnp.bfloat16)
  expected = shortcut
  for y, gain, offset in terms:
    expected += (y.astype(jnp.float32) * gain + offset).astype(jnp.bfloat16)
  x = settle(Pending(terms, shortcut))
  assert x.dtype == jnp.bfloat16
  np.testing.assert_array_equal(x, jnp.maximum(expected, 0))
