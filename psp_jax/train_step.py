"""The state of training and the pure step that advances it."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from psp_jax import losses, optimizers, sharding
from psp_jax.data.normalize import normalize
from psp_jax.data.taxonomy import IGNORE_LABEL


@flax.struct.dataclass
class TrainState:
  """All that a run is, together with (config, seed): a plain pytree."""
  step: jax.Array
  params: Any
  batch_stats: Any
  opt_state: Any


def create_train_state(model, config, variables=None) -> TrainState:
  """A fresh state; `variables` (pretrained) or random from `config.seed`."""
  if variables is None:
    variables = initialize(model, config)
  optimizer = optimizers.create_optimizer(config)
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=variables["params"],
      batch_stats=variables["batch_stats"],
      opt_state=jax.jit(optimizer.init)(variables["params"]))


def initialize(model, config):
  """{"params", "batch_stats"} drawn from `config.seed`."""
  # Parameter shapes do not depend on the image size: a small one is quick.
  images = jnp.zeros((1, 65, 65, 3))
  key = jax.random.key(config.seed)
  return jax.jit(lambda: model.init(key, images, train=True))()


def train_step(state: TrainState, batch, *, model, config):
  """One SGD step on {"image": uint8 (N,H,W,3), "label": uint8 (N,H,W)}.

  Dropout's key derives from (seed, step), so a resumed run draws the same.

  With `config.non_finite` "skip" a step whose loss or gradient is not finite
  changes nothing but the step's number.

  Returns:
    The next state and metrics: the scalars loss, main_loss, aux_loss,
    learning_rate, grad_norm, pixel_accuracy (of the crops), and finite_grads,
    of each array of parameters in tree order whether its gradient is finite.
  """
  key = jax.random.fold_in(jax.random.key(config.seed), state.step)
  images, labels = normalize(batch["image"]), batch["label"]

  def loss_fn(params):
    (logits, aux_logits), updates = model.apply(
        {"params": params, "batch_stats": state.batch_stats}, images,
        train=True, mutable=["batch_stats"], rngs={"dropout": key})
    loss, parts = losses.segmentation_loss(
        logits, aux_logits, labels, config.model.aux_loss_weight,
        IGNORE_LABEL, normalizer=config.loss.normalizer,
        num_replicas=config.loss.num_replicas,
        align_corners=config.model.align_corners,
        # Rows that lie on several devices are not taken in turn.
        rows_at_once=0 if config.mesh.space != 1 else losses.ROWS_AT_ONCE)
    return loss, (updates["batch_stats"], parts)

  (loss, (batch_stats, parts)), grads = jax.value_and_grad(
      loss_fn, has_aux=True)(state.params)
  updates, opt_state = optimizers.create_optimizer(config).update(
      grads, state.opt_state, state.params)

  squares = jnp.stack([jnp.sum(g**2) for g in jax.tree.leaves(grads)])
  metrics = dict(
      parts, loss=loss, grad_norm=jnp.sqrt(squares.sum()),
      finite_grads=jnp.isfinite(squares),
      learning_rate=optimizers.poly_schedule(config)(state.step))
  next_state = TrainState(
      step=state.step + 1, params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats, opt_state=opt_state)
  if config.non_finite == "skip":
    finite = jnp.isfinite(loss) & jnp.isfinite(metrics["grad_norm"])
    # Counters go on, the optimizer's of its schedule too.
    next_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old)
        if jnp.issubdtype(new.dtype, jnp.floating) else new,
        next_state, state)
  return next_state, metrics


def compiled_step(model, config, mesh):
  """`train_step` under jit on `mesh`: (state, batch) -> (state, metrics).

  State and metrics lie on every device, batches as `sharding.batch_sharding`
  says; the state that goes in is used up. Training runs it, and
  `compile_tpu` compiles it for chips that are not there.
  """
  replicated = sharding.replicated(mesh)
  return jax.jit(
      functools.partial(train_step, model=model, config=config),
      in_shardings=(replicated, sharding.batch_sharding(mesh)),
      out_shardings=replicated, donate_argnums=0)
