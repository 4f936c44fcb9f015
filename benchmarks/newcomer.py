"""python -m benchmarks.newcomer [--quick]: the pages, by copy and paste.

Clones the checkout, makes a virtual environment, and runs every command of
README.md and docs/*.md there in order, as somebody would who has nothing but a
machine. Prints each one's exit code and time; its own exit code is 1 where one
failed.

How a page says what a newcomer cannot run, or should not wait for:

- A block of code is a fenced one, or lines that four spaces indent. It is of
  commands if it begins like one (`python`, `pip`, `git`, NAME=value, ...), or
  Python where the fence says so. All else is output, and left alone.
- `<!-- needs: ADE20K -->` before a block: it is not run. It names what is
  wanted: a dataset under a licence, a TPU, photographs, hours.
- `<!-- shorter: --config.num_train_steps=2 -->` before a block: with --quick
  this is added to its commands that train, score or test.

A line is one command; a backslash at its end goes on. What assigns a variable
or changes the folder counts for the rest of the page. A page starts in the
folder of the clone. tests/test_docs.py reads the same blocks, marked or not,
and checks every flag in them.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
FIRST = ("README.md", "docs/quick_start.md", "docs/predict.md")
_COMMANDS = re.compile(
    r"(python|pip|pytest|ruff|git|cd|cp|mkdir|curl|unzip|ls|gcloud|tensorboard"
    r"|bash|kill)\s|\./|launch/|[A-Z_]+=|pytest$")
_STAYS = re.compile(r"[A-Z_]+=\S*$|cd ")  # For the rest of the page.
_LENGTHENS = re.compile(r"-m psp_jax\.main|pytest")


@dataclasses.dataclass
class Block:
  """A block of code of a page.

  Attributes:
    page: the file, below the checkout.
    line: its first line's number, from 1.
    language: "shell", "python" or "" for what is no command.
    text: without the indentation.
    needs: what it wants that a newcomer has not, or "".
    shorter: flags for --quick, or "".
  """
  page: str
  line: int
  language: str
  text: str
  needs: str = ""
  shorter: str = ""

  def commands(self) -> list[str]:
    """One a line; of Python, the whole block."""
    if self.language == "python":
      return [self.text]
    if self.language != "shell":
      return []
    joined = re.sub(r"\\\n\s*", "", self.text)
    return [line.strip() for line in joined.splitlines()
            if line.strip() and not line.strip().startswith("#")]


def pages(root: pathlib.Path = ROOT) -> list[str]:
  """README.md and docs/*.md, in the order in which they are run."""
  rest = sorted(f"docs/{p.name}" for p in (root / "docs").glob("*.md"))
  first = [p for p in FIRST if (root / p).is_file()]
  return [*first, *(p for p in rest if p not in first)]


def blocks(text: str, page: str = "") -> list[Block]:
  """All blocks of code of a Markdown text, in order."""
  lines, found, marks, i = text.splitlines(), [], {}, 0
  while i < len(lines):
    line = lines[i]
    mark = re.fullmatch(r"\s*<!-- (needs|shorter): (.+?) -->\s*", line)
    start, language, code = i, "", None
    if mark:
      marks[mark[1]] = mark[2]
    elif fence := re.match(r"\s*(```+)\s*(\w*)", line):
      i += 1
      code = []
      while i < len(lines) and not lines[i].strip().startswith(fence[1]):
        code.append(lines[i])
        i += 1
      start, language = start + 1, fence[2]
    elif line.startswith("    ") and (i == 0 or not lines[i - 1].strip()):
      code = []
      while i < len(lines) and (lines[i].startswith("    ")
                                or not lines[i].strip()):
        code.append(lines[i][4:])
        i += 1
      i -= 1
    elif line.strip():
      marks = {}  # A mark is of the block right after it.
    if code is not None:
      content = "\n".join(code).rstrip() + "\n"
      if language not in ("python", "py"):
        language = "shell" if _COMMANDS.match(content) else ""
      found.append(Block(page, start + 1, language, content, **marks))
      marks = {}
    i += 1
  return found


def read(page: str, root: pathlib.Path = ROOT) -> list[Block]:
  return blocks((root / page).read_text(encoding="utf-8"), page)


def with_flags(command: str, flags: str) -> str:
  """`command` with flags for what trains, scores or tests."""
  return f"{command} {flags}" if _LENGTHENS.search(command) else command


def _run(command, language, before, folder, environment, limit):
  """(exit code, seconds, what it said)."""
  if language == "python":
    arguments, sent = ["python", "-"], command
  else:
    arguments = ["bash", "-c", "\n".join([*before, command])]
    sent = None
  began = time.monotonic()
  try:
    done = subprocess.run(
        arguments, input=sent, cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit)
    code, said = done.returncode, done.stdout
  except subprocess.TimeoutExpired as error:
    code, said = "time", (error.stdout or b"").decode(errors="replace")
  return code, time.monotonic() - began, said


def _environment(home: pathlib.Path) -> dict[str, str]:
  """Of a fresh virtual environment; nothing prepared, nothing compiled."""
  environment = {k: v for k, v in os.environ.items()
                 if not k.startswith(("JAX_", "XLA_", "TFDS_", "PYTHON"))}
  return environment | {
      "VIRTUAL_ENV": str(home / "venv"),
      "PATH": f"{home / 'venv' / 'bin'}:{os.environ['PATH']}",
      "TFDS_DATA_DIR": str(home / "datasets"),
      "JAX_COMPILATION_CACHE_DIR": str(home / "compiled")}


def walk(home: pathlib.Path, quick: bool, only, limit: float) -> int:
  """Runs all pages in a clone below `home`; returns how many failed."""
  clone = home / "psp_jax"
  subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
  subprocess.run([sys.executable, "-m", "venv", str(home / "venv")],
                 check=True)
  environment = _environment(home)
  failed = ran = left = 0
  began = time.monotonic()
  for page in pages(clone):
    if only and page not in only:
      continue
    before: list[str] = []
    for block in read(page, clone):
      for command in block.commands():
        shown = command.splitlines()[0]
        where = f"{page}:{block.line}"
        if block.needs:
          left += 1
          print(f"not run  {where}  needs {block.needs}: {shown}", flush=True)
          continue
        if block.language == "shell" and _STAYS.match(command):
          before.append(command)
          continue
        if quick and block.shorter:
          command = with_flags(command, block.shorter)
          shown = command
        code, seconds, said = _run(command, block.language, before, clone,
                                   environment, limit)
        ran += 1
        print(f"exit {code!s:4} {seconds:6.1f} s  {where}  {shown}",
              flush=True)
        if code != 0:
          failed += 1
          print("".join(f"    {line}\n" for line in said.splitlines()[-15:]),
                flush=True)
  minutes = (time.monotonic() - began) / 60
  print(f"{ran} commands run in {minutes:.1f} minutes, {failed} failed; "
        f"{left} not run")
  return failed


def main() -> int:
  """The exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m benchmarks.newcomer", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--quick", action="store_true",
                      help="with the pages' shorter flags")
  parser.add_argument("--pages", nargs="+", metavar="PAGE",
                      help="these alone: README.md docs/predict.md; name "
                      "README.md, which installs")
  parser.add_argument("--limit", type=float, default=3600, metavar="SECONDS",
                      help="of one command (3600)")
  parser.add_argument("--list", action="store_true",
                      help="show what would be run, and run nothing")
  args = parser.parse_args()
  if args.list:
    for page in pages():
      for block in read(page):
        for command in block.commands():
          what = f"needs {block.needs}" if block.needs else "run"
          print(f"{what:24} {page}:{block.line}  {command.splitlines()[0]}")
    return 0
  with tempfile.TemporaryDirectory() as home:
    return min(1, walk(pathlib.Path(home), args.quick, args.pages, args.limit))


if __name__ == "__main__":
  sys.exit(main())
