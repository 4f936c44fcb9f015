"""A trace of some steps, by JAX's profiler, for TensorBoard and XProf."""

import contextlib
import pathlib
import re

import jax

from psp_jax.errors import ConfigError, StorageError


def parse(text: str, num_steps: int) -> tuple[int, int] | None:
  """"FIRST:LAST", both included -> (FIRST, LAST); "" -> None.

  Raises:
    ConfigError: it is neither, or there are no such steps.
  """
  if not text:
    return None
  found = re.fullmatch(r"(\d+):(\d+)", text)
  if not found:
    raise ConfigError(f"config.profile={text!r}: write FIRST:LAST, such as "
                      "'10:13' for the steps 10 to 13, or '' for none")
  first, last = map(int, found.groups())
  if not 1 <= first <= last <= num_steps:
    raise ConfigError(f"config.profile={text!r}: steps are 1 to "
                      f"config.num_train_steps={num_steps}, the first no "
                      "later than the last")
  return first, last


class Profile:
  """Traces steps of process 0 into the workdir's plugins/profile."""

  def __init__(self, steps: tuple[int, int] | None, workdir: pathlib.Path):
    self._first, self._last = steps or (0, 0)
    self._workdir = workdir
    self._metrics = None
    self._tracing = False

  @contextlib.contextmanager
  def step(self, step: int):
    """Around waiting for the batch of `step` and starting it."""
    if not self._tracing and self._first <= step <= self._last:
      jax.block_until_ready(self._metrics)  # No earlier step in the trace.
      if jax.process_index() == 0:
        options = jax.profiler.ProfileOptions()
        # Every call of a Python function would be an event: a hundred
        # thousand a step, which take longer than small steps themselves.
        options.python_tracer_level = 0
        jax.profiler.start_trace(self._workdir, profiler_options=options)
        self._tracing = True
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def started(self, step: int, metrics) -> None:
    """`step` runs, and will have these metrics: ends the trace after the last.

    Raises:
      StorageError: it cannot be written.
    """
    self._metrics = metrics
    if self._tracing and step == self._last:
      jax.block_until_ready(metrics)
      self.close()

  def close(self) -> None:
    """Writes the trace of a run that ends within it."""
    if not self._tracing:
      return
    self._tracing = False
    try:
      jax.profiler.stop_trace()
    except RuntimeError as error:
      raise StorageError(
          f"{self._workdir}: the profile cannot be written "
          f"({str(error).splitlines()[0]})") from error
