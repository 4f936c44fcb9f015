"""The validations of a run: workdir/validation.jsonl, one line each."""

import json
import math
import pathlib

import jax

from psp_jax.workdir import write_text


class History:
  """What has been scored until now, on every process."""

  def __init__(self, workdir: pathlib.Path, last_step: int):
    """Reads the file; what is later than `last_step` will be done again."""
    self._path = workdir / "validation.jsonl"
    self._entries = [e for e in _read(self._path) if e["step"] <= last_step]

  def add(self, step: int, scores) -> None:
    """Raises StorageError where it cannot be written."""
    entry = {name: None if math.isnan(value) else value for name, value in (
        ("miou", scores.miou), ("mean_accuracy", scores.mean_accuracy),
        ("pixel_accuracy", scores.pixel_accuracy))}
    self._entries.append({"step": step} | entry)
    if jax.process_index() == 0:
      write_text(self._path, "".join(
          json.dumps(e) + "\n" for e in self._entries))

  def best_step(self) -> int | None:
    """Of the largest mIoU, the first of equals; None before any."""
    best = self.best()
    return best and best["step"]

  def best(self) -> dict | None:
    """The line of `best_step`."""
    scored = [e for e in self._entries if e["miou"] is not None]
    return max(scored, key=lambda e: e["miou"], default=None)


def _read(path) -> list[dict]:
  """What is not ours is left out: those scores come again."""
  try:
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [e for e in entries
            if isinstance(e["step"], int) and (
                e["miou"] is None or isinstance(e["miou"], float))]
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return []
