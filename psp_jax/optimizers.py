"""SGD with momentum, weight decay, the poly schedule and faster heads.

The same arithmetic as torch.optim.SGD with parameter groups (semseg
tool/train.py): the decay joins the gradient before the momentum, and the
learning rate multiplies the momentum.
"""

import jax
import optax


def poly_schedule(config) -> optax.Schedule:
  """base_lr * (1 - step / num_train_steps)^power, from `config.optimizer`."""
  c = config.optimizer
  return optax.polynomial_schedule(
      init_value=c.base_lr, end_value=c.end_lr, power=c.poly_power,
      transition_steps=config.num_train_steps)


def create_optimizer(config) -> optax.GradientTransformation:
  """The transformation that `config.optimizer` describes."""
  c = config.optimizer
  decay_mask = None if c.decay_norm_and_bias else _convolution_kernels
  return optax.chain(
      optax.add_decayed_weights(c.weight_decay, decay_mask),
      optax.trace(decay=c.momentum),
      optax.masked(optax.scale(c.head_lr_multiplier), _heads),
      optax.scale_by_learning_rate(poly_schedule(config)),
  )


def _heads(params):
  """True for all that is not the backbone: new layers learn faster."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: path[0].key != "backbone", params)


def _convolution_kernels(params):
  """True for kernels, False for biases and BatchNorm's scales."""
  return jax.tree.map(lambda p: p.ndim > 1, params)
