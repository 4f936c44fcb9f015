"""The loss against a loop over pixels, and what ignored pixels may not do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import losses


def loss_loop(logits, labels, ignore_label):
  total, count = 0.0, 0
  for place in np.ndindex(labels.shape):
    if labels[place] != ignore_label:
      z = logits[place].astype(float)
      total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[labels[place]]
      count += 1
  return total / count if count else 0.0


def draw(ignore_label=255, share=0.4, seed=0):
  rng = np.random.default_rng(seed)
  logits = (5 * rng.normal(size=(2, 4, 5, 6))).astype(np.float32)
  labels = rng.integers(0, 6, (2, 4, 5)).astype(np.uint8)
  labels[rng.random(labels.shape) < share] = ignore_label
  return logits, labels


@pytest.mark.parametrize("ignore_label", [255, 200, 0])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_cross_entropy_equals_the_loop(share, ignore_label):
  logits, labels = draw(ignore_label, share)
  assert losses.cross_entropy(logits, labels, ignore_label) == pytest.approx(
      loss_loop(logits, labels, ignore_label), rel=1e-5)


def test_the_mean_runs_over_the_pixels_of_the_whole_batch():
  # Not over images: one valid pixel weighs the same wherever it is.
  logits, labels = draw(share=0.0)
  labels[0, 1:] = 255
  expected = loss_loop(logits, labels, 255)
  per_image = np.mean([loss_loop(a, b, 255)
                       for a, b in zip(logits, labels, strict=True)])
  assert abs(expected - per_image) > 0.1
  assert losses.cross_entropy(logits, labels, 255) == pytest.approx(
      expected, rel=1e-5)


def test_gradient_is_softmax_minus_truth_and_zero_where_ignored():
  logits, labels = draw()
  gradient = jax.grad(losses.cross_entropy)(jnp.array(logits), labels, 255)
  valid = labels != 255
  z = np.exp(logits.astype(float) - logits.max(-1, keepdims=True))
  truth = np.eye(256)[labels][..., :6]
  expected = (z / z.sum(-1, keepdims=True) - truth) / valid.sum()
  np.testing.assert_allclose(gradient[valid], expected[valid], atol=1e-6)
  np.testing.assert_array_equal(gradient[~valid], 0)


@pytest.mark.parametrize("value", [0.0, 80.0, 1e30])
def test_a_batch_without_valid_pixels_has_no_loss_and_no_gradient(value):
  logits = value * jnp.ones((2, 3, 3, 4)).at[..., 0].set(-1.0)
  labels = np.full((2, 3, 3), 255, np.uint8)
  loss, gradient = jax.value_and_grad(losses.cross_entropy)(
      logits, labels, 255)
  assert loss == 0
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("weight", [0.4, 0.0, 1.5])
def test_auxiliary_loss_is_weighted(weight):
  logits, labels = draw()
  aux_logits, _ = draw(seed=1)
  loss, parts = losses.segmentation_loss(
      logits, aux_logits, labels, weight, 255)
  main = loss_loop(logits, labels, 255)
  aux = loss_loop(aux_logits, labels, 255)
  assert set(parts) == {"main_loss", "aux_loss"}
  assert parts["main_loss"] == pytest.approx(main, rel=1e-5)
  assert parts["aux_loss"] == pytest.approx(aux, rel=1e-5)
  assert loss == pytest.approx(main + weight * aux, rel=1e-5)


def test_without_auxiliary_logits_the_main_loss_is_all():
  logits, labels = draw()
  loss, parts = losses.segmentation_loss(logits, None, labels, 0.4, 255)
  assert set(parts) == {"main_loss"}
  assert loss == parts["main_loss"] == pytest.approx(
      loss_loop(logits, labels, 255), rel=1e-5)
