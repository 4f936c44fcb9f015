"""What a run has been through: workdir/training.jsonl and validation.jsonl.

One line each logged step, one each validation. A run that goes on drops what
is later than its checkpoint and does it again, so that both files end as those
of a run that nothing disturbed.
"""

import json
import math
import os
import pathlib

import jax

from psp_jax.errors import StorageError
from psp_jax.workdir import write_text

_TRAINING = ("loss", "pixel_accuracy", "learning_rate")
_VALIDATION = ("miou", "mean_accuracy", "pixel_accuracy")


class History:
  """What has been scored until now, on every process."""

  def __init__(self, workdir: pathlib.Path, last_step: int):
    """Reads the files; what is later than `last_step` will be done again."""
    self._path = workdir / "validation.jsonl"
    self._entries = [e for e in _read(self._path, "miou")
                     if e["step"] <= last_step]
    self._training = workdir / "training.jsonl"
    if jax.process_index() == 0 and self._training.exists():
      _write(self._training, [e for e in _read(self._training, "loss")
                              if e["step"] <= last_step])

  def add_step(self, step: int, metrics: dict[str, float]) -> None:
    """A line of training.jsonl: appended, for there may be thousands.

    Raises:
      StorageError: it cannot be written.
    """
    if jax.process_index() > 0:
      return
    line = json.dumps(_entry(step, {n: metrics[n] for n in _TRAINING})) + "\n"
    try:
      with open(self._training, "a", encoding="utf-8") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())  # A checkpoint that stays has its steps.
    except OSError as error:
      raise StorageError(f"{self._training}: cannot be written "
                         f"({error.strerror})") from error

  def add(self, step: int, scores) -> None:
    """A validation. Raises StorageError where it cannot be written."""
    self._entries.append(
        _entry(step, {n: getattr(scores, n) for n in _VALIDATION}))
    if jax.process_index() == 0:
      _write(self._path, self._entries)

  def has(self, step: int) -> bool:
    """Whether `step` has been validated."""
    return any(entry["step"] == step for entry in self._entries)

  def best_step(self) -> int | None:
    """Of the largest mIoU, the first of equals; None before any."""
    best = self.best()
    return best["step"] if best else None

  def best(self) -> dict | None:
    """The line of `best_step`."""
    scored = [e for e in self._entries if e["miou"] is not None]
    return max(scored, key=lambda e: e["miou"], default=None)


def curves(workdir: pathlib.Path) -> tuple[list[dict], list[dict]]:
  """The entries of both files, training first; [] where there is none."""
  return (_read(workdir / "training.jsonl", "loss"),
          _read(workdir / "validation.jsonl", "miou"))


def _entry(step: int, values: dict[str, float]) -> dict:
  """JSON has neither NaN nor infinity: null."""
  return {"step": step} | {name: value if math.isfinite(value) else None
                           for name, value in values.items()}


def _write(path, entries) -> None:
  write_text(path, "".join(json.dumps(e) + "\n" for e in entries))


def _read(path, needed: str) -> list[dict]:
  """What is not ours is left out: validations come again.

  A last line that a kill has cut short is not ours either.
  """
  try:
    lines = path.read_text(encoding="utf-8").splitlines()
  except (FileNotFoundError, ValueError):
    return []
  entries = []
  for line in lines:
    try:
      entry = json.loads(line)
      if isinstance(entry["step"], int) and (
          entry[needed] is None or isinstance(entry[needed], float)):
        entries.append(entry)
    except (ValueError, KeyError, TypeError):
      pass
  return entries
