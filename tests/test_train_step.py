"""The train step: it learns, and the number of devices does not matter."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import default_config, sharding, train_step
from psp_jax.data.normalize import normalize
from psp_jax.models import create_model, layers, pooling

SIZE, BATCH, CLASSES = 32, 8, 4


def make_config(**model):
  config = default_config.get_config()
  config.num_train_steps = 20
  config.global_batch_size = BATCH
  config.model.update({
      "depth": 10, "stem": "32-32-64", "width_multiplier": 1 / 8,
      "num_classes": CLASSES, "dropout": 0.0, "dtype": "float32", **model})
  config.model.pyramid.bins = (1, 2)
  config.optimizer.base_lr = 0.01
  return config


def make_batch(ignored=0.2, seed=0):
  """Squares of a colour a class, on noise."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, CLASSES, (BATCH, 2, 2)).astype(np.uint8)
  label = label.repeat(SIZE // 2, 1).repeat(SIZE // 2, 2)
  colours = rng.integers(0, 256, (CLASSES, 3))
  image = colours[label] + rng.normal(0, 20, (*label.shape, 3))
  label[rng.random(label.shape) < ignored] = 255
  return {"image": image.clip(0, 255).astype(np.uint8), "label": label}


def make_variables(model):
  """Drawn by numpy: XLA takes long to compile this many random draws."""
  images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
  shapes = jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, True), images)
  rng = np.random.default_rng(0)
  flat = {}
  for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
    if path[-1] == "kernel":
      fan_in = np.prod(leaf.shape[:-1])
      value = rng.normal(0, (1 / fan_in)**0.5, leaf.shape)
    else:
      value = np.full(leaf.shape, path[-1] in ("scale", "var"))
    flat[path] = jnp.asarray(value, jnp.float32)
  return flax.traverse_util.unflatten_dict(flat)


@functools.cache
def setup(seed=0, **model_fields):
  """Config, first state and the step on one device, compiled once."""
  config = make_config(**model_fields)
  config.seed = seed
  model = create_model(config)
  step = jax.jit(functools.partial(
      train_step.train_step, model=model, config=config))
  state = train_step.create_train_state(model, config, make_variables(model))
  return config, state, step


def changes(before, after):
  return jax.tree.map(lambda a, b: np.asarray(b) - np.asarray(a),
                      before, after)


def assert_close(expected, actual, rounded_as=None):
  """Leaf by leaf: the error's norm is at most 1e-4 of the leaf's.

  Differences of float32 arrays may add a step of those, `rounded_as`.
  """
  rounded_as = expected if rounded_as is None else rounded_as
  for (path, a), b, c in zip(jax.tree_util.tree_leaves_with_path(expected),
                             jax.tree.leaves(actual),
                             jax.tree.leaves(rounded_as), strict=True):
    step = np.spacing(np.abs(np.asarray(c, np.float32)))
    allowed = 1e-4 * np.linalg.norm(a) + np.linalg.norm(step)
    assert np.linalg.norm(a - b) <= allowed, jax.tree_util.keystr(path)


def test_the_loss_goes_down_on_one_batch():
  config, state, step = setup()
  batch, values = make_batch(), []
  for i in range(12):
    assert int(state.step) == i
    state, metrics = step(state, batch)
    assert metrics.pop("finite_grads").all()
    values.append({k: float(v) for k, v in metrics.items()})
    assert values[-1]["learning_rate"] == pytest.approx(
        0.01 * (1 - i / 20)**0.9, rel=1e-5)
  assert values[-1]["loss"] < 0.5 * values[0]["loss"]
  assert values[-1]["pixel_accuracy"] > values[0]["pixel_accuracy"] + 0.2
  for v in values:
    assert set(v) == {"loss", "main_loss", "aux_loss", "learning_rate",
                      "grad_norm", "pixel_accuracy"}
    assert v["loss"] == pytest.approx(
        v["main_loss"] + 0.4 * v["aux_loss"], rel=1e-5)


