"""TensorBoard events, written beside the steps."""

import concurrent.futures
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from psp_jax.errors import Stopped, StorageError


class EventWriter:
  """Writes to the workdir, through CLU, in a thread of its own; process 0's.

  CLU imports TensorFlow, which takes seconds: nothing waits for that, and it
  begins with the first events, when the first step is done. What goes wrong
  is raised by a later call, as StorageError. As a context it is closed at the
  end, whatever happens.
  """

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "events")
    self._pending = []
    self._writer: Any = None

  def write_scalars(self, step: int, what: str,
                    scalars: dict[str, float]) -> None:
    """As WHAT/NAME."""
    self._submit("write_scalars", step, {
        f"{what}/{name}": value for name, value in scalars.items()})

  def write_image(self, step: int, tag: str, image: np.ndarray) -> None:
    """`image`: (H, W, 3) uint8 RGB."""
    self._submit("write_images", step, {tag: image})

  def write_config(self, step: int, config) -> None:
    """The config as it is at `step`, under TensorBoard's TEXT."""
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    self._submit("write_texts", step, {"config": f"```json\n{text}\n```"})

  def write_scores(self, step: int, what: str, scores, class_names) -> None:
    """`metrics.Scores` as WHAT/miou, ..., WHAT/iou/CLASS; those that are."""
    values = {name: getattr(scores, name) for name in (
        "miou", "mean_accuracy", "pixel_accuracy")}
    values |= {f"iou/{name}": iou
               for name, iou in zip(class_names, scores.per_class_iou)}
    self.write_scalars(step, what, {
        name: float(value) for name, value in values.items()
        if not math.isnan(value)})

  def close(self) -> None:
    """Waits until all is on disk."""
    self._pending.append(self._thread.submit(self._close))
    try:
      for written in self._pending:
        self._finished(written)
    finally:
      self._thread.shutdown()

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    # A machine that is about to be taken away has no ten seconds for an
    # import: the checkpoint is whole, and what is lost are the curves of the
    # first seconds of this start.
    if isinstance(error, Stopped) and self._writer is None:
      self._thread.shutdown(wait=False, cancel_futures=True)
    else:
      self.close()

  def _submit(self, method, *args):
    if jax.process_index() > 0:
      return
    while self._pending and self._pending[0].done():
      self._finished(self._pending.pop(0))
    self._pending.append(self._thread.submit(self._write, method, *args))

  def _finished(self, written):
    try:
      written.result()
    except Exception as error:  # Of TensorFlow's own kinds.
      raise StorageError(
          f"{self._workdir}: TensorBoard's events cannot be written "
          f"({str(error).splitlines()[0]}). Checkpoints are untouched: make "
          "room or mend the disk, and start the same command again") from error

  def _write(self, method, *args):
    if self._writer is None:
      from clu import metric_writers
      self._writer = metric_writers.create_default_writer(
          str(self._workdir), asynchronous=False)
    getattr(self._writer, method)(*args)
    self._writer.flush()  # Or what someone looks at is minutes old.

  def _close(self):
    if self._writer is not None:
      self._writer.close()
