"""What a person sees on a terminal: a real run on a pseudo-terminal."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
from runner import HEARING, ROOT

from psp_jax import stopping

WIDTH = 80
# The pseudo-terminal becomes the process's own, whose Ctrl-C it hears.
_OWNING = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
""" + HEARING
_STEP = r"step +(\d+)/\d+  loss [\d.]+  pixels [\d.]+  lr [\d.]+"


class Screen:
  """What characters make of a terminal that is WIDTH wide."""

  def __init__(self):
    self.lines, self.line, self.column = [], [], 0

  def write(self, text):
    for character in text:
      if character == "\r":
        self.column = 0
      elif character == "\n":
        self.lines.append("".join(self.line).rstrip())
        self.line = []  # The column stays: a terminal makes "\r\n" of it.
      else:
        assert character.isprintable(), repr(character)  # No control codes.
        if self.column == WIDTH:
          self.write("\r\n")
        self.line += " " * (self.column + 1 - len(self.line))
        self.line[self.column] = character
        self.column += 1


class Terminal:
  """A run on a pseudo-terminal, and what it shows."""

  def __init__(self, flags):
    self._ours, self._theirs = pty.openpty()
    fcntl.ioctl(self._theirs, termios.TIOCSWINSZ,
                struct.pack("HHHH", 24, WIDTH, 0, 0))
    self._before = termios.tcgetattr(self._theirs)
    self.process = subprocess.Popen(
        [sys.executable, "-c", _OWNING, "-m", "psp_jax.main", *flags],
        cwd=ROOT, stdin=self._theirs, stdout=self._theirs, stderr=self._theirs,
        start_new_session=True)
    self.raw, self.screen = "", Screen()

  def read(self, until=None, seconds=300):
    """Until the text comes; without, until the process ends."""
    os.set_blocking(self._ours, False)
    deadline = time.monotonic() + seconds
    while until is None or until not in self.raw:
      ended = self.process.poll() is not None
      try:
        text = os.read(self._ours, 1 << 16).decode()
        self.raw += text
        self.screen.write(text)
      except BlockingIOError:
        if ended:
          assert until is None, self.raw
          return
        assert time.monotonic() < deadline, self.raw
        time.sleep(0.01)

  def press(self, key):
    os.write(self._ours, key)

  def left_in_order(self) -> bool:
    """No bar is left, a prompt would begin a line, and keys do as before."""
    return ("".join(self.screen.line).strip() == ""
            and self.screen.column == 0
            and termios.tcgetattr(self._theirs) == self._before)

  def close(self):
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()
    os.close(self._ours)
    os.close(self._theirs)


@pytest.fixture
def terminal(tiny_flags, tmp_path):
  opened = []

  def run(*flags):
    opened.append(Terminal([*tiny_flags, f"--workdir={tmp_path / 'run'}",
                            *flags]))
    return opened[-1]

  yield run
  for each in opened:
    each.close()


def test_a_run_is_lines_above_one_bar(terminal, tmp_path):
  run = terminal("--config.num_train_steps=12",
                 "--config.validation.every_steps=6")
  run.read()
  assert run.process.returncode == 0, run.raw
  for bar in (r"training: +\d+%\|[^|]+\| \d+/12, loss [\d.]+, [\d.]+ images/s,"
              r" [\d:]+ left", r"validation: +\d+%\|[^|]+\| \d/2 \[",
              r"evaluation: +\d+%\|[^|]+\| \d/4 \["):
    assert re.search(bar, run.raw), bar
  lines = run.screen.lines
  assert [int(m[1]) for line in lines
          if (m := re.fullmatch(_STEP + r"(  [\d.]+ images/s)?", line))] == (
              list(range(1, 13)))
  assert sum(line.startswith("validation mIoU") for line in lines) == 1
  assert not [line for line in lines if "%|" in line]
  shown = "".join("".join(lines).split())  # However it is wrapped.
  assert shown.endswith(f"curvestensorboard--logdir={tmp_path / 'run'}")
  assert run.left_in_order()


def test_ctrl_c_leaves_the_terminal_in_order(terminal, tmp_path):
  run = terminal("--config.num_train_steps=100000",
                 "--config.checkpoint.every_steps=0",
                 "--config.validation.every_steps=0")
  run.read(until=" left")  # A bar is there.
  run.press(b"\x03")
  run.read()
  assert run.process.returncode == stopping.EXIT_CODE, run.raw
  told, stopped = [line for line in run.screen.lines
                   if re.match("SIG|stopped", line)]
  assert re.fullmatch("SIGINT: saving what is done, then leaving; Ctrl-C again "
                      r"leaves at once( +\^C)?", told)
  assert re.fullmatch(r"stopped: saved step [\d,]+; the same command goes on",
                      stopped)
  assert stopped == run.screen.lines[-1]
  assert not [line for line in run.screen.lines if "%|" in line]
  assert run.left_in_order()


def test_an_error_is_a_line_of_its_own(terminal, tmp_path):
  run = terminal("--config.num_train_steps=100000",
                 "--config.checkpoint.every_steps=0",
                 "--config.validation.every_steps=0",
                 "--config.optimizer.base_lr=1e12")
  run.read()
  assert run.process.returncode == 2, run.raw
  assert any(line.startswith("error: loss is ")
             for line in run.screen.lines), run.screen.lines
  assert not [line for line in run.screen.lines if "%|" in line]
  assert run.left_in_order()
