"""Compiled programs kept on disk, so that the second start compiles nothing.

JAX's persistent cache. It lies in a folder of the user's, not of the run: runs
of one network share it, it survives `rm -r runs`, and it is on a local disk
where the workdir is a bucket. An entry's key covers the program, the devices
and the versions of jax and its compiler, so that one folder serves them all.
The files are trusted like code: the folder is for its owner alone.

Of several hosts only process 0 writes: name a folder that all of them see, such
as a bucket's, or the others compile at every start.
"""

import glob
import os
import pathlib
import re
import sys
import tempfile
import warnings
from typing import Any

import jax

_config: Any = jax.config  # Its flags are made at run time.
_MAX_BYTES = 2 << 30  # Of the folder that we choose.


def enable(where: str = "auto") -> str | None:
  """Turns the cache on for this process. What fails warns and is done without.

  Args:
    where: a folder, also "gs://..."; "off"; or "auto": that of
      JAX_COMPILATION_CACHE_DIR, else `default_folder`, which is kept below 2
      GiB by what was used longest ago. JAX's other environment variables
      (JAX_ENABLE_COMPILATION_CACHE, JAX_PERSISTENT_CACHE_...) keep their say.

  Returns:
    The folder, None where there is no cache.
  """
  if where in ("off", ""):
    jax.config.update("jax_enable_compilation_cache", False)
  if not _config.jax_enable_compilation_cache:
    return None
  ours = where == "auto" and not _config.jax_compilation_cache_dir
  try:
    if ours:
      where = str(default_folder())
    elif where == "auto":
      where = _config.jax_compilation_cache_dir
    local = "://" not in where
    if local:
      where = str(pathlib.Path(where).expanduser().absolute())
      _check(pathlib.Path(where))
    if ours:
      _prune(pathlib.Path(where), _MAX_BYTES)
  except (OSError, RuntimeError) as error:  # Or there is no home at all.
    _warn(f"the compilation cache {where} cannot be used ({error}): every "
          "start compiles anew; name a folder with --compilation_cache=DIR")
    jax.config.update("jax_enable_compilation_cache", False)
    return None
  jax.config.update("jax_compilation_cache_dir", where)
  if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
    # A start is dozens of small programs besides the few large ones.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  _mend(pathlib.Path(where) if local else None)
  return where


def default_folder() -> pathlib.Path:
  """psp_jax/compiled below XDG_CACHE_HOME or ~/.cache.

  Raises:
    RuntimeError: there is no home.
  """
  home = os.environ.get("XDG_CACHE_HOME", "")
  if not os.path.isabs(home):  # Which the XDG specification says to ignore.
    home = "~/.cache"
  return pathlib.Path(home).expanduser() / "psp_jax" / "compiled"


def _check(folder: pathlib.Path) -> None:
  """Raises OSError where nothing can be written."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  folder.mkdir(mode=0o700, exist_ok=True)
  with tempfile.TemporaryFile(dir=folder):
    pass


def _prune(folder: pathlib.Path, max_bytes: int) -> None:
  """Removes entries until `max_bytes` are left, the longest unused first.

  JAX's own limit wants a lock for every read, and another package.
  """
  entries = []
  for path in folder.glob("*-cache"):
    try:
      status = path.stat()
    except FileNotFoundError:
      continue  # Another process prunes as well.
    used = max(status.st_atime, status.st_mtime)
    # One file of two names (`kept_programs`) counts once.
    entries.append((used, status.st_size / status.st_nlink, path))
  excess = sum(size for _, size, _ in entries) - max_bytes
  for _, size, path in sorted(entries):
    if excess <= 0:
      break
    path.unlink(missing_ok=True)
    excess -= size


def _mend(folder: pathlib.Path | None) -> None:
  """Entries that cannot be read are removed; one line, not a traceback's.

  A process killed while it writes leaves half an entry. JAX warns, compiles,
  and keeps what is there: at every start.
  """
  shown, told = warnings.showwarning, set()

  def show(message, category, filename, lineno, file=None, line=None):
    problem = re.match(r"Error (reading|writing) persistent compilation cache "
                       r"entry for '(.+?)': (.*)", str(message), re.DOTALL)
    if not problem:
      return shown(message, category, filename, lineno, file, line)
    doing, program, why = problem.groups()
    if doing == "reading" and folder is not None:
      for entry in folder.glob(f"{glob.escape(program)}-*-cache"):
        entry.unlink(missing_ok=True)
    if doing not in told:  # A full disk fails every entry alike.
      told.add(doing)
      _warn(f"{doing} {program} in the compilation cache {folder or ''} "
            f"failed ({why.splitlines()[0]}): compiled anew")

  warnings.showwarning = show


def _warn(line: str) -> None:
  print(f"warning: {line}", file=sys.stderr, flush=True)
