"""How far a long loop is, and when it will be done. Speaks on stderr."""

import sys
import time

from tqdm import tqdm

_SAY_EVERY_SECONDS = 10


def duration(seconds: float) -> str:
  """75 -> "1:15", 3700 -> "1:01:40"."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (f"{hours}:{minutes:02}:{seconds:02}" if hours
          else f"{minutes}:{seconds:02}")


class Status:
  """How far: a bar on a terminal, a line now and then elsewhere."""

  def __init__(self, what: str, total: int, unit: str):
    """`total` 0: nobody knows."""
    self._what, self._total = what, total
    self._began = self._said = time.monotonic()
    self._bar = tqdm(
        total=total or None, desc=what, unit=unit, file=sys.stderr,
        disable=None, dynamic_ncols=True, leave=False,
        # Parts of one count, which tqdm's own format shows to six digits.
        bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} "
                   "[{elapsed}<{remaining}{postfix}]" if total else None)

  def at(self, done: float, doing: str = "") -> None:
    """`done` of the total are; a half of one counts as such."""
    self._bar.set_postfix_str(doing, refresh=False)
    self._bar.update(done - self._bar.n)
    now = time.monotonic()
    if (not self._bar.disable or now - self._said < _SAY_EVERY_SECONDS
        or done >= self._total > 0):
      return
    self._said = now
    text = f"{self._what} {int(done):,}"
    if self._total:
      left = (now - self._began) / done * (self._total - done) if done else 0
      text += f"/{self._total:,}" + (f"  {duration(left)} left" if left else "")
    say(f"{text}  {doing}".rstrip())

  def say(self, line: str) -> None:
    """A line that stays."""
    self._bar.clear()
    say(line)

  def close(self) -> None:
    self._bar.close()


def track(items, total: int, what: str):
  """Yields `items`; a bar on a terminal, a line now and then elsewhere."""
  if sys.stderr.isatty():
    yield from tqdm(items, what, total, leave=False, unit=" pairs")
    return
  began = said = time.monotonic()
  for done, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if now - said > _SAY_EVERY_SECONDS and done < total:
      rate = done / (now - began)
      say(f"{what} {done:,}/{total:,}  {rate:.0f}/s  "
          f"{duration((total - done) / rate)} left")
      said = now


def say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
