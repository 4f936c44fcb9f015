"""The loss against a loop over pixels, and what ignored pixels may not do.

The three conventions of averaging also against PyTorch's own loss, divided as
each codebase divides it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import default_config, losses, sharding
from psp_jax.errors import ConfigError


def loss_loop(logits, labels, ignore_label):
  total, count = 0.0, 0
  for place in np.ndindex(labels.shape):
    if labels[place] != ignore_label:
      z = logits[place].astype(float)
      total += np.log(np.exp(z - z.max()).sum()) + z.max() - z[labels[place]]
      count += 1
  return total / count if count else 0.0


def cross_entropy(*args, **options):
  return losses.cross_entropy(*args, **options)[0]


def draw(ignore_label=255, share=0.4, seed=0, count=2, size=(4, 5)):
  rng = np.random.default_rng(seed)
  logits = (5 * rng.normal(size=(count, *size, 6))).astype(np.float32)
  labels = rng.integers(0, 6, (count, *size)).astype(np.uint8)
  labels[rng.random(labels.shape) < share] = ignore_label
  return logits, labels


@pytest.mark.parametrize("ignore_label", [255, 200, 0])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.95])
def test_cross_entropy_equals_the_loop(share, ignore_label):
  logits, labels = draw(ignore_label, share)
  assert cross_entropy(logits, labels, ignore_label) == pytest.approx(
      loss_loop(logits, labels, ignore_label), rel=1e-5)


def test_the_mean_runs_over_the_pixels_of_the_whole_batch():
  # Not over images: one valid pixel weighs the same wherever it is.
  logits, labels = draw(share=0.0)
  labels[0, 1:] = 255
  expected = loss_loop(logits, labels, 255)
  per_image = np.mean([loss_loop(a, b, 255)
                       for a, b in zip(logits, labels, strict=True)])
  assert abs(expected - per_image) > 0.1
  assert cross_entropy(logits, labels, 255) == pytest.approx(
      expected, rel=1e-5)


def test_gradient_is_softmax_minus_truth_and_zero_where_ignored():
  logits, labels = draw()
  gradient = jax.grad(cross_entropy)(jnp.array(logits), labels, 255)
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
  loss, gradient = jax.value_and_grad(cross_entropy)(
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
  assert set(parts) == {"main_loss", "aux_loss", "pixel_accuracy"}
  assert parts["main_loss"] == pytest.approx(main, rel=1e-5)
  assert parts["aux_loss"] == pytest.approx(aux, rel=1e-5)
  assert loss == pytest.approx(main + weight * aux, rel=1e-5)


def test_without_auxiliary_logits_the_main_loss_is_all():
  logits, labels = draw()
  loss, parts = losses.segmentation_loss(logits, None, labels, 0.4, 255)
  assert set(parts) == {"main_loss", "pixel_accuracy"}
  assert loss == parts["main_loss"] == pytest.approx(
      loss_loop(logits, labels, 255), rel=1e-5)


# ---- Logits of a coarser map.


def upsampled(logits, height, width, align_corners):
  """In float64, by matrices from NumPy's own interpolation."""
  def matrix(source, target):
    if align_corners:
      at = np.linspace(0, source - 1, target)
    else:
      at = (np.arange(target) + 0.5) * source / target - 0.5
    hats = [np.interp(at, np.arange(source), row) for row in np.eye(source)]
    return np.stack(hats, 1)
  return np.einsum("ha,wb,nabc->nhwc", matrix(logits.shape[1], height),
                   matrix(logits.shape[2], width), logits.astype(float))


@pytest.mark.parametrize("rows_at_once", [0, 1, 7, 32])
@pytest.mark.parametrize("align_corners", [True, False])
def test_coarse_logits_are_upsampled_to_the_labels(align_corners, rows_at_once):
  logits, _ = draw(size=(5, 4))
  _, labels = draw(size=(33, 30), seed=3)
  fine = upsampled(logits, 33, 30, align_corners)
  options = dict(align_corners=align_corners, rows_at_once=rows_at_once)
  loss, gradient = jax.value_and_grad(cross_entropy)(
      jnp.array(logits), labels, 255, **options)
  assert loss == pytest.approx(loss_loop(fine, labels, 255), rel=1e-5)
  # The gradient is linear in the full-resolution one, which a test above has.
  z = np.exp(fine - fine.max(-1, keepdims=True))
  full = z / z.sum(-1, keepdims=True) - np.eye(256)[labels][..., :6]
  full *= (labels != 255)[..., None] / (labels != 255).sum()
  steps = np.random.default_rng(4).normal(size=logits.shape)
  expected = (full * upsampled(steps, 33, 30, align_corners)).sum()
  assert (gradient * steps).sum() == pytest.approx(expected, rel=1e-4)


def test_the_share_of_correct_pixels_is_of_the_full_resolution():
  logits, _ = draw(size=(5, 4))
  _, labels = draw(size=(33, 30), seed=3)
  answer = upsampled(logits, 33, 30, True).argmax(-1)
  labels[:, ::2] = answer[:, ::2]  # Not only chance.
  labels[:, :, :3] = 255
  expected = (answer == labels)[labels != 255].mean()
  assert 0.5 < expected < 0.8
  accuracy = losses.cross_entropy(logits, labels, 255)[1]
  assert accuracy == pytest.approx(expected, abs=1e-6)


def test_bfloat16_logits_are_compared_in_float32():
  logits, labels = draw()
  logits = jnp.array(logits, jnp.bfloat16)
  loss, gradient = jax.value_and_grad(cross_entropy)(logits, labels, 255)
  assert loss.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
  assert loss == pytest.approx(
      loss_loop(np.asarray(logits, np.float32), labels, 255), rel=1e-5)