def test_the_first_step_is_one_step_of_sgd():
  """Its gradient against finite differences of the loss."""
  config, state, step = setup()
  batch = make_batch()
  after, metrics = step(state, batch)
  model, valid = create_model(config), batch["label"] != 255

  @jax.jit
  def evaluate(params):
    (logits, aux_logits), _ = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        normalize(batch["image"]), train=True, mutable=["batch_stats"])
    return [pooling.resize(x, SIZE, SIZE) for x in (logits, aux_logits)]

  def loss(params):
    total = 0
    for logits, weight in zip(evaluate(params), (1, 0.4), strict=True):
      z = np.asarray(logits, np.float64)[valid]
      z = z - z.max(-1, keepdims=True)
      truth = batch["label"][valid]
      total += weight * np.mean(
          np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), truth])
    return total

  assert float(metrics["loss"]) == pytest.approx(loss(state.params), rel=1e-5)
  prediction = np.asarray(evaluate(state.params)[0]).argmax(-1)
  assert float(metrics["pixel_accuracy"]) == pytest.approx(
      np.mean(prediction[valid] == batch["label"][valid]), abs=1e-3)

  # Undo lr, the heads' factor and the decay; what is left is the gradient.
  moved = changes(state.params, after.params)
  gradient = {
      name: jax.tree.map(
          lambda d, p, lr=0.01 if name == "backbone" else 0.1:
          -d / lr - 1e-4 * np.asarray(p), moved[name], state.params[name])
      for name in moved}
  squares = [np.sum(np.square(g, dtype=np.float64))
             for g in jax.tree.leaves(gradient)]
  norm = sum(squares)**0.5
  assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-3)
  t = 2e-3 / norm
  up, down = (jax.tree.map(lambda p, g, s=s: p + s * t * g, state.params,
                           gradient) for s in (1, -1))
  assert (loss(up) - loss(down)) / (2 * t) == pytest.approx(norm**2, rel=0.02)


def on_a_mesh(config, state, batch, data, space, model=None):
  """(state, metrics) after a step on a mesh of the first devices."""
  mesh = sharding.create_mesh(data, space, jax.devices()[:data * space])
  config = config.copy_and_resolve_references()
  config.mesh.space = space
  step = train_step.compiled_step(model or create_model(config), config, mesh)
  return step(jax.device_put(state, sharding.replicated(mesh)),
              sharding.shard_batch(batch, mesh))


def assert_equal_steps(state, expected, actual, accuracy=1e-4):
  """Metrics, weights, statistics and gradients; each is (state, metrics)."""
  (expected, expected_metrics), (after, metrics) = expected, actual
  for name in expected_metrics.keys() - {"finite_grads"}:
    assert float(metrics[name]) == pytest.approx(
        float(expected_metrics[name]), rel=accuracy), name
  for field in ("params", "batch_stats"):
    before = getattr(state, field)
    moved = changes(before, getattr(expected, field))
    assert all(np.linalg.norm(d) > 0 for d in jax.tree.leaves(moved))
    assert_close(moved, changes(before, getattr(after, field)), before)
  # The momentum is the gradient here, without the rounding of the weights.
  assert_close(expected.opt_state, after.opt_state)


@pytest.mark.parametrize(("data", "space"), [(4, 1), (2, 2), (1, 4)])
def test_several_devices_equal_one(data, space):
  config, state, step = setup()
  # Uneven shares of ignored pixels: a mean of per-device means would differ.
  batch = make_batch()
  batch["label"][:3, 4:] = 255
  expected = step(state, batch)
  state = jax.device_get(state)  # The step on a mesh uses its own up.
  assert_equal_steps(state, expected,
                     on_a_mesh(config, state, batch, data, space))


