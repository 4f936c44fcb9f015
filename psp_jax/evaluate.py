"""Scores a split: the same protocol in training and at its end."""

import collections
import csv
import functools
import io
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from psp_jax import (
  console,
  inference,
  metrics,
  sliding_window,
  stitching,
  visualize,
)
from psp_jax.data import input_pipeline
from psp_jax.workdir import write_text

# Images whose results the host has not fetched yet: the device stays busy.
_PENDING = 2


@functools.partial(jax.jit, static_argnames="num_classes")
def _compare(probabilities, labels, confusion, num_classes):
  """(predictions, sum of confusion matrices); labels are padded with 255."""
  predictions = jnp.argmax(probabilities, -1)
  confusion += metrics.confusion_matrix(labels, predictions, num_classes)
  return predictions.astype(jnp.uint8), confusion


def _score(blocks, label, num_classes):
  """(predictions of each block, confusion matrix) of an image."""
  predictions = []
  confusion = np.zeros((num_classes,) * 2, np.int32)
  for block, labels in zip(blocks, stitching.to_blocks(label, 255)):
    prediction, confusion = _compare(block, labels, confusion, num_classes)
    predictions.append(prediction)
  return predictions, confusion


class Evaluator:
  """Compiled once, run as often as wanted.

  Each process scores its own images on its own devices; the confusion
  matrices are summed at the end.
  """

  def __init__(self, model, config):
    self.protocol = sliding_window.Protocol.from_config(config)
    self._num_classes = model.num_classes
    self._config = config
    self._inference = inference.Inference(model, config, self.protocol)

  def run(self, state, split, num_images: int | None = None,
          keep: int = 0, on_prediction=None, alive=lambda doing: None,
          on_scored=None, what: str = "evaluation"
          ) -> tuple[np.ndarray, list]:
    """Scores `split`, or an evenly spread subset of it.

    Args:
      state: with params and batch_stats.
      split: a `datasets.Split`.
      num_images: of the subset; None or 0 for all.
      keep: how many (image, truth, prediction) to keep for a contact sheet.
      on_prediction: called with every (record, (H, W) uint8 class ids) of
        this process, in no other; None saves the transfer from the device.
      alive: called with what it is at, of every image; it may raise.
      on_scored: called with every (record, its (C, C) confusion matrix, a
        function that fetches the class ids) of this process, in no other.
      what: that the console calls it.

    Returns:
      The (C, C) int64 confusion matrix over all processes, and the kept.
    """
    variables = self._inference.variables(state)
    indices = input_pipeline.subset_indices(len(split), num_images)
    mine = indices[jax.process_index()::jax.process_count()]
    shown = set(input_pipeline.subset_indices(len(mine), keep)) if keep else ()
    total = np.zeros((self._num_classes,) * 2, np.int64)
    kept, done, pending = [], 0, collections.deque()

    def finish(record, predictions, confusion):
      nonlocal done
      confusion = np.asarray(confusion)
      total[:] += confusion
      prediction = functools.cache(lambda: stitching.from_blocks(
          predictions, *record["label"].shape))
      if done in shown:
        kept.append((record["image"], record["label"], prediction()))
      if on_prediction:
        on_prediction(record, prediction())
      if on_scored:
        on_scored(record, confusion, prediction)
      done += 1

    def images():
      for i, record in enumerate(input_pipeline.evaluation_records(
          split, mine, self._config)):
        alive(f"scoring image {i + 1} of {len(mine)}")
        yield record, record["image"]

    alive("scoring: waiting for the first image")
    results = self._inference.stitched(variables, images(), self.protocol)
    with console.tracked(results, len(mine), what, "images") as tracked:
      for record, blocks in tracked:
        pending.append((record, *_score(
            blocks, record["label"], self._num_classes)))
        blocks.clear()  # They need not wait for the next image's.
        if len(pending) > _PENDING:
          finish(*pending.popleft())
      for result in pending:
        finish(*result)
    return sum_over_processes(total), kept


def sum_over_processes(array: np.ndarray) -> np.ndarray:
  """Exact: as bytes, for JAX would make 32 bits of 64."""
  if jax.process_count() == 1:
    return array
  parts = multihost_utils.process_allgather(array.reshape(-1).view(np.uint8))
  return np.asarray(parts).view(array.dtype).sum(0).reshape(array.shape)


def score(confusion, config) -> metrics.Scores:
  return metrics.scores(confusion, config.eval.absent_classes)


def write_results(workdir, scores, taxonomy, protocol, num_images: int,
                  step: int, kept, dataset: str, split: str,
                  further: dict | None = None) -> None:
  """eval.json (with `further`) and contact_sheet.png, from process 0."""
  if jax.process_index() != 0:
    return
  result = {
      "dataset": dataset, "split": split,
      "miou": _or_null(scores.miou),
      "mean_accuracy": _or_null(scores.mean_accuracy),
      "pixel_accuracy": _or_null(scores.pixel_accuracy),
      "final_score": _or_null(scores.final_score),
      "per_class_iou": {
          name: _or_null(iou)
          for name, iou in zip(taxonomy.class_names, scores.per_class_iou)},
      "per_class_accuracy": {
          name: _or_null(accuracy) for name, accuracy in zip(
              taxonomy.class_names, scores.per_class_accuracy)},
      "num_images": num_images, "step": step,
      "protocol": protocol.as_json()} | (further or {})
  write_text(workdir / "eval.json", json.dumps(result, indent=2) + "\n")
  if kept:
    visualize.write_png(workdir / "contact_sheet.png",
                        visualize.contact_sheet(kept, taxonomy))


def write_confusion(workdir, confusion, class_names) -> None:
  """confusion.csv, from process 0: a row a true class, a column a predicted."""
  if jax.process_index() != 0:
    return
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  writer.writerow(["truth \\ prediction", *class_names])
  writer.writerows([name, *row]
                   for name, row in zip(class_names, confusion.tolist()))
  write_text(workdir / "confusion.csv", text.getvalue())


def _or_null(fraction) -> float | None:
  """JSON has no NaN, which is what the score of no pixel at all is."""
  return None if math.isnan(fraction) else float(fraction)
