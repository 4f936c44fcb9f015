"""What hangs is ended, and says at what."""

import subprocess
import sys

_HANGS = """
import time
from psp_jax import watchdog
dog = watchdog.Watchdog({seconds})
dog.hears("waiting for the batch of step 7")
{then}
print("done", flush=True)
"""


def _run(seconds, then):
  return subprocess.run(
      [sys.executable, "-c", _HANGS.format(seconds=seconds, then=then)],
      capture_output=True, text=True, timeout=30)


def test_silence_ends_it_and_the_cause_is_the_last_line():
  done = _run(0.4, "time.sleep(20)")
  assert done.returncode == 70 and not done.stdout
  last = done.stderr.splitlines()[-1]
  assert last.startswith("error: waiting for the batch of step 7 for ")
  assert "config.stall_seconds" in last
  assert "most recent call first" in done.stderr  # Where every thread is.


def test_signs_of_life_keep_it_up():
  done = _run(0.8, "\n".join(
      f"time.sleep(0.2); dog.hears('image {i}')" for i in range(8)))
  assert done.returncode == 0 and done.stdout == "done\n"
  assert _run(0, "time.sleep(0.5)").returncode == 0
  assert _run(0.2, "dog.close(); time.sleep(0.6)").returncode == 0
