"""Being told to stop: SIGTERM, which preempted machines get, and Ctrl-C.

The first says that a run should save and leave, a second Ctrl-C that it should
leave at once. A thread hears them, because Python's own handlers wait while the
main thread compiles.
"""

import contextlib
import os
import signal
import socket
import threading

from psp_jax import progress
from psp_jax.errors import Stopped

# What the process ends with: saved, or had nothing to save (sysexits.h's
# EX_TEMPFAIL, "try again"); and after a second Ctrl-C, as shells have it.
EXIT_CODE, EXIT_CODE_AT_ONCE = 75, 130
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """What has been asked of this process; `listen` makes it hear."""

  def __init__(self):
    self._asked: signal.Signals | None = None
    self._nothing_to_save = False
    self._shared = False

  @contextlib.contextmanager
  def listen(self):
    """Until it ends, the signals are heard; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
      yield self
      return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # What a shell starts in the background ignores Ctrl-C, and so do we.
    before = {number: signal.signal(number, lambda *_: None)
              for number in _SIGNALS
              if signal.getsignal(number) != signal.SIG_IGN}
    fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=self._hear, args=(ours,), daemon=True).start()
    try:
      yield self
    finally:
      signal.set_wakeup_fd(fd)
      for number, handler in before.items():
        if not (self._shared and number == signal.SIGTERM):
          signal.signal(number, handler)
      theirs.close()  # Ends the thread.

  def share(self) -> None:
    """Leaves SIGTERM to JAX's coordination of several processes.

    To be called before `jax.distributed.initialize`, which takes it.
    """
    self._shared = True
    with contextlib.suppress(ValueError):  # Not in the main thread.
      signal.signal(signal.SIGTERM, signal.SIG_DFL)

  def nothing_to_save(self, nothing: bool = True) -> None:
    """From now on the first signal ends the process at once, or it does not.

    Raises:
      Stopped: there has been one.
    """
    self._nothing_to_save = nothing and not self._shared
    if nothing:
      self.check()

  def asked(self, step: int) -> bool:
    """Whether to save and leave after `step`: of all processes, or of none."""
    if not self._shared:
      return self._asked is not None
    from jax.experimental import multihost_utils
    return multihost_utils.reached_preemption_sync_point(step)

  def check(self) -> None:
    """Raises Stopped if this process alone has been asked."""
    if self._asked is not None and not self._shared:
      raise Stopped(f"{self._asked.name}; all that is done is saved")

  def _hear(self, ours):
    with ours:
      while number := ours.recv(1):
        if number[0] in _SIGNALS:
          self._take(signal.Signals(number[0]))

  def _take(self, number):
    if self._asked is not None:
      if number == signal.SIGINT:
        if progress.on_terminal():
          os.write(2, b"\n")  # The bar stays; what comes next is below it.
        os._exit(EXIT_CODE_AT_ONCE)
      return
    self._asked = number
    if self._nothing_to_save:
      progress.say(f"{number.name}: stopped before there was anything to save; "
                   "the same command starts again")
      os._exit(EXIT_CODE)
    progress.say(
        f"{number.name}: saving what is done, then leaving"
        + ("; Ctrl-C again leaves at once" if number == signal.SIGINT else ""))
    if self._shared:  # The others have to hear of it.
      os.kill(os.getpid(), signal.SIGTERM)
