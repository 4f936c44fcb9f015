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
