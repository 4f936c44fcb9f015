"""The documentation: every command is known, every link leads somewhere."""

import ast
import contextlib
import functools
import importlib.util
import io
import pathlib
import re
import runpy
import shlex
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from benchmarks import newcomer
from psp_jax import compile_tpu, default_config, main

ROOT = pathlib.Path(__file__).parent.parent
PAGES = newcomer.pages()
# Stand for what a reader puts there: DIR, FILE, NAME, N, BACKBONE, RUN/x.
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*\b|\.\.\.")
_OURS = re.compile(r"psp_jax|benchmarks")


@functools.cache
def help_of(module: str) -> str:
  """What `python -m MODULE --help` says."""
  said = io.StringIO()
  argv, sys.argv = sys.argv, [module, "--help"]
  try:
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
      runpy.run_module(module, run_name="__main__")
  finally:
    sys.argv = argv
  return said.getvalue()


def absl_flags(module) -> dict:
  return {flag.name: flag for flag in
          flags.FLAGS.get_flags_for_module(module.__name__)}


@functools.cache
def extras() -> set[str]:
  tree = ast.parse((ROOT / "setup.py").read_text())
  [found] = [k.value for node in ast.walk(tree) if isinstance(node, ast.Call)
             for k in node.keywords if k.arg == "extras_require"]
  return {key.value for key in found.keys}


def has_field(name: str) -> bool:
  value = default_config.get_config()
  for part in name.split("."):
    if part not in value:
      return False
    value = value[part]
  return True


def config_problems(overrides: list[str], file: str | None) -> list[str]:
  """What ml_collections says of --config.field=value flags."""
  file = file or "psp_jax/default_config.py"
  if _PLACEHOLDER.match(pathlib.Path(file.partition(":")[0]).stem):
    file = "psp_jax/default_config.py"
  if not (ROOT / re.sub(r"\.py:.*", ".py", file)).is_file():
    return [f"--config={file}: no such file"]
  problems = []
  for override in overrides or [f"--config={ROOT / file}"]:
    name, equals, value = override.partition("=")
    if name == "--config.field" or name.endswith("..."):  # Any field.
      continue
    if name != "--config" and not equals:  # Only named.
      if not has_field(name.removeprefix("--config.")):
        problems.append(f"{override}: no such field")
      continue
    values = flags.FlagValues()
    argv = ["docs", f"--config={ROOT / file}", override]
    config_flags.DEFINE_config_file(
        "config", flag_values=values, sys_argv=argv)
    try:
      values(argv)
    except Exception as error:
      # Of a placeholder (N, $WIDTH) the field's name alone counts.
      stands = _PLACEHOLDER.fullmatch(value) or value.startswith("$")
      if not stands or isinstance(error, AttributeError | KeyError):
        problems.append(f"{override}: {str(error).splitlines()[-1]}")
  return problems


def flag_problems(module: str | None, words: list[str]) -> list[str]:
  """Of flags after `python -m MODULE`; None: of any of our commands."""
  problems, overrides, file = [], [], None
  for word in words:
    if not word.startswith("--"):
      continue
    name, equals, value = word[2:].partition("=")
    if name.startswith("xla_"):  # The compiler's own.
      continue
    if name.startswith("config."):
      overrides.append(word)
    elif name == "config":
      file = value
    elif module is None:
      if not known_anywhere(name):
        problems.append(f"--{name}: no command has it")
    elif module in ("psp_jax.main", "psp_jax.compile_tpu"):
      known = absl_flags(main)
      if module == "psp_jax.compile_tpu":
        known |= absl_flags(compile_tpu)
      if name.removeprefix("no") not in known and name not in known:
        problems.append(f"--{name}: not a flag of {module}")
      elif equals and not _PLACEHOLDER.match(value):
        try:
          known[name].parser.parse(value)
        except ValueError as error:
          problems.append(f"{word}: {error}")
    elif f"--{name}" not in re.findall(r"--\w[\w-]*", flags_of(module)):
      problems.append(f"--{name}: not a flag of {module}")
  if overrides or file:
    problems += config_problems(overrides, file)
  return problems


