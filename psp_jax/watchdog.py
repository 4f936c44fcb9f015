"""Ends a run that hangs: a reader, a device or a file system may never answer.

Without it a job of many machines waits, and is paid for, for ever.
"""

import faulthandler
import os
import sys
import threading
import time

EXIT_CODE = 70  # sysexits.h's EX_SOFTWARE.


class Watchdog:
  """A thread that ends the process where nothing is heard for too long."""

  def __init__(self, seconds: float):
    """`seconds` without a word, at most; 0: it never minds."""
    self._seconds = seconds
    self._doing, self._since = "", time.monotonic()
    self._closed = threading.Event()
    if seconds:
      threading.Thread(target=self._watch, daemon=True).start()

  def hears(self, doing: str) -> None:
    """What is done from now on."""
    self._doing, self._since = doing, time.monotonic()

  def close(self) -> None:
    self._closed.set()

  def _watch(self):
    while not self._closed.wait(min(1, self._seconds / 4)):
      doing, waited = self._doing, time.monotonic() - self._since
      if waited > self._seconds:
        faulthandler.dump_traceback(sys.stderr)
        print(f"error: {doing} for {waited:.0f} s: ended. Start the same "
              "command again; if that is a long time for it, raise "
              "config.stall_seconds", file=sys.stderr, flush=True)
        os._exit(EXIT_CODE)
