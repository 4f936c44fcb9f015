"""The folder of compiled programs: where, how large, and what may go wrong."""

import os
import pathlib
import re
import subprocess
import sys
import warnings

import jax
import pytest

from psp_jax import compilation_cache

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def restored(monkeypatch):
  """JAX's settings and Python's warnings as they were."""
  names = ("jax_enable_compilation_cache", "jax_compilation_cache_dir",
           "jax_persistent_cache_min_compile_time_secs")
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
  yield
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.fixture
def nothing_said(monkeypatch):
  """As if JAX's environment variables were not set."""
  monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
  jax.config.update("jax_compilation_cache_dir", None)


def test_the_folder_is_the_users_cache(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
  below = pathlib.Path("psp_jax", "compiled")
  assert compilation_cache.default_folder() == tmp_path / "xdg" / below
  for ignored in ("", "relative"):
    monkeypatch.setenv("XDG_CACHE_HOME", ignored)
    assert compilation_cache.default_folder() == (
        tmp_path / "home" / ".cache" / below)


def test_on_by_default_and_small_programs_too(
    monkeypatch, tmp_path, nothing_said):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  folder = compilation_cache.enable()
  assert folder == jax.config.jax_compilation_cache_dir
  assert pathlib.Path(folder) == tmp_path / "psp_jax" / "compiled"
  assert pathlib.Path(folder).stat().st_mode & 0o777 == 0o700
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_what_the_environment_says_stays():
  """conftest.py sets both."""
  folder = compilation_cache.enable()
  assert folder == os.environ["JAX_COMPILATION_CACHE_DIR"]
  assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.3


def test_a_named_folder_goes_before_the_environment(tmp_path):
  assert compilation_cache.enable(str(tmp_path / "a" / "b")) == str(
      tmp_path / "a" / "b")
  assert (tmp_path / "a" / "b").is_dir()
  bucket = "gs://no-such-bucket/cache"  # Nothing is asked of it yet.
  assert compilation_cache.enable(bucket) == bucket


def test_off():
  assert compilation_cache.enable("off") is None
  assert not jax.config.jax_enable_compilation_cache


@pytest.mark.parametrize("where", ["file/below", "closed", "auto"])
def test_a_folder_that_cannot_be_written_warns(
    where, tmp_path, as_nobody, capsys, monkeypatch, nothing_said):
  (tmp_path / "file").touch()
  (tmp_path / "closed").mkdir(mode=0o555)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed"))
  with as_nobody():
    assert compilation_cache.enable(
        where if where == "auto" else str(tmp_path / where)) is None
  assert not jax.config.jax_enable_compilation_cache
  said = capsys.readouterr().err
  assert said.startswith("warning: ") and said.count("\n") == 1
  assert str(tmp_path) in said and "--compilation_cache" in said


def test_no_home_at_all_warns(capsys, monkeypatch, nothing_said):
  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

  def no_home(path):
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
  assert compilation_cache.enable() is None
  assert "home directory" in capsys.readouterr().err


def test_what_was_used_longest_ago_goes_first(
    tmp_path, monkeypatch, nothing_said):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(compilation_cache, "_MAX_BYTES", 250)
  folder = compilation_cache.default_folder()
  folder.mkdir(parents=True)
  times = {"old": (1, 1), "read": (9, 1), "new": (8, 8), "middle": (5, 5)}
  for name, accessed_and_modified in times.items():
    (folder / f"{name}-cache").write_bytes(bytes(100))
    os.utime(folder / f"{name}-cache", accessed_and_modified)
  (folder / "notes.txt").write_bytes(bytes(1000))
  compilation_cache.enable()
  assert {p.name for p in folder.iterdir()} == {
      "read-cache", "new-cache", "notes.txt"}
  # Of a file of two names each is half.
  os.link(folder / "new-cache", folder / "again-cache")
  jax.config.update("jax_compilation_cache_dir", None)
  compilation_cache.enable()
  assert {"read-cache", "new-cache", "again-cache"} <= {
      p.name for p in folder.iterdir()}
  # A folder that others chose is theirs to clean.
  monkeypatch.setattr(compilation_cache, "_MAX_BYTES", 0)
  compilation_cache.enable(str(folder))
  assert (folder / "new-cache").is_file()


_PROGRAM = """
import sys
from psp_jax import compilation_cache
compilation_cache.enable(sys.argv[1])
import jax
counts = {"cache_hits": 0, "cache_misses": 0}
def count(event, **_):
  name = event.rpartition("/")[2]
  counts[name] = counts.get(name, 0) + 1
jax.monitoring.register_event_listener(count)
@jax.jit
def program(x):
  return x @ x + 1
print(program(jax.numpy.ones((4, 4)))[0, 0])
print("hits", counts["cache_hits"], "misses", counts["cache_misses"])
"""


def _start(folder):
  done = subprocess.run(
      [sys.executable, "-c", _PROGRAM, str(folder)], cwd=ROOT, text=True,
      capture_output=True, timeout=100, env={
          k: v for k, v in os.environ.items() if not k.startswith("JAX_PERS")})
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("5.0")
  hits, misses = re.search(r"hits (\d+) misses (\d+)", done.stdout).groups()
  return int(hits), int(misses), done.stderr


def test_the_second_process_compiles_nothing(tmp_path):
  hits, misses, _ = _start(tmp_path)
  assert hits == 0 and misses > 0
  again = _start(tmp_path)
  assert again == (misses, 0, "")

  # Half an entry, as a process that was killed leaves it, is mended.
  entry, = tmp_path.glob("jit_program-*-cache")
  entry.write_bytes(entry.read_bytes()[:100])
  hits, misses, said = _start(tmp_path)
  assert misses == 1 and said.count("\n") == 1
  assert said.startswith("warning: reading jit_program"), said
  assert _start(tmp_path) == again
