"""Runs of `python -m psp_jax.main`, to be killed, told and starved."""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# What a shell starts in the background ignores Ctrl-C, and so would its run.
HEARING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@contextlib.contextmanager
def starting(flags, folder):
  """A function (more flags, environment) -> process; none outlives it.

  A process has `told()`, what it wrote to stderr.
  """
  started = []

  def run(*more, **environment):
    number = len(started)
    with open(folder / f"stderr{number}", "w") as stderr:
      process = subprocess.Popen(
          [sys.executable, "-c", HEARING, "-m", "psp_jax.main", *flags,
           *more], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=stderr,
          env=os.environ | environment)
    process.told = lambda: (folder / f"stderr{number}").read_text()
    started.append(process)
    return process

  try:
    yield run
  finally:
    for process in started:
      with contextlib.suppress(ProcessLookupError):
        process.kill()
      process.stdout.close()
      process.wait()


def untimed(text: str) -> str:
  """Without the times of day at the beginnings of lines."""
  return re.sub(r"^\d\d:\d\d:\d\d ", "", text, flags=re.MULTILINE)


def lines_until(process, start: str) -> list[str]:
  """What it says until a line begins so; `untimed`."""
  lines = []
  for line in map(untimed, process.stdout):
    lines.append(line)
    if line.startswith(start):
      return lines
  raise AssertionError(f"no {start!r}: {lines} {process.told()}")


def free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def two_processes() -> list[dict[str, str]]:
  """Environments of two processes that find each other."""
  port = free_port()
  return [{"JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
           "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(i)}
          for i in range(2)]


def steps_of(workdir) -> list[int]:
  folder = workdir / "checkpoints"
  return sorted(int(p.name) for p in folder.iterdir()
                if p.name.isdigit()) if folder.exists() else []


def is_whole(workdir, step: int) -> bool:
  return (workdir / "checkpoints" / str(step) / "digests").is_dir()