def flags_of(module: str) -> str:
  """A text with all its flags; benchmarks may import what is not there."""
  if module.startswith("benchmarks."):
    return (ROOT / f"{module.replace('.', '/')}.py").read_text()
  return help_of(module)


@functools.cache
def known_anywhere(name: str) -> bool:
  modules = [f"psp_jax.{p.stem}" for p in (ROOT / "psp_jax").glob("*.py")
             if "argparse.ArgumentParser(" in p.read_text()]
  modules += [f"benchmarks.{p.stem}"
              for p in (ROOT / "benchmarks").glob("*.py")]
  scripts = "".join(p.read_text() for p in (ROOT / "launch").glob("*.sh"))
  return (name in absl_flags(main) or name in absl_flags(compile_tpu)
          or re.search(rf"--{name}\b", scripts)
          or any(f"--{name}" in flags_of(m) for m in modules))


def problems_of(command: str) -> list[str]:
  """What is wrong with a line of shell."""
  command = re.sub(r"(^|\s)#.*", "", command)
  words = shlex.split(command, comments=True)
  parts, part = [], []
  for word in words:
    if word in ("&&", "|", ";", ">", "2>&1"):
      parts.append(part)
      part = []
    else:
      part.append(word.strip("[]") if word[:3] in ("[--", "--r") else word)
  problems = []
  parts.append(part)
  for part in parts:
    while part and re.match(r"[A-Za-z_]+=", part[0]):
      del part[0]
    if part[:2] == ["pip", "install"] or part[:1] == ["pip"]:
      for extra in re.findall(r"\[([\w,-]+)\]", " ".join(part)):
        unknown = set(extra.split(",")) - extras()
        problems += [f"setup.py has no extra {e!r}" for e in unknown]
    elif part[:2] == ["python", "-m"] and len(part) > 2:
      module = part[2]
      if not _OURS.match(module) or module.endswith(".X"):
        continue
      if importlib.util.find_spec(module) is None:
        problems.append(f"no module {module}")
      else:
        problems += flag_problems(module, part[3:])
    elif part and part[0].startswith(("launch/", "./launch", "bash")):
      problems += [f"{w}: no such file" for w in part
                   if w.endswith(".sh") and not (ROOT / w).is_file()]
    elif part and part[0].startswith("--"):
      problems += flag_problems(None, part)
  return problems


