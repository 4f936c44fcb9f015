"""Confusion matrix and scores against loops and hand-worked figures."""

import math

import jax
import numpy as np
import pytest

from psp_jax import metrics
from psp_jax.data import ade20k, decode, pairs


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
@pytest.mark.parametrize("classes", [2, 7, 150])
def test_confusion_matrix_equals_the_loop(classes, dtype):
  rng = np.random.default_rng(classes)
  labels = rng.integers(0, classes, (2, 9, 11)).astype(dtype)
  labels[rng.random(labels.shape) < 0.3] = 255
  predictions = rng.integers(0, classes, labels.shape).astype(np.int32)
  expected = np.zeros((classes, classes), int)
  for place in np.ndindex(labels.shape):
    if labels[place] != 255:
      expected[labels[place], predictions[place]] += 1
  count = jax.jit(metrics.confusion_matrix, static_argnums=2)
  out = count(labels, predictions, classes)
  np.testing.assert_array_equal(out, expected)
  assert np.issubdtype(out.dtype, np.integer)


def test_rows_are_the_truth():
  out = metrics.confusion_matrix(
      np.array([[0, 0, 1]]), np.array([[1, 1, 2]]), 3)
  np.testing.assert_array_equal(out, [[0, 2, 0], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("ignored", [255, 3, -1, -100])
def test_ignored_pixels_do_not_count_wherever_predictions_fall(ignored):
  labels = np.full((4, 4), ignored, np.int32)
  predictions = np.arange(16).reshape(4, 4) % 3
  out = metrics.confusion_matrix(labels, predictions, 3)
  np.testing.assert_array_equal(out, np.zeros((3, 3)))


def scores_loop(labels, predictions, classes, absent):
  """From pixels, class by class; NaN for what is 0 / 0."""
  iou, accuracy = [], []
  for c in range(classes):
    hit = sum((labels == c) & (predictions == c))
    union = sum((labels == c) | (predictions == c))
    truth = sum(labels == c)
    iou.append(hit / union if union else math.nan)
    accuracy.append(hit / truth if truth else math.nan)

  def mean(values):
    seen = [v for v in values if not math.isnan(v)]
    return sum(seen) / (classes if absent == "zero" else len(seen))

  return iou, accuracy, mean(iou), mean(accuracy), np.mean(
      labels == predictions)


@pytest.mark.parametrize("absent", ["skip", "zero"])
@pytest.mark.parametrize("missing", [(), (2,), (0, 4)])
def test_scores_equal_the_loop(missing, absent):
  rng = np.random.default_rng(3)
  present = [c for c in range(6) if c not in missing]
  labels = rng.choice(present, 400)
  predictions = np.where(rng.random(400) < 0.6, labels,
                         rng.choice(present, 400))
  # Class 5 is predicted but never true: IoU 0, accuracy undefined.
  predictions[labels == 5], labels[labels == 5] = 5, 1
  confusion = np.zeros((6, 6), int)
  np.add.at(confusion, (labels, predictions), 1)
  iou, accuracy, miou, mean_accuracy, pixel_accuracy = scores_loop(
      labels, predictions, 6, absent)
  out = metrics.scores(confusion, absent)
  np.testing.assert_allclose(out.per_class_iou, iou)
  np.testing.assert_allclose(out.per_class_accuracy, accuracy)
  assert out.per_class_iou[5] == 0 and math.isnan(out.per_class_accuracy[5])
  assert out.miou == pytest.approx(miou)
  assert out.mean_accuracy == pytest.approx(mean_accuracy)
  assert out.pixel_accuracy == pytest.approx(pixel_accuracy)


def test_a_worked_example():
  confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
  skip, zero = metrics.scores(confusion), metrics.scores(confusion, "zero")
  # IoU 6/9 and 3/6, accuracy 6/8 and 3/4; the third class has no pixel.
  assert skip.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
  assert zero.miou == pytest.approx((6 / 9 + 3 / 6) / 3)
  assert skip.mean_accuracy == pytest.approx(0.75)
  assert zero.mean_accuracy == pytest.approx(0.5)
  assert skip.pixel_accuracy == zero.pixel_accuracy == pytest.approx(0.75)


@pytest.mark.filterwarnings("error")
def test_nothing_but_ignored_pixels():
  out = metrics.scores(np.zeros((4, 4), int))
  assert math.isnan(out.miou) and math.isnan(out.mean_accuracy)
  assert math.isnan(out.pixel_accuracy)
  assert np.isnan(out.per_class_iou).all()
  assert metrics.scores(np.zeros((4, 4), int), "zero").miou == 0


def test_the_final_score_is_the_mean_of_two():
  assert metrics.scores(np.array([[3, 1], [0, 0]])).final_score == (
      pytest.approx((3 / 4 + (3 / 4 + 0) / 2) / 2))


def test_perfect_guesses_of_the_ade20k_samples(shared):
  """15 of 150 classes occur: 0.1 where the absent ones count as zero."""
  root = shared / "data/ade20k_sample/ADEChallengeData2016"
  found = pairs.pair_folders(root / "images/validation",
                             root / "annotations/validation", [])
  confusion = np.zeros((150, 150), np.int64)
  for pair in found:
    mask = decode.decode_mask(pair.mask.read_bytes(), pair.name)
    label = ade20k.TAXONOMY.label_map[mask]
    confusion += np.asarray(metrics.confusion_matrix(label, label, 150))
  assert len(found) == 3
  out = metrics.scores(confusion, "zero")
  assert out.miou == pytest.approx(0.1, abs=1e-12) and out.pixel_accuracy == 1
  assert out.final_score == pytest.approx(0.55)
  assert metrics.scores(confusion, "skip").miou == 1


def test_counts_beyond_float32_stay_exact():
  # A dataset has more pixels than float32 can count one by one.
  confusion = np.array([[2**40 + 1, 0], [0, 1]])
  assert metrics.scores(confusion).pixel_accuracy == 1
  confusion[0, 1] = 1
  assert metrics.scores(confusion).pixel_accuracy < 1
