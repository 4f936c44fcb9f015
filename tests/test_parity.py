"""The same numbers as PyTorch: forward, loss, gradients, twenty SGD steps.

The reference is tests/torch_pspnet.py. Its answers are kept in tests/golden;
where PyTorch is installed they are computed anew, in full.
"""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from psp_jax import losses, train_step
from psp_jax.models import create_model
from psp_jax.pretrained import names, networks

BINS = (1, 2, 3, 6)
FORWARD = [(case, size) for case, (_, _, sizes) in parity.CASES.items()
           for size in sizes]


@pytest.fixture(scope="module")
def golden():
  with np.load(parity.GOLDEN) as archive:
    return dict(archive)


def network(fields, dtype=jnp.float32):
  """The model and its variables, drawn as the reference draws them."""
  fields = {**fields, "num_classes": parity.CLASSES}
  model = create_model(networks.config_of(fields)).clone(
      dtype=dtype, dropout=0.0)
  variables = networks.to_variables(
      parity.tensors_of(fields), "semseg", fields)
  return model, jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)


@functools.cache
def our_logits(case, size):
  model, variables = network(parity.CASES[case][0])
  return np.asarray(jax.jit(model.apply)(
      variables, parity.photo(1, *size, 3)))[0]


def in_torch_order(tree):
  """{semseg's name: array}, kernels OIHW."""
  out = {}
  for path, value in flax.traverse_util.flatten_dict(tree).items():
    value = np.asarray(value)
    if value.ndim == 4:
      value = value.transpose(3, 2, 0, 1)
    out[names.source_name("semseg", path, BINS)] = value
  return out


def assert_same_answers(ours, theirs, largest=None):
  """Both (h, w, C); `largest` is of the whole map."""
  largest = np.abs(theirs).max() if largest is None else largest
  assert theirs.std() > 0.05 * largest  # Something to compare.
  assert np.abs(ours - theirs).max() <= 1e-4 * largest


# ---- Forward.


@pytest.mark.parametrize(("case", "size"), FORWARD)
def test_forward_equals_the_golden_answers(case, size, golden):
  ours = our_logits(case, size)
  grid = ours[::parity.GRID, ::parity.GRID]
  key = f"{case}/{size}"
  assert_same_answers(grid, golden[f"{key}/logits"], golden[f"{key}/largest"])
  answers = golden[f"{key}/answer"]
  assert answers.shape == size and len(np.unique(answers)) > 2
  assert (ours.argmax(-1) == answers).mean() >= 0.9999


@pytest.mark.parametrize(("case", "size"), FORWARD)
def test_forward_equals_pytorch_in_full(case, size, golden):
  pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")
  theirs = parity.reference_logits(case, size)
  assert_same_answers(our_logits(case, size), theirs)
  # And the goldens are this reference's.
  np.testing.assert_allclose(
      theirs[::parity.GRID, ::parity.GRID], golden[f"{case}/{size}/logits"],
      atol=1e-5 * np.abs(theirs).max())


# ---- Loss and gradients, in float64: what is left is no rounding.


@functools.cache
def our_gradients():
  with jax.enable_x64(True):
    model, variables = network({}, jnp.float64)
    shape = (parity.TRAIN_BATCH, parity.TRAIN_SIZE, parity.TRAIN_SIZE)
    images = parity.photo(*shape, 3).astype(np.float64)
    labels = parity.labels_of(*shape)

    def loss_fn(params):
      (logits, aux), _ = model.apply(
          {**variables, "params": params}, images, train=True,
          mutable=["batch_stats"])
      return losses.segmentation_loss(logits, aux, labels, 0.4, 255)[0]

    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(
        variables["params"])
    return float(loss), in_torch_order({"params": gradients})


def assert_projections(ours, golden, group, tolerance):
  """Every array's norm and projections, relative to its norm."""
  kept = dict(zip(golden[f"{group}_names"].tolist(),
                  golden[f"{group}_projections"], strict=True))
  assert kept.keys() == ours.keys()
  worst = {name: np.abs(parity.projections(name, value) - kept[name]).max()
           / kept[name][0] for name, value in ours.items()}
  # A sign's sum over errors of norm e is about e: allow four deviations.
  assert max(worst.values()) <= 4 * tolerance, max(worst, key=worst.get)


def assert_close(ours, theirs, tolerance):
  assert ours.keys() == theirs.keys()
  worst = {name: np.linalg.norm(ours[name] - value) / np.linalg.norm(value)
           for name, value in theirs.items()}
  assert max(worst.values()) <= tolerance, max(worst, key=worst.get)


def test_loss_and_gradients_equal_the_golden_ones(golden):
  loss, gradients = our_gradients()
  assert loss == pytest.approx(float(golden["gradients/loss"]), rel=1e-5)
  assert_projections(gradients, golden, "gradients", 1e-6)


def test_loss_and_every_gradient_equal_pytorchs():
  pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")
  loss, gradients = our_gradients()
  expected, theirs = parity.reference_gradients()
  assert loss == pytest.approx(expected, rel=1e-5)
  assert len(theirs) == 3 * 55 + 3 * 4 + 3 * 2 + 4  # Every parameter of R50.
  assert_close(gradients, theirs, 1e-6)


# ---- Twenty steps of the recipe, through train_step itself.


@functools.cache
def our_trajectory():
  with jax.enable_x64(True):
    fields = parity.NARROW
    model, variables = network(fields, jnp.float64)
    config = networks.config_of({**fields, "num_classes": parity.CLASSES})
    config.num_train_steps = parity.STEPS
    state = train_step.create_train_state(model, config, variables)
    step_fn = jax.jit(functools.partial(
        train_step.train_step, model=model, config=config))
    values = []
    for step in range(parity.STEPS):
      images, labels = parity.training_batch(step)
      state, metrics = step_fn(state, {"image": images, "label": labels})
      values.append(float(metrics["loss"]))
    return values, in_torch_order(
        {"params": state.params, "batch_stats": state.batch_stats})


def test_twenty_steps_end_where_the_golden_ones_do(golden):
  values, state = our_trajectory()
  expected = golden["trajectory/losses"]
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert_projections(state, golden, "trajectory", 1e-5)


def test_twenty_steps_end_where_pytorchs_do():
  pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")
  values, state = our_trajectory()
  expected, theirs = parity.reference_trajectory()
  np.testing.assert_allclose(values, expected, rtol=1e-5)
  assert_close(state, theirs, 1e-5)
  # The steps were steps: the weights have moved further than the tolerance.
  first = parity.tensors_of(parity.NARROW)
  moved = [np.linalg.norm(theirs[n] - v) / np.linalg.norm(v)
           for n, v in first.items()]
  assert np.median(moved) > 0.01
