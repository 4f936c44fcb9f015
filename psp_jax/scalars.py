"""TensorBoard events, written beside the steps."""

import concurrent.futures
import pathlib
from typing import Any

import jax

from psp_jax.errors import StorageError


class ScalarWriter:
  """Writes scalars in the workdir, through CLU, in a thread of its own.

  CLU imports TensorFlow, which takes seconds: nothing waits for that, and it
  begins with the first scalars, when the first step is done. What goes wrong
  is raised by a later call, as StorageError.
  """

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "scalars")
    self._pending = []
    self._writer: Any = None

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    while self._pending and self._pending[0].done():
      self._finished(self._pending.pop(0))
    self._pending.append(self._thread.submit(self._write, step, scalars))

  def close(self) -> None:
    """Waits until all is on disk."""
    self._pending.append(self._thread.submit(self._close))
    try:
      for written in self._pending:
        self._finished(written)
    finally:
      self._thread.shutdown()

  def _finished(self, written):
    try:
      written.result()
    except Exception as error:  # Of TensorFlow's own kinds.
      raise StorageError(
          f"{self._workdir}: TensorBoard's events cannot be written "
          f"({str(error).splitlines()[0]}). Checkpoints are untouched: make "
          "room or mend the disk, and start the same command again") from error

  def _write(self, step, scalars):
    if self._writer is None:
      from clu import metric_writers
      self._writer = metric_writers.create_default_writer(
          str(self._workdir), just_logging=jax.process_index() > 0,
          asynchronous=False)
    self._writer.write_scalars(step, scalars)

  def _close(self):
    if self._writer is not None:
      self._writer.close()
