"""The state of training and the pure step that advances it."""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from psp_jax import kept_programs, losses, optimizers, sharding
from psp_jax.data.augment import crop_shape
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
  """A fresh state; `variables` (pretrained) or random from `config.seed`.

  May be traced. Without `variables` `initialize` has them sooner, if not.
  """
  if variables is None:
    variables = jax.jit(_init(model, config))()
  optimizer = optimizers.create_optimizer(config)
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=variables["params"],
      batch_stats=variables["batch_stats"],
      opt_state=jax.jit(optimizer.init)(variables["params"]))


def state_shapes(model, config, where=None) -> TrainState:
  """What `create_train_state` makes, without making it.

  Args:
    where: a sharding that all arrays are to have.
  """
  shapes = kept_programs.kept_shapes(lambda: jax.eval_shape(
      lambda: create_train_state(model, config)), config)
  return jax.tree.map(lambda x: x.update(sharding=where), shapes)


def initialize(model, config):
  """{"params", "batch_stats"} drawn from `config.seed`, now."""
  # Of a CPU's program, all of it random numbers, LLVM's later passes change no
  # bit, and took most of the compilation.
  options: dict[str, Any] | None = {"xla_backend_optimization_level": 1}
  if jax.default_backend() != "cpu":
    options = None
  init = jax.jit(_init(model, config), compiler_options=options)
  return kept_programs.kept("init", init, config)()


def _init(model, config):
  # Parameter shapes do not depend on the image size: a small one is quick.
  images = jnp.zeros((1, 65, 65, 3))
  key = jax.random.key(config.seed)
  return lambda: model.init(key, images, train=True)


def train_step(state: TrainState, batch, *, model, config):
  """One SGD step on {"image": uint8 (N,H,W,3), "label": uint8 (N,H,W)}.

  Rows beyond the crop's height are filler, see `sharding.shard_batch`.
  Dropout's key derives from (seed, step), so a resumed run draws the same.

  With `config.accumulation_steps` p the batch is taken in p parts, one after
  the other, of which the i-th has images i, i + p, i + 2p and so on: loss and
  gradient are the whole batch's, but for BatchNorm, which sees each part by
  itself.

  With `config.non_finite` "skip" a step whose loss or gradient is not finite
  changes nothing but the step's number.

  Returns:
    The next state and metrics: the scalars loss, main_loss, aux_loss,
    learning_rate, grad_norm, pixel_accuracy (of the crops), and finite_grads,
    of each array of parameters in tree order whether its gradient is finite.
  """
  key = jax.random.fold_in(jax.random.key(config.seed), state.step)
  height, _ = crop_shape(config)
  batch = {name: array[:, :height] for name, array in batch.items()}
  weights = losses.image_weights(
      batch["label"], IGNORE_LABEL, config.loss.normalizer,
      config.loss.num_replicas)

  def loss_fn(params, batch_stats, batch, image_weights, key):
    (logits, aux_logits), updates = model.apply(
        {"params": params, "batch_stats": batch_stats},
        normalize(batch["image"]), train=True, mutable=["batch_stats"],
        rngs={"dropout": key})
    loss, parts = losses.segmentation_loss(
        logits, aux_logits, batch["label"], config.model.aux_loss_weight,
        IGNORE_LABEL, align_corners=config.model.align_corners,
        # Rows that lie on several devices are not taken in turn.
        rows_at_once=0 if config.mesh.space != 1 else losses.ROWS_AT_ONCE,
        weights=weights._replace(loss=image_weights))
    return loss, (updates["batch_stats"], dict(parts, loss=loss))

  gradient = jax.grad(loss_fn, has_aux=True)
  if config.accumulation_steps == 1:
    grads, (batch_stats, values) = gradient(
        state.params, state.batch_stats, batch, weights.loss, key)
  else:
    grads, batch_stats, values = _accumulate(
        gradient, state, (batch, weights.loss), key, config.accumulation_steps)
  updates, opt_state = optimizers.create_optimizer(config).update(
      grads, state.opt_state, state.params)

  squares = jnp.stack([jnp.sum(g**2) for g in jax.tree.leaves(grads)])
  metrics = dict(
      values, grad_norm=jnp.sqrt(squares.sum()),
      finite_grads=jnp.isfinite(squares),
      learning_rate=optimizers.poly_schedule(config)(state.step))
  next_state = TrainState(
      step=state.step + 1, params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats, opt_state=opt_state)
  if config.non_finite == "skip":
    finite = jnp.isfinite(values["loss"]) & jnp.isfinite(metrics["grad_norm"])
    # Counters go on, the optimizer's of its schedule too.
    next_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old)
        if jnp.issubdtype(new.dtype, jnp.floating) else new,
        next_state, state)
  return next_state, metrics


def _accumulate(gradient, state, arrays, key, count: int):
  """Sums over `count` parts of `arrays`: gradients, and values that add up.

  Returns:
    (gradients, batch_stats after the last part, values)
  """
  def add(sums, item):
    grads, batch_stats = sums
    index, (batch, image_weights) = item
    more, (batch_stats, values) = gradient(
        state.params, batch_stats, batch, image_weights,
        jax.random.fold_in(key, index))
    return (jax.tree.map(jnp.add, grads, more), batch_stats), values

  # Every count-th image: each device has as many of its own in every part.
  parts = jax.tree.map(lambda x: x.reshape(
      -1, count, *x.shape[1:]).swapaxes(0, 1), arrays)
  zeros = jax.tree.map(jnp.zeros_like, state.params)
  (grads, batch_stats), values = jax.lax.scan(
      add, (zeros, state.batch_stats), (jnp.arange(count), parts))
  return grads, batch_stats, jax.tree.map(lambda x: x.sum(0), values)


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
