"""The training loss (paper section 3.3; semseg model/pspnet.py).

Logits come at the feature map's resolution and are compared with the labels
at the labels' own: bilinear upsampling is part of the loss here, some rows at
a time, with the gradient taken on the way. Logits at full resolution, the
largest array of a textbook step (at crop 473 as many numbers as nine feature
maps of layer1), are never in memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from psp_jax.errors import ConfigError, check_choice
from psp_jax.models.convolution import along_both_axes
from psp_jax.models.pooling import interpolation_matrix

# Rows of labels that are in memory as logits, at most.
ROWS_AT_ONCE = 64


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
    normalizer: str = "global", num_replicas: int = 1,
    align_corners: bool = True, rows_at_once: int = ROWS_AT_ONCE,
    weights: "Weights | None" = None):
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
    logits: (N, h, w, C), upsampled here to the labels' size.
    labels: (N, H, W) integers below C, or `ignore_label`.
    ignore_label: the value left out.
    normalizer: one of the above.
    num_replicas: for "per_replica"; divides N.
    align_corners: of the upsampling.
    rows_at_once: of the labels, at most; 0 for all, which a mesh that splits
      rows wants.
    weights: of these images in a larger batch, whose parts add up; then
      `normalizer` and `num_replicas` mean nothing.

  Returns:
    The loss and the share of valid pixels whose largest logit is the label's.
  """
  if weights is None:
    weights = image_weights(labels, ignore_label, normalizer, num_replicas)
  with jax.named_scope("loss"):
    loss, correct = _weighted_sum(
        logits, labels, weights.loss, ignore_label, align_corners,
        rows_at_once)
  return loss, correct / weights.num_valid


class Weights(NamedTuple):
  """What the pixels of a batch count in its means.

  Attributes:
    loss: (N,) of a valid pixel of each image.
    num_valid: pixels of the batch, at least 1.
  """
  loss: jax.Array
  num_valid: jax.Array


def image_weights(labels: jax.Array, ignore_label: int,
                  normalizer: str = "global", num_replicas: int = 1) -> Weights:
  """Of a batch of labels; arguments as those of `cross_entropy`."""
  count = (labels != ignore_label).sum((1, 2))
  num_valid = jnp.maximum(count.sum(), 1)
  if normalizer == "all_pixels":
    return Weights(jnp.full(labels.shape[:1], 1 / labels.size), num_valid)
  groups = num_replicas if normalizer == "per_replica" else 1
  total = jnp.maximum(count.reshape(groups, -1).sum(1), 1)
  return Weights(
      jnp.repeat(1 / (groups * total), labels.shape[0] // groups), num_valid)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _weighted_sum(logits, labels, weights, ignore_label, align_corners,
                  rows_at_once):
  """(sum of weight * cross-entropy, number of correct pixels)."""
  return _by_rows(logits, labels, weights, ignore_label, align_corners,
                  rows_at_once, with_gradient=False)[:2]


def _weighted_sum_fwd(logits, labels, weights, ignore_label, align_corners,
                      rows_at_once):
  # The loss is linear in what comes after it, so that its gradient is known
  # up to a factor as soon as the logits are: they need not be kept, nor
  # computed anew.
  loss, correct, gradient = _by_rows(
      logits, labels, weights, ignore_label, align_corners, rows_at_once,
      with_gradient=True)
  return (loss, correct), gradient


def _weighted_sum_bwd(ignore_label, align_corners, rows_at_once, gradient,
                      cotangents):
  factor = cotangents[0].astype(gradient.dtype)
  return gradient * factor, None, None


_weighted_sum.defvjp(_weighted_sum_fwd, _weighted_sum_bwd)


def _by_rows(logits, labels, weights, ignore_label, align_corners,
             rows_at_once, with_gradient):
  """(loss, correct, gradient by logits), some rows of labels at a time."""
  wide = jnp.promote_types(logits.dtype, jnp.float32)
  n, h, w, _ = logits.shape
  height, width = labels.shape[1:]
  chunks = -(-height // (rows_at_once or height))
  at_once = -(-height // chunks)
  filler = chunks * at_once - height
  # Filler rows are all ignored, so that what they hold does not matter.
  labels = jnp.pad(labels, ((0, 0), (0, filler), (0, 0)),
                   constant_values=ignore_label)
  labels = labels.reshape(n, chunks, at_once, width).swapaxes(0, 1)
  rows = np.pad(interpolation_matrix(h, height, align_corners),
                ((0, filler), (0, 0))).astype(wide)
  columns = interpolation_matrix(w, width, align_corners).astype(wide)
  rows = rows.reshape(chunks, at_once, h)
  wide_logits = logits.astype(wide)

  def chunk(sums, item):
    rows, labels = item
    loss, correct, gradient = sums
    with jax.named_scope("upsampling"):
      z = along_both_axes(wide_logits, rows, columns)
    truth = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
    valid = labels != ignore_label
    largest = z.max(-1)
    exponentials = jnp.exp(z - largest[..., None])
    total = exponentials.sum(-1)
    own = jnp.where(truth, z, 0).sum(-1)
    weight = jnp.where(valid, weights[:, None, None], 0).astype(wide)
    loss += ((jnp.log(total) + largest - own) * weight).sum()
    correct += (valid & (own >= largest)).sum(dtype=jnp.int32)
    if with_gradient:
      dz = exponentials * (weight / total)[..., None] - jnp.where(
          truth, weight[..., None], 0)
      with jax.named_scope("upsampling"):
        gradient += along_both_axes(dz, rows.T, columns.T)
    return (loss, correct, gradient), None

  sums = (jnp.zeros((), wide), jnp.zeros((), jnp.int32),
          jnp.zeros_like(wide_logits))
  if chunks == 1:
    sums, _ = chunk(sums, (rows[0], labels[0]))
  else:
    sums, _ = jax.lax.scan(chunk, sums, (rows, labels))
  loss, correct, gradient = sums
  return loss, correct, gradient.astype(logits.dtype)


def segmentation_loss(
    logits: jax.Array, aux_logits: jax.Array | None, labels: jax.Array,
    aux_loss_weight: float, ignore_label: int, **options):
  """main + aux_loss_weight * auxiliary; `options` are `cross_entropy`'s.

  Returns:
    The loss and {"main_loss", "aux_loss", "pixel_accuracy"}, without the
    second where there are no auxiliary logits.
  """
  main, accuracy = cross_entropy(logits, labels, ignore_label, **options)
  parts = {"main_loss": main, "pixel_accuracy": accuracy}
  if aux_logits is None:
    return main, parts
  aux, _ = cross_entropy(aux_logits, labels, ignore_label, **options)
  return main + aux_loss_weight * aux, parts | {"aux_loss": aux}