# ---- What the sum is divided by.


def uneven(count=16, size=(4, 5)):
  """Groups of two images with far from equal shares of valid pixels."""
  logits, labels = draw(share=0.0, count=count, size=size)
  chance = np.random.default_rng(5).random(labels.shape)
  share = np.linspace(0.0, 0.95, count)[:, None, None]
  labels[chance < share] = 255
  return logits, labels


def by_loop(logits, labels, normalizer, num_replicas=8):
  if normalizer == "all_pixels":
    return loss_loop(logits, labels, 255) * np.mean(labels != 255)
  if normalizer == "per_replica":
    groups = zip(np.split(logits, num_replicas), np.split(labels, num_replicas))
    return np.mean([loss_loop(*group, 255) for group in groups])
  return loss_loop(logits, labels, 255)


def by_torch(logits, labels, normalizer, num_replicas=8):
  """(loss, gradient) of semseg's and mmsegmentation's calls."""
  torch = pytest.importorskip("torch", reason="compares with PyTorch's loss")

  def torch_loss(x, y, **how):
    return torch.nn.functional.cross_entropy(
        x.permute(0, 3, 1, 2), y, ignore_index=255, **how)

  x = torch.tensor(logits, requires_grad=True)
  y = torch.tensor(labels.astype(np.int64))
  if normalizer == "global":
    loss = torch_loss(x, y)
  elif normalizer == "per_replica":
    loss = sum(torch_loss(*group) for group in zip(
        x.chunk(num_replicas), y.chunk(num_replicas))) / num_replicas
  else:
    loss = torch_loss(x, y, reduction="none").mean()
  loss.backward()
  return loss.item(), x.grad.numpy()


NORMALIZERS = ("global", "per_replica", "all_pixels")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_each_normalizer_is_its_loop_and_pytorchs(normalizer):
  logits, labels = uneven()
  expected = {n: by_loop(logits, labels, n) for n in NORMALIZERS}
  others = [v for n, v in expected.items() if n != normalizer]
  assert min(abs(expected[normalizer] - v) for v in others) > 0.05
  loss, gradient = jax.value_and_grad(cross_entropy)(
      logits, labels, 255, normalizer, 8)
  assert loss == pytest.approx(expected[normalizer], rel=1e-5)
  torch_loss, torch_gradient = by_torch(logits, labels, normalizer)
  assert loss == pytest.approx(torch_loss, rel=1e-5)
  np.testing.assert_allclose(gradient, torch_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("num_replicas", [1, 2, 4, 16])
def test_any_number_of_groups_that_divides_the_batch(num_replicas):
  logits, labels = uneven()
  assert cross_entropy(
      logits, labels, 255, "per_replica", num_replicas) == pytest.approx(
          by_loop(logits, labels, "per_replica", num_replicas), rel=1e-5)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
def test_a_group_without_valid_pixels_contributes_nothing(normalizer):
  logits, labels = uneven()
  labels[4:6] = 255  # One whole group of eight.
  loss, gradient = jax.value_and_grad(cross_entropy)(
      logits, labels, 255, normalizer, 8)
  assert loss == pytest.approx(by_loop(logits, labels, normalizer), rel=1e-5)
  np.testing.assert_array_equal(gradient[4:6], 0)
  assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize(("data", "space"), [(8, 1), (4, 2), (2, 4)])
def test_the_number_of_devices_does_not_matter(data, space, normalizer):
  # Eight groups always, on eight, four or two data-parallel devices.
  logits, labels = uneven(size=(8, 5))
  function = jax.value_and_grad(lambda x, y: cross_entropy(
      x, y, 255, normalizer, 8))
  expected, expected_gradient = jax.jit(function)(logits, labels)
  mesh = sharding.create_mesh(data, space)
  split = sharding.batch_sharding(mesh)
  loss, gradient = jax.jit(
      function, in_shardings=(split, split),
      out_shardings=(sharding.replicated(mesh), split))(logits, labels)
  assert len(gradient.sharding.device_set) == 8
  assert loss == pytest.approx(float(expected), rel=1e-6)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5)


def test_the_auxiliary_loss_is_divided_likewise():
  logits, labels = uneven()
  aux_logits, _ = draw(seed=1, count=16)
  for normalizer in NORMALIZERS:
    loss, parts = losses.segmentation_loss(
        logits, aux_logits, labels, 0.4, 255, normalizer=normalizer,
        num_replicas=8)
    assert parts["aux_loss"] == pytest.approx(
        by_loop(aux_logits, labels, normalizer), rel=1e-5)
    assert loss == pytest.approx(
        float(parts["main_loss"] + 0.4 * parts["aux_loss"]), rel=1e-5)


@pytest.mark.parametrize(("fields", "message"), [
    ({"normalizer": "mean"}, "loss.normalizer='mean'.*'global', 'per_repl"),
    ({"normalizer": "per_replica", "num_replicas": 6}, "=16 .*replicas=6 "),
    ({"normalizer": "per_replica", "num_replicas": 0}, "=16 .*replicas=0 "),
    ({"normalizer": "per_replica", "num_replicas": 32}, "=16 .*replicas=32 ")])
def test_what_cannot_work_is_refused(fields, message):
  config = default_config.get_config()
  losses.check_normalizer(config)
  config.loss.update(fields)
  with pytest.raises(ConfigError, match=message):
    losses.check_normalizer(config)


@pytest.mark.parametrize("fields", [
    {"num_replicas": 6}, {"normalizer": "per_replica"},
    {"normalizer": "per_replica", "num_replicas": 16},
    {"normalizer": "all_pixels", "num_replicas": 0}])
def test_what_can_work_is_not(fields):
  config = default_config.get_config()
  config.loss.update(fields)
  losses.check_normalizer(config)
