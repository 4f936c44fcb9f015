"""How far a long loop is, and when it will be done. Speaks on stderr.

On a terminal that is one line at the bottom, below all that is said; both
streams must be one, for what a pipe does with a line is not known here.
"""

import sys
import time

_SAY_EVERY_SECONDS = 10
_DRAW_EVERY_SECONDS = 0.5


def duration(seconds: float) -> str:
  """75 -> "1:15", 3700 -> "1:01:40"."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return (f"{hours}:{minutes:02}:{seconds:02}" if hours
          else f"{minutes}:{seconds:02}")


def on_terminal() -> bool:
  return sys.stdout.isatty() and sys.stderr.isatty()


def say(line: str, file=None) -> None:
  """A whole line, above the bar if there is one; to stderr without `file`."""
  file = file or sys.stderr
  if on_terminal():
    from tqdm import tqdm  # Late: it takes a tenth of a second.
    tqdm.write(line, file)
  else:
    print(line, file=file)
  file.flush()


def bar(what: str, total: int, done: int = 0, **options):
  """A tqdm that leaves nothing behind; for terminals."""
  from tqdm import tqdm

  class Bar(tqdm):
    @property
    def format_dict(self):
      """Not quite as wide as the terminal, or "^C" would make it two lines."""
      found = super().format_dict
      return found | {"ncols": max((found["ncols"] or 80) - 4, 1)}

  return Bar(desc=what, total=total, initial=done, leave=False,
             dynamic_ncols=True, mininterval=_DRAW_EVERY_SECONDS, miniters=1,
             **options)


def log_above() -> None:
  """What libraries log (through absl) comes above the bar, as `say` does."""
  if on_terminal():
    from absl import logging
    from tqdm.contrib import DummyTqdmFile
    logging.get_absl_handler().python_handler.setStream(
        DummyTqdmFile(sys.stderr))


class Status:
  """How far: a bar on a terminal, a line now and then elsewhere."""

  def __init__(self, what: str, total: int, unit: str):
    """`total` 0: nobody knows."""
    self._what, self._total = what, total
    self._began = self._said = time.monotonic()
    self._bar = None
    if on_terminal():
      # Parts of one count, which tqdm's own format shows to six digits.
      self._bar = bar(what, total, unit=f" {unit}", bar_format=(
          "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total_fmt} "
          "[{elapsed}<{remaining}{postfix}]") if total else None)

  def at(self, done: float, doing: str = "") -> None:
    """`done` of the total are; a half of one counts as such."""
    if self._bar is not None:
      self._bar.set_postfix_str(doing, refresh=False)
      self._bar.update(done - self._bar.n)
      return
    now = time.monotonic()
    if now - self._said < _SAY_EVERY_SECONDS or done >= self._total > 0:
      return
    self._said = now
    text = f"{self._what} {int(done):,}"
    if self._total:
      left = (now - self._began) / done * (self._total - done) if done else 0
      text += f"/{self._total:,}" + (f"  {duration(left)} left" if left else "")
    say(f"{text}  {doing}".rstrip())

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()


def track(items, total: int, what: str, unit: str = "pairs", say=say):
  """Yields `items`; a bar on a terminal, a line now and then elsewhere."""
  if on_terminal():
    with bar(what, total, unit=f" {unit}", bar_format="{l_bar}{bar}| {n_fmt}/"
             "{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]") as drawn:
      for item in items:
        yield item
        drawn.update()
    return
  began = said = time.monotonic()
  for done, item in enumerate(items, 1):
    yield item
    now = time.monotonic()
    if now - said > _SAY_EVERY_SECONDS and done < total:
      rate = done / (now - began)
      say(f"{what} {done:,}/{total:,}  {_rounded(rate)}/s  "
          f"{duration((total - done) / rate)} left")
      said = now


def _rounded(rate):
  return f"{rate:.0f}" if rate >= 9.5 else f"{rate:.2g}"
