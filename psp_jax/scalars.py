"""TensorBoard events, written beside the steps."""

import concurrent.futures
import pathlib

import jax


class ScalarWriter:
  """Writes scalars in the workdir, through CLU, in a thread of its own.

  CLU imports TensorFlow, which takes seconds: nothing waits for that, and it
  begins with the first scalars, when the first step is done. What goes wrong
  is raised by a later call.
  """

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "scalars")
    self._pending = []
    self._writer = None

  def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
    while self._pending and self._pending[0].done():
      self._pending.pop(0).result()
    self._pending.append(self._thread.submit(self._write, step, scalars))

  def close(self) -> None:
    """Waits until all is on disk."""
    self._pending.append(self._thread.submit(self._close))
    for written in self._pending:
      written.result()
    self._thread.shutdown()

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
