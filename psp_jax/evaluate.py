"""Scores a split: the same protocol in training and at its end."""

import collections
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psp_jax import (
  console,
  metrics,
  sliding_window,
  stitching,
  visualize,
)
from psp_jax.data import input_pipeline
from psp_jax.models import prepack
from psp_jax.workdir import write_text

# Images whose results the host has not fetched yet: the device stays busy.
_PENDING = 2


@functools.partial(jax.jit, static_argnames="num_classes")
def _compare(probabilities, labels, confusion, num_classes):
  """(predictions, sum of confusion matrices); labels are padded with 255."""
  predictions = jnp.argmax(probabilities, -1)
  confusion += metrics.confusion_matrix(labels, predictions, num_classes)
  return predictions.astype(jnp.uint8), confusion


def compiled_forward(model, protocol: sliding_window.Protocol, mesh: Mesh):
  """`stitching.make_forward` under jit: windows lie over "data"."""
  sharded = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(
      stitching.make_forward(model, protocol.flip, protocol.average),
      in_shardings=(NamedSharding(mesh, PartitionSpec()), sharded),
      out_shardings=sharded)


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
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    self._window_batch = config.eval.window_batch * mesh.size
    self._replicated = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    forward = compiled_forward(model, self.protocol, mesh)
    self._prepack = lambda variables: {}
    if mesh.devices.flat[0].platform == "cpu":
      side = self.protocol.window or config.data.crop_size
      shape = (self._window_batch * (1 + self.protocol.flip), side, side, 3)
      self._prepack = jax.jit(functools.partial(prepack, model, shape=shape),
                              out_shardings=self._replicated)
    # Cutting and stitching run on the first device: a copy of every canvas
    # on every device would take as many times the memory.
    first = jax.local_devices()[0]
    self._forward = lambda variables, windows: jax.device_put(
        forward(variables, jax.device_put(windows, sharded)), first)

  def run(self, state, split, num_images: int | None = None,
          keep: int = 0, on_prediction=None,
          alive=lambda doing: None,
          what: str = "evaluation") -> tuple[np.ndarray, list]:
    """Scores `split`, or an evenly spread subset of it.

    Args:
      state: with params and batch_stats.
      split: a `datasets.Split`.
      num_images: of the subset; None or 0 for all.
      keep: how many (image, truth, prediction) to keep for a contact sheet.
      on_prediction: called with every (record, (H, W) uint8 class ids) of
        this process, in no other; None saves the transfer from the device.
      alive: called with what it is at, of every image; it may raise.
      what: that the console calls it.

    Returns:
      The (C, C) int64 confusion matrix over all processes, and the kept.
    """
    variables = jax.device_put(
        jax.tree.map(lambda x: x.addressable_data(0) if isinstance(
            x, jax.Array) else x,
            {"params": state.params, "batch_stats": state.batch_stats}),
        self._replicated)
    variables |= self._prepack(variables)
    indices = input_pipeline.subset_indices(len(split), num_images)
    mine = indices[jax.process_index()::jax.process_count()]
    shown = set(input_pipeline.subset_indices(len(mine), keep)) if keep else ()
    total = np.zeros((self._num_classes,) * 2, np.int64)
    kept, done, pending = [], 0, collections.deque()

    def finish(record, predictions, confusion):
      nonlocal done
      total[:] += np.asarray(confusion)
      if done in shown or on_prediction:
        prediction = stitching.from_blocks(
            predictions, *record["label"].shape)
        if done in shown:
          kept.append((record["image"], record["label"], prediction))
        if on_prediction:
          on_prediction(record, prediction)
      done += 1

    def images():
      for i, record in enumerate(input_pipeline.evaluation_records(
          split, mine, self._config)):
        alive(f"scoring image {i + 1} of {len(mine)}")
        yield record, record["image"]

    alive("scoring: waiting for the first image")
    results = stitching.stitched(
        self._forward, variables, images(), self._num_classes, self.protocol,
        self._window_batch)
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


def _or_null(fraction) -> float | None:
  """JSON has no NaN, which is what the score of no pixel at all is."""
  return None if math.isnan(fraction) else float(fraction)
