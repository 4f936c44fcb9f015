"""How far it is, for people and for log files."""

import io
import sys

import pytest

from psp_jax import progress


class Clock:
  def __init__(self):
    self.now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(progress, "time", clock)
  return clock


@pytest.mark.parametrize("seconds, text", [
    (0, "0:00"), (59.6, "1:00"), (75, "1:15"), (3700, "1:01:40")])
def test_durations(seconds, text):
  assert progress.duration(seconds) == text


def test_a_log_file_gets_a_line_now_and_then(clock, capsys):
  seen = []
  for item in progress.track(range(100), 100, "checking train"):
    seen.append(item)
    clock.now += 1  # 1 item a second, of 100.
  assert seen == list(range(100))
  captured = capsys.readouterr()
  assert captured.out == ""
  lines = captured.err.splitlines()
  assert lines[0] == "checking train 11/100  1/s  1:29 left"
  assert len(lines) == 9  # Every 11th second; none when it is done.
  assert "\r" not in captured.err


def test_what_is_quick_says_nothing(capsys):
  assert list(progress.track("abc", 3, "checking")) == ["a", "b", "c"]
  assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, "stderr", terminal)
  monkeypatch.setattr(sys, "stdout", io.StringIO())
  assert list(progress.track(range(5), 5, "writing val")) == list(range(5))
  assert terminal.getvalue() == ""  # Its lines may go through a pipe to it.
  monkeypatch.setattr(sys, "stdout", terminal)
  assert list(progress.track(range(5), 5, "writing val")) == list(range(5))
  assert "writing val" in terminal.getvalue() and "/5" in terminal.getvalue()
