"""Killed without warning, a run ends with the bits of an undisturbed one."""

import pathlib

from benchmarks import kill_test


def test_three_kills_change_no_bit(tmp_path: pathlib.Path):
  result = kill_test.run(3, 120, 1, tmp_path)
  assert len(result["kills"]) == 3
  assert all(result["equal"].values()), result
  for each in result["kills"]:
    # One interval, and the steps in which the next save is being written.
    assert each["lost"] <= 2 * kill_test.SAVE_EVERY, each
