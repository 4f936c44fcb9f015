"""The training loss (paper section 3.3; semseg model/pspnet.py)."""

import jax
import jax.numpy as jnp
import optax

from psp_jax.errors import ConfigError, check_choice


def check_normalizer(config) -> None:
  """Raises ConfigError where `config.loss` cannot work on the batch."""
  c = config.loss
  check_choice("loss.normalizer", c.normalizer,
               ("global", "per_replica", "all_pixels"))
  if c.normalizer == "per_replica" and (
      c.num_replicas < 1 or config.global_batch_size % c.num_replicas):
    raise ConfigError(
        f"config.global_batch_size={config.global_batch_size} does not divide "
        f"into config.loss.num_replicas={c.num_replicas} equal groups: change "
        "one of them, or set config.loss.normalizer='global'")


def cross_entropy(
    logits: jax.Array, labels: jax.Array, ignore_label: int,
    normalizer: str = "global", num_replicas: int = 1) -> jax.Array:
  """Cross-entropy over the pixels that are not `ignore_label`, averaged.

  What a sum over valid pixels is divided by differs between codebases:

  * "global": the batch's valid pixels.
  * "per_replica": the valid pixels of each of `num_replicas` equal groups of
    consecutive images; then the mean over groups. semseg's, whose 8 processes
    average their gradients. A group is not a device: the result does not
    depend on the number of devices.
  * "all_pixels": all pixels, ignored ones too. mmsegmentation's.

  Where there is no valid pixel (ADE20K has 14 empty masks) the batch, or the
  group, contributes 0 to loss and gradient; PyTorch's mean is NaN there.

  Args:
    logits: (N, H, W, C) float32.
    labels: (N, H, W) integers below C, or `ignore_label`.
    ignore_label: the value left out.
    normalizer: one of the above.
    num_replicas: for "per_replica"; divides N.

  Returns:
    A scalar.
  """
  valid = labels != ignore_label
  safe = jnp.where(valid, labels, 0).astype(jnp.int32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
  losses = jnp.where(valid, losses, 0.0)
  if normalizer == "all_pixels":
    return jnp.mean(losses)
  # Images first: a sum over pixels stays on the devices that hold them.
  groups = num_replicas if normalizer == "per_replica" else 1
  total = losses.sum((1, 2)).reshape(groups, -1).sum(1)
  count = valid.sum((1, 2)).reshape(groups, -1).sum(1)
  return jnp.mean(total / jnp.maximum(count, 1))


def segmentation_loss(
    logits: jax.Array, aux_logits: jax.Array | None, labels: jax.Array,
    aux_loss_weight: float, ignore_label: int, normalizer: str = "global",
    num_replicas: int = 1):
  """main + aux_loss_weight * auxiliary, and both parts by name."""
  how = labels, ignore_label, normalizer, num_replicas
  main = cross_entropy(logits, *how)
  if aux_logits is None:
    return main, {"main_loss": main}
  aux = cross_entropy(aux_logits, *how)
  return main + aux_loss_weight * aux, {"main_loss": main, "aux_loss": aux}