def inline_code(text: str) -> list[str]:
  """What stands between backticks outside of blocks, on one line each."""
  lines = text.splitlines()
  for block in newcomer.blocks(text):
    for i in range(block.line - 1, block.line - 1 + block.text.count("\n")):
      lines[i] = ""
  text = "\n".join("" if "```" in line else line for line in lines)
  return [" ".join(code.split())
          for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_known(page):
  text = (ROOT / page).read_text()
  problems = []
  for block in newcomer.blocks(text, page):
    where = f"{page}:{block.line}"
    if block.language == "python":
      compile(block.text, where, "exec")
    elif block.language == "shell":
      for command in block.commands():
        if block.shorter:
          command = newcomer.with_flags(command, block.shorter)
        problems += [f"{where}: {p}" for p in problems_of(command)]
    else:
      hidden = re.findall(r"^\s*(?:python -m|pip install) .*", block.text,
                          re.MULTILINE)
      problems += [f"{where}: a command in a block that is none: {c}"
                   for c in hidden]
  for code in inline_code(text):
    if re.match(r"python -m|pip |--|launch/|pytest ", code):
      problems += [f"{page}: `{code}`: {p}" for p in problems_of(code)]
  assert not problems, "\n".join(problems)


def slugs(text: str) -> set[str]:
  """Anchors that GitHub gives the headings."""
  found: list[str] = []
  fenced = False
  for line in text.splitlines():
    fenced ^= line.strip().startswith("```")
    heading = re.match(r"#{1,6} +(.+)", line)
    if heading and not fenced:
      title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
      slug = re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
      same = sum(re.fullmatch(f"{re.escape(slug)}(-\\d+)?", s) is not None
                 for s in found)
      found.append(f"{slug}-{same}" if same else slug)
  return set(found)


def link_problems(page: str, text: str) -> list[str]:
  problems = []
  for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(
      r'(?:src|href|srcset)="([^"]+)"', text):
    if re.match(r"https?:|mailto:", target):
      continue
    path, _, anchor = target.partition("#")
    file = (ROOT / page).parent / path if path else ROOT / page
    if not file.exists():
      problems.append(f"{page}: {target}: no such file")
    elif anchor and anchor not in slugs(file.read_text()):
      problems.append(f"{page}: {target}: no such heading")
  return problems


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
  text = (ROOT / page).read_text()
  assert not link_problems(page, text), link_problems(page, text)


def test_the_index_has_every_page():
  index = (ROOT / "docs" / "README.md").read_text()
  for page in PAGES:
    name = page.removeprefix("docs/")
    if page.startswith("docs/") and name != "README.md":
      assert re.search(rf"\]\({re.escape(name)}[#)]", index), (
          f"docs/README.md does not name {name}")


@pytest.mark.parametrize("command", [
    "python -m psp_jax.mian --config=configs/scenes.py",
    "python -m psp_jax.main --config=configs/scene.py",
    "python -m psp_jax.main --config=configs/scenes.py --config.modle.depth=1",
    "python -m psp_jax.main --config=configs/scenes.py "
    "--config.num_train_steps=few",
    "python -m psp_jax.main --config=configs/folder.py:gpu",
    "python -m psp_jax.main --workdirr=runs/x",
    "python -m psp_jax.main --mode=score --workdir=runs/x",
    "python -m psp_jax.predict --workdir=RUN --input a --outptu=b",
    "python -m psp_jax.prepare --dataset=camvid --chekc",
    "pip install -e '.[gpu]'", "launch/tpu.sh create", "--config.eval.flp=True",
    "--config.eval.flp",
    "--manualdir=x", "cp a b && python -m psp_jax.tabels runs/eval.json"])
def test_a_mistake_is_found(command):
  assert problems_of(command)


@pytest.mark.parametrize("command", [
    "python -m psp_jax.main --config=configs/NAME.py --config.field=value",
    "python -m psp_jax.main --mode=eval --workdir=$RUN --config.eval.step=N",
    "A=1 python -m psp_jax.predict --workdir=runs/x --input 'a/*.jpg' "
    "--no-flip --output=out"])
def test_placeholders_are_let_through(command):
  assert not problems_of(command)


def test_broken_links_are_found():
  assert link_problems("README.md", "[a](docs/nothing.md)")
  assert link_problems("README.md", "[a](docs/datasets.md#no-such-heading)")
  assert not link_problems(
      "README.md", "[a](docs/datasets.md#your-own-photographs)")


def test_marks_are_of_the_block_after_them():
  text = ("<!-- needs: a TPU -->\n\n    python -m a\n\ntext\n\n"
          "<!-- shorter: --x=1 -->\n```sh\npython -m psp_jax.main \\\n"
          "    --y\ncp a b\n```\n\n    some output\n")
  first, second, third = newcomer.blocks(text)
  assert (first.needs, first.commands()) == ("a TPU", ["python -m a"])
  assert (second.needs, second.shorter) == ("", "--x=1")
  assert second.commands() == ["python -m psp_jax.main --y", "cp a b"]
  assert newcomer.with_flags(second.commands()[0], "--x=1").endswith("--x=1")
  assert newcomer.with_flags("cp a b", "--x=1") == "cp a b"
  assert third.commands() == [] and not third.needs
