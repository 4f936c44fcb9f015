"""Scores a split: the same protocol in training and at its end."""

import functools
import itertools
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psp_jax import console, metrics, progress, sliding_window, visualize
from psp_jax.data import input_pipeline

_SAY_EVERY_SECONDS = 15


@functools.partial(jax.jit, static_argnames="num_classes")
def _compare(probabilities, labels, num_classes):
  """(predictions, confusion matrix); labels are padded with 255."""
  predictions = jnp.argmax(probabilities, -1)
  confusion = metrics.confusion_matrix(labels, predictions, num_classes)
  return predictions.astype(jnp.uint8), confusion


class Evaluator:
  """Compiled once, run as often as wanted.

  Each process scores its own images on its own devices; the confusion
  matrices are summed at the end.
  """

  def __init__(self, model, config):
    self.protocol = sliding_window.Protocol.from_config(config)
    self._num_classes = model.num_classes
    self._config = config
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    self._window_batch = config.eval.window_batch * mesh.size
    self._replicated = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    forward = jax.jit(
        sliding_window.make_forward(
            model, self.protocol.flip, self.protocol.average),
        in_shardings=(self._replicated, sharded), out_shardings=sharded)
    # Cutting and stitching run on the first device: a copy of every canvas
    # on every device would take as many times the memory.
    first = jax.local_devices()[0]
    self._forward = lambda variables, windows: jax.device_put(
        forward(variables, jax.device_put(windows, sharded)), first)

  def run(self, state, split, num_images: int | None = None,
          keep: int = 0, on_prediction=None) -> tuple[np.ndarray, list]:
    """Scores `split`, or an evenly spread subset of it.

    Args:
      state: with params and batch_stats.
      split: a `datasets.Split`.
      num_images: of the subset; None or 0 for all.
      keep: how many (image, truth, prediction) to keep for a contact sheet.
      on_prediction: called with every (record, (H, W) uint8 class ids) of
        this process, in no other; None saves the transfer from the device.

    Returns:
      The (C, C) int64 confusion matrix over all processes, and the kept.
    """
    variables = jax.device_put(
        jax.tree.map(lambda x: x.addressable_data(0) if isinstance(
            x, jax.Array) else x,
            {"params": state.params, "batch_stats": state.batch_stats}),
        self._replicated)
    indices = input_pipeline.subset_indices(len(split), num_images)
    mine = indices[jax.process_index()::jax.process_count()]
    shown = set(input_pipeline.subset_indices(len(mine), keep)) if keep else ()
    total = np.zeros((self._num_classes,) * 2, np.int64)
    kept, done, pending = [], 0, []
    began = said = time.monotonic()

    records = input_pipeline.evaluation_records(split, mine, self._config)
    for group in _same_size_groups(records, self._group_size):
      predictions, confusion = self._score(variables, group)
      pending.append(confusion)
      if len(pending) > 2:  # Keep the device busy, but not without bound.
        total += np.asarray(pending.pop(0), np.int64)
      for i, record in enumerate(group):
        if done + i in shown or on_prediction:
          predictions = np.asarray(predictions)
          height, width = record["label"].shape
          prediction = predictions[i, :height, :width]
          if done + i in shown:
            kept.append((record["image"], record["label"], prediction))
          if on_prediction:
            on_prediction(record, prediction)
      done += len(group)
      now = time.monotonic()
      if now - said > _SAY_EVERY_SECONDS and done < len(mine):
        left = (now - began) / done * (len(mine) - done)
        console.say(f"evaluation {done}/{len(mine)} images  "
                    f"{done / (now - began):.1f} images/s  "
                    f"{progress.duration(left)} left")
        said = now
    for confusion in pending:
      total += np.asarray(confusion, np.int64)
    return sum_over_processes(total), kept

  def _group_size(self, height: int, width: int) -> int:
    """Images of one size that fill a batch of windows."""
    windows = max(len(sliding_window.plan(
        height, width, scale, self.protocol).offsets)
        for scale in self.protocol.scales)
    return max(1, self._window_batch // windows)

  def _score(self, variables, group):
    images = np.stack([r["image"] for r in group])
    labels = np.stack([r["label"] for r in group])
    missing = self._group_size(*labels.shape[1:]) - len(group)
    if missing > 0:  # One shape a size, the last group included.
      images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
      labels = np.pad(labels, ((0, missing), (0, 0), (0, 0)),
                      constant_values=255)
    probabilities = sliding_window.probabilities(
        self._forward, variables, images, self._num_classes, self.protocol,
        self._window_batch)
    beyond = [(0, a - b) for a, b in zip(probabilities.shape, labels.shape)]
    labels = np.pad(labels, beyond, constant_values=255)
    return _compare(probabilities, labels, self._num_classes)


def sum_over_processes(array: np.ndarray) -> np.ndarray:
  """Exact: as bytes, for JAX would make 32 bits of 64."""
  if jax.process_count() == 1:
    return array
  parts = multihost_utils.process_allgather(array.reshape(-1).view(np.uint8))
  return np.asarray(parts).view(array.dtype).sum(0).reshape(array.shape)


def _same_size_groups(records, group_size):
  """Lists of consecutive records of one size, at most group_size(h, w)."""
  for shape, run in itertools.groupby(records, lambda r: r["label"].shape):
    while group := list(itertools.islice(run, group_size(*shape))):
      yield group


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
  (workdir / "eval.json").write_text(json.dumps(result, indent=2) + "\n")
  if kept:
    visualize.write_png(workdir / "contact_sheet.png",
                        visualize.contact_sheet(kept, taxonomy))


def _or_null(fraction) -> float | None:
  """JSON has no NaN, which is what the score of no pixel at all is."""
  return None if math.isnan(fraction) else float(fraction)
