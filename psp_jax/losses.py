"""The training loss (paper section 3.3; semseg model/pspnet.py)."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(
    logits: jax.Array, labels: jax.Array, ignore_label: int) -> jax.Array:
  """Mean cross-entropy over the pixels that are not `ignore_label`.

  The mean runs over the global batch. A batch with no valid pixel (ADE20K has
  14 empty masks) has loss 0 and gradient 0.

  Args:
    logits: (N, H, W, C) float32.
    labels: (N, H, W) integers below C, or `ignore_label`.
    ignore_label: the value left out.

  Returns:
    A scalar.
  """
  valid = labels != ignore_label
  safe = jnp.where(valid, labels, 0).astype(jnp.int32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
  losses = jnp.where(valid, losses, 0.0)
  return jnp.sum(losses) / jnp.maximum(jnp.sum(valid), 1)


def segmentation_loss(
    logits: jax.Array, aux_logits: jax.Array | None, labels: jax.Array,
    aux_loss_weight: float, ignore_label: int):
  """main + aux_loss_weight * auxiliary, and both parts by name."""
  main = cross_entropy(logits, labels, ignore_label)
  if aux_logits is None:
    return main, {"main_loss": main}
  aux = cross_entropy(aux_logits, labels, ignore_label)
  return main + aux_loss_weight * aux, {"main_loss": main, "aux_loss": aux}
