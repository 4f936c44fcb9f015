"""NaN and infinity: found at every step, before a checkpoint holds them."""

import json
import math

import jax

from psp_jax import console
from psp_jax.data import input_pipeline
from psp_jax.errors import NonFiniteError
from psp_jax.workdir import write_text

REPORT = "non_finite.json"


class Guard:
  """Looks at the metrics of every step."""

  def __init__(self, config, workdir, split, params):
    self._config, self._workdir, self._split = config, workdir, split
    self._names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    self._skipped = 0
    self._last = None

  def check(self, step: int, metrics) -> dict[str, float]:
    """The scalar metrics as floats; waits for the step.

    Raises:
      NonFiniteError: the loss or the gradient is not finite, and the config
        does not skip such steps or has skipped too many in a row. A report
        lies in the workdir.
    """
    if self._last and self._last[0] == step:
      return self._last[1]
    values = {name: float(value) for name, value in metrics.items()
              if name != "finite_grads"}
    self._last = step, values
    wrong = [name for name in ("loss", "grad_norm")
             if not math.isfinite(values[name])]
    if not wrong:
      self._skipped = 0
      return values
    self._skipped += 1
    what = (f"{wrong[0]} is {values[wrong[0]]} at step {step}, learning rate "
            f"{values['learning_rate']:.3g}")
    if (self._config.non_finite == "skip"
        and self._skipped <= self._config.max_skipped_steps):
      console.log(f"skipped    {what}")
      return values
    self._report(step, values, metrics["finite_grads"])
    raise NonFiniteError(
        f"{what}: stopped; the checkpoints before it are good. "
        f"{self._workdir / REPORT} names the records and arrays. Lower "
        "config.optimizer.base_lr and start again, or let "
        "--config.non_finite=skip leave such steps out")

  def _report(self, step, values, finite):
    if jax.process_index() > 0:
      return
    arrays = [name for name, fine in zip(self._names, finite.tolist(),
                                         strict=True) if not fine]
    records = [self._split[i]["name"] for i in input_pipeline.record_indices(
        self._split, self._config, step - 1)]
    write_text(self._workdir / REPORT, json.dumps({
        "step": step,
        **{name: value if math.isfinite(value) else str(value)
           for name, value in values.items()},
        "records": [n.decode() if isinstance(n, bytes) else str(n)
                    for n in records],
        "arrays_whose_gradient_is_not_finite": arrays}, indent=2) + "\n")
