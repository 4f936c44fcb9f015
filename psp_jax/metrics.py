"""Scores from a confusion matrix, on the host in integers and float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def confusion_matrix(
    labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
  """(C, C) int32 counts, rows truth, columns prediction; device code.

  Labels outside 0..C-1 (the ignore label) are left out.
  """
  labels = labels.astype(jnp.int32)
  valid = (labels >= 0) & (labels < num_classes)
  cell = jnp.where(valid, labels * num_classes + predictions, num_classes**2)
  counts = jnp.zeros(num_classes**2 + 1, jnp.int32).at[cell.ravel()].add(1)
  return counts[:-1].reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Scores:
  """Fractions; a class that occurs nowhere has IoU and accuracy NaN."""
  miou: float
  mean_accuracy: float
  pixel_accuracy: float
  per_class_iou: np.ndarray
  per_class_accuracy: np.ndarray

  @property
  def final_score(self) -> float:
    """What the ADE20K benchmark (CSAIL) ranks by."""
    return (self.pixel_accuracy + self.miou) / 2


def scores(confusion: np.ndarray, absent: str = "skip") -> Scores:
  """Scores of an integer confusion matrix, rows truth, columns prediction.

  Args:
    confusion: (C, C) integers.
    absent: how means treat classes without a pixel: "skip" leaves them out
      (mmsegmentation), "zero" counts them as 0 (semseg). Equal on full splits.
  """
  confusion = np.asarray(confusion, np.float64)
  hit = np.diag(confusion)
  truth = confusion.sum(1)
  union = truth + confusion.sum(0) - hit
  with np.errstate(invalid="ignore", divide="ignore"):
    iou = hit / union
    accuracy = hit / truth
  total = confusion.sum()
  return Scores(
      miou=_mean(iou, absent), mean_accuracy=_mean(accuracy, absent),
      pixel_accuracy=float(hit.sum() / total) if total else float("nan"),
      per_class_iou=iou, per_class_accuracy=accuracy)


def _mean(values: np.ndarray, absent: str) -> float:
  if absent == "zero":
    return float(np.nan_to_num(values).mean())
  seen = values[~np.isnan(values)]
  return float(seen.mean()) if seen.size else float("nan")
