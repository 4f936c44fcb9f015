"""A run's folder: made, proven writable, and of one run at a time."""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import socket
import tempfile

import jax

from psp_jax.errors import StorageError, check_folder


@contextlib.contextmanager
def locked(workdir: pathlib.Path):
  """The folder, this run's own until the end, however it ends.

  Process 0 holds the lock, which the system lets go of with the process.

  Raises:
    ConfigError: it is a bucket's.
    StorageError: it cannot be written, or another run has it: which.
  """
  check_folder("--workdir", workdir)
  if jax.process_index() > 0:
    yield
    return
  new = not workdir.exists()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=workdir) as probe:
      probe.write(b"writable?")
    file = open(workdir / "lock", "a+")
  except OSError as error:
    raise StorageError(f"--workdir={workdir}: cannot be written "
                       f"({error.strerror})") from error
  with file:
    _lock(file, workdir)
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    file.flush()
    try:
      yield
    finally:
      file.truncate(0)
      if new and [p.name for p in workdir.iterdir()] == ["lock"]:
        shutil.rmtree(workdir)  # It came to nothing.


def _lock(file, workdir):
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    try:
      owner = json.loads(file.read())
      who = f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
      who = "another process"
    raise StorageError(f"--workdir={workdir}: {who} is using it; wait for it, "
                       "stop it, or use another --workdir") from None
  except OSError:
    return  # A file system without locks.


def write_text(path: pathlib.Path, text: str) -> None:
  """All of it or nothing, whenever the process ends.

  Raises:
    StorageError: it cannot be written.
  """
  part = path.with_name(f".{path.name}.part")
  try:
    with open(part, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  except OSError as error:
    raise StorageError(
        f"{path}: cannot be written ({error.strerror})") from error
