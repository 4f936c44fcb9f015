"""One run at a time, in a folder that can be written."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

from psp_jax import workdir
from psp_jax.errors import StorageError

_HOLDS = """
import pathlib, sys, time
from psp_jax import workdir
with workdir.locked(pathlib.Path(sys.argv[1])):
  print("locked", flush=True)
  time.sleep(60)
"""


def test_a_second_run_is_refused_by_name_until_the_first_is_dead(tmp_path):
  with subprocess.Popen([sys.executable, "-c", _HOLDS, str(tmp_path)],
                        stdout=subprocess.PIPE, text=True) as other:
    assert other.stdout.readline() == "locked\n"
    with pytest.raises(StorageError) as raised, workdir.locked(tmp_path):
      pass
    assert f"process {other.pid} on {os.uname().nodename}" in str(raised.value)
    other.kill()  # Leaves its file, and no lock.
    other.wait()
  with workdir.locked(tmp_path):
    pass
  with workdir.locked(tmp_path):
    pass


def test_a_folder_that_came_to_nothing_is_taken_away(tmp_path):
  with pytest.raises(KeyError), workdir.locked(tmp_path / "a" / "run"):
    raise KeyError
  assert not (tmp_path / "a" / "run").exists()
  with pytest.raises(KeyError), workdir.locked(tmp_path / "run"):
    (tmp_path / "run" / "config.json").touch()
    raise KeyError
  assert (tmp_path / "run" / "config.json").exists()


def test_what_cannot_be_written_is_named(tmp_path, as_nobody):
  tmp_path.chmod(0o555)
  with as_nobody(), pytest.raises(StorageError) as raised, workdir.locked(
      tmp_path / "run"):
    pass
  assert f"--workdir={tmp_path / 'run'}" in str(raised.value)
  assert "Permission denied" in str(raised.value)
  (tmp_path / "file").touch()
  with pytest.raises(StorageError, match="cannot be written"), workdir.locked(
      tmp_path / "file"):
    pass


def test_a_text_is_there_whole_or_as_it_was(tmp_path, monkeypatch):
  path = tmp_path / "eval.json"
  workdir.write_text(path, "old")

  def full(fd):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(StorageError, match="eval.json: .*No space left"):
    workdir.write_text(path, "new")
  assert path.read_text() == "old"


def test_a_clock_that_goes_backwards_does_not_matter(tmp_path, monkeypatch):
  monkeypatch.setattr(time, "time", lambda: 0.0)
  with workdir.locked(pathlib.Path(tmp_path)):
    workdir.write_text(tmp_path / "x", "1")
  assert (tmp_path / "x").read_text() == "1"
