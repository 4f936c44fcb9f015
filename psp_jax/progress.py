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


class Lines:
  """A line now and then."""

  def __init__(self, what: str, total: int):
    self._what, self._total = what, total
    self._began = self._said = time.monotonic()

  def at(self, done: float, doing: str = "") -> None:
    """`done` of the total are; halves of one count as such."""
    now = time.monotonic()
    if now - self._said < _SAY_EVERY_SECONDS or done >= self._total > 0:
      return
    self._said = now
    of = f"/{self._total:,}" if self._total else ""
    text = f"{self._what} {int(done):,}{of}"
    if done and self._total:
      left = (now - self._began) / done * (self._total - done)
      text += f"  {duration(left)} left"
    say(f"{text}  {doing}".rstrip())


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
