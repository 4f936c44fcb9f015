"""Five steps against torch.optim.SGD, restated in numpy float64.

  d = gradient + weight_decay * parameter
  buffer = momentum * buffer + d
  parameter = parameter - lr * buffer
"""

import jax
import numpy as np
import optax
import pytest

from psp_jax import default_config, optimizers

SHAPES = {
    ("backbone", "layer1_0", "conv", "kernel"): (3, 3, 2, 4),
    ("backbone", "layer1_0", "bn", "scale"): (4,),
    ("backbone", "layer1_0", "bn", "bias"): (4,),
    ("pyramid", "kernel"): (3, 3, 4, 3),
    ("pyramid", "bn", "scale"): (3,),
    ("aux", "conv", "kernel"): (1, 1, 4, 2),
    ("classifier", "conv", "kernel"): (1, 1, 3, 5),
    ("classifier", "conv", "bias"): (5,),
}


def nested(flat):
  tree = {}
  for path, value in flat.items():
    node = tree
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = value
  return tree


def draw(rng):
  return {path: rng.normal(size=shape).astype(np.float32)
          for path, shape in SHAPES.items()}


def make_config(**fields):
  config = default_config.get_config()
  config.num_train_steps = 8
  config.optimizer.update({
      "base_lr": 0.02, "weight_decay": 0.05, **fields})
  return config


@pytest.mark.parametrize("fields", [
    {}, {"decay_norm_and_bias": False}, {"head_lr_multiplier": 1.0},
    {"momentum": 0.5, "poly_power": 2.0, "end_lr": 0.005},
    {"momentum": 0.0, "weight_decay": 0.0}])
def test_five_steps_equal_torchs_sgd(fields):
  config = make_config(**fields)
  c = config.optimizer
  rng = np.random.default_rng(0)
  expected = draw(rng)
  params = nested(expected)
  expected = {k: v.astype(float) for k, v in expected.items()}
  buffers = {path: 0.0 for path in SHAPES}

  optimizer = optimizers.create_optimizer(config)
  state = optimizer.init(params)
  update = jax.jit(optimizer.update)
  for step in range(5):
    gradients = draw(rng)
    updates, state = update(nested(gradients), state, params)
    params = optax.apply_updates(params, updates)

    lr = (c.base_lr - c.end_lr) * (1 - step / 8)**c.poly_power + c.end_lr
    for path in SHAPES:
      decays = path[-1] == "kernel" or c.decay_norm_and_bias
      d = gradients[path] + c.weight_decay * decays * expected[path]
      buffers[path] = c.momentum * buffers[path] + d
      times = 1 if path[0] == "backbone" else c.head_lr_multiplier
      expected[path] = expected[path] - lr * times * buffers[path]

    for path in SHAPES:
      value = params
      for name in path:
        value = value[name]
      np.testing.assert_allclose(
          value, expected[path], rtol=1e-4, atol=2e-5, err_msg=str(path))


def test_the_defaults_are_the_papers():
  config = default_config.get_config()
  c = config.optimizer
  assert (c.base_lr, c.poly_power, c.momentum, c.weight_decay) == (
      0.01, 0.9, 0.9, 1e-4)
  assert c.decay_norm_and_bias and c.head_lr_multiplier == 10
  assert (config.num_train_steps, config.global_batch_size) == (150_000, 16)
  assert config.model.aux_loss_weight == 0.4


@pytest.mark.parametrize(("step", "lr"), [
    (0, 0.01), (37_500, 0.01 * 0.75**0.9), (75_000, 0.0053588673),
    (149_999, 0.01 * (1 / 150_000)**0.9), (150_000, 0.0), (200_000, 0.0)])
def test_poly_schedule(step, lr):
  schedule = optimizers.poly_schedule(default_config.get_config())
  assert float(schedule(step)) == pytest.approx(lr, rel=1e-2 if step == 149_999
                                                else 1e-5, abs=1e-12)


def test_poly_schedule_ends_at_end_lr():
  schedule = optimizers.poly_schedule(make_config(end_lr=0.004))
  assert float(schedule(8)) == pytest.approx(0.004)
  assert float(schedule(2)) == pytest.approx(0.016 * 0.75**0.9 + 0.004)