def random_batch(count, height, width):
  rng = np.random.default_rng(0)
  label = rng.integers(0, CLASSES, (count, height // 8 + 1, width // 8 + 1))
  label = label.repeat(8, 1).repeat(8, 2)[:, :height, :width].astype(np.uint8)
  label[0, 9:] = 255
  return {"image": rng.integers(0, 256, (count, height, width, 3)).astype(
      np.uint8), "label": label}


@pytest.mark.parametrize(("height", "width", "data", "space"), [
    (65, 33, 1, 8), (473, 473, 1, 2)])
def test_rows_that_do_not_divide_are_shared_all_the_same(
    height, width, data, space):
  """In float64, where nothing hides an error at a seam."""
  config = make_config(width_multiplier=1 / 16)
  config.data.crop_size, config.data.crop_width = height, width
  batch = random_batch(2, height, width)
  with jax.enable_x64(True):
    model = create_model(config).clone(dtype=jnp.float64)
    state = train_step.create_train_state(model, config, jax.tree.map(
        lambda x: np.asarray(x, np.float64), make_variables(model)))
    state = jax.device_get(state)
    expected = jax.jit(functools.partial(
        train_step.train_step, model=model, config=config))(state, batch)
    actual = on_a_mesh(config, state, batch, data, space, model)
    assert actual[0].params["pyramid"]["kernel"].dtype == np.float64
  assert_equal_steps(state, expected, actual, 1e-10)
  for a, b in zip(jax.tree.leaves(expected[0].opt_state),
                  jax.tree.leaves(actual[0].opt_state), strict=True):
    assert np.linalg.norm(a - b) <= 1e-9 * np.linalg.norm(a)


def test_parts_of_equal_images_are_the_whole_batch():
  """Of image pairs that are equal, each part has one: the same statistics."""
  config, state, step = setup()
  half = {name: array[:BATCH // 2] for name, array in make_batch().items()}
  half["label"][:1, 4:] = 255  # Images of different weight.
  batch = {name: array.repeat(2, 0) for name, array in half.items()}
  expected, expected_metrics = step(state, batch)
  config = config.copy_and_resolve_references()
  config.accumulation_steps = 2
  after, metrics = jax.jit(functools.partial(
      train_step.train_step, model=create_model(config), config=config))(
          state, batch)
  for name in expected_metrics.keys() - {"finite_grads"}:
    assert float(metrics[name]) == pytest.approx(
        float(expected_metrics[name]), rel=1e-4), name
  assert_close(expected.opt_state, after.opt_state)
  # The running mean comes twice as near to the mean that both parts have.
  for path, mean in jax.tree_util.tree_leaves_with_path(after.batch_stats):
    if path[-1].key == "mean":
      once = expected.batch_stats
      for key in path:
        once = once[key.key]
      np.testing.assert_allclose(mean, once / 0.1 * 0.19, rtol=1e-3, atol=1e-6)


def test_parts_are_every_other_image_and_share_one_mean():
  """Against the two parts by themselves, weighted by hand."""
  config, state, _ = setup()
  config = config.copy_and_resolve_references()
  config.loss.normalizer, config.loss.num_replicas = "per_replica", 2
  batch = make_batch()
  batch["label"][:3, 4:] = 255
  model = create_model(config)
  valid = (batch["label"] != 255).sum((1, 2))
  count = 2 * np.repeat(valid.reshape(2, -1).sum(1), BATCH // 2)

  @jax.jit
  def by_hand(params):
    total, batch_stats = 0, state.batch_stats
    for part in (np.s_[::2], np.s_[1::2]):
      labels = jnp.asarray(batch["label"][part])
      logits, updates = model.apply(
          {"params": params, "batch_stats": batch_stats},
          normalize(batch["image"][part]), train=True,
          mutable=["batch_stats"])
      batch_stats = updates["batch_stats"]
      for z, weight in zip(logits, (1, 0.4), strict=True):
        each = -jnp.take_along_axis(
            jax.nn.log_softmax(pooling.resize(z, SIZE, SIZE)),
            jnp.where(labels == 255, 0, labels)[..., None], -1)[..., 0]
        each = jnp.where(labels == 255, 0, each).sum((1, 2))
        total += weight * (each / count[part]).sum()
    return total, batch_stats

  (loss, batch_stats), gradient = jax.value_and_grad(by_hand, has_aux=True)(
      state.params)
  config.accumulation_steps = 2
  # On a mesh, each device has images of both parts.
  after, metrics = on_a_mesh(config, jax.device_get(state), batch, 4, 1)
  assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
  assert float(metrics["grad_norm"]) == pytest.approx(float(sum(
      jnp.sum(g**2) for g in jax.tree.leaves(gradient))**0.5), rel=1e-4)
  assert_close(batch_stats, after.batch_stats)


def test_the_loss_is_divided_as_configured():
  config, state, _ = setup()
  batch = make_batch()
  batch["label"][:3, 4:] = 255

  @jax.jit  # Without gradients: only what is returned is computed.
  def values(state, batch):
    found = {}
    for name, replicas in (("global", 1), ("per_replica", 8),
                           ("per_replica", 2), ("all_pixels", 1)):
      c = config.copy_and_resolve_references()
      c.loss.normalizer, c.loss.num_replicas = name, replicas
      found[name, replicas] = train_step.train_step(
          state, batch, model=create_model(c), config=c)[1]
    return [{k: found[key][k] for k in ("main_loss", "aux_loss", "loss")}
            for key in found]

  overall, eight, two, diluted = jax.device_get(values(state, batch))
  valid = np.mean(batch["label"] != 255)
  for part in overall:
    assert diluted[part] == pytest.approx(overall[part] * valid, rel=1e-5)
    assert len({round(float(v[part]), 4)
                for v in (overall, eight, two, diluted)}) == 4


def test_dropout_depends_on_seed_and_step_alone():
  _, state, step = setup(dropout=0.5, auxiliary=False)
  batch = make_batch()
  loss = float(step(state, batch)[1]["loss"])
  assert float(step(state, batch)[1]["loss"]) == loss
  later = state.replace(step=jnp.asarray(7, jnp.int32))
  loss_later = float(step(later, batch)[1]["loss"])
  assert abs(loss_later - loss) > 1e-3
  assert float(step(later, batch)[1]["loss"]) == loss_later
  _, _, other_step = setup(seed=1, dropout=0.5, auxiliary=False)
  assert abs(float(other_step(state, batch)[1]["loss"]) - loss) > 1e-3


def test_a_batch_of_ignored_pixels_changes_nothing_but_decay():
  _, state, step = setup()
  batch = make_batch()
  batch["label"][:] = 255
  after, metrics = step(state, batch)
  assert metrics["loss"] == metrics["grad_norm"] == 0
  assert metrics["pixel_accuracy"] == 0
  for name in state.params:
    lr = 0.01 if name == "backbone" else 0.1
    for a, b in zip(jax.tree.leaves(state.params[name]),
                    jax.tree.leaves(after.params[name]), strict=True):
      np.testing.assert_allclose(b, a * (1 - lr * 1e-4), rtol=1e-6)
  assert all(np.isfinite(s).all() for s in jax.tree.leaves(after.batch_stats))


def test_the_seed_decides_the_first_state():
  # One layer stands for the net: it is initialised in the same way.
  config, layer = make_config(), layers.ConvBNReLU(16)
  state = train_step.create_train_state(layer, config)
  again = train_step.create_train_state(layer, config)
  jax.tree.map(np.testing.assert_array_equal, again, state)
  config.seed = 1
  other = train_step.create_train_state(layer, config)
  kernel = state.params["conv"]["kernel"]
  assert kernel.shape == (3, 3, 3, 16)
  assert (kernel != other.params["conv"]["kernel"]).mean() > 0.99
  np.testing.assert_array_equal(state.batch_stats["bn"]["var"], 1)
  # Compiled in less time, but to the same bits.
  jax.tree.map(np.testing.assert_array_equal,
               train_step.initialize(layer, config)["params"], other.params)


def test_given_variables_are_taken_as_they_are():
  config, state, _ = setup()
  variables = jax.tree.map(
      lambda a: a + 1,
      {"params": state.params, "batch_stats": state.batch_stats})
  fresh = train_step.create_train_state(None, config, variables)
  assert fresh.params is variables["params"]
  assert fresh.batch_stats is variables["batch_stats"]
  assert int(fresh.step) == 0


def test_without_the_auxiliary_head_its_loss_is_not_reported():
  config = make_config(auxiliary=False)
  model = create_model(config)
  state = jax.eval_shape(
      lambda: train_step.create_train_state(model, config))
  assert not any("aux" in name for name in state.params)
  _, metrics = jax.eval_shape(
      lambda s, b: train_step.train_step(s, b, model=model, config=config),
      state, make_batch())
  assert "aux_loss" not in metrics and "loss" in metrics
