"""What the console says of the start."""

import time

from psp_jax import console


def test_the_start_is_told_in_parts(monkeypatch):
  now = iter([12.14, 12.55, 20.0, 23.0])
  monkeypatch.setattr(time, "monotonic", lambda: next(now))
  start = console.Start(10.0)
  start.done("imports")
  start.done("data")
  start.done("compile")
  assert start.line() == ("first step 10.0 s after the start "
                          "(imports 2.1, data 0.4, compile 7.4)")
  unknown = console.Start()
  assert unknown.line().startswith("first step 0.0 s")
