"""What `--help` of every command says: at 80 columns, with exit code 0."""

import os
import pathlib
import runpy
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = {
    "psp_jax.cityscapes_scores": ["PREDICTIONS_DIR", "--json FILE"],
    "psp_jax.convert": ["SRC", "DST", "--family", "mmseg", "--num_classes",
                        "runs/mine mine.pth"],
    "psp_jax.export": ["--workdir RUN", "--output FILE", "--size HxW"],
    "psp_jax.predict": ["--workdir RUN", "--input PATH", "--output DIR",
                        "--scales", "--step", "labels/NAME.png"],
    "psp_jax.prepare": ["--dataset NAME", "folder", "--manual_dir", "--check"],
    "psp_jax.serve": ["--workdir RUN", "--host ADDRESS", "--port N"],
    "psp_jax.tables": ["EVAL_JSON", "runs/*/eval.json"],
    "benchmarks.ablations": ["NAME", "(default: all)"],
    "benchmarks.evaluate": ["--depth", "(default: 233)"],
    "benchmarks.fuzz": ["PARSER", "--inputs N"],
    "benchmarks.newcomer": ["--quick", "--pages"],
    "benchmarks.input_pipeline": ["--photos DIR", "(default: 7)"],
    "benchmarks.kill_test": ["--kills N", "(default: 20)", "--wait"],
    "benchmarks.plots": ["docs/performance.svg"],
    "benchmarks.preemption": ["--rounds N", "(default: 3)"],
    "benchmarks.save": ["--rounds N"],
    "benchmarks.scale": ["--steps N", "--only {equal,kill,weak}"],
    "benchmarks.soak": ["--steps N"],
    "benchmarks.startup": ["--rounds N", "FLAG"],
    "benchmarks.tpu_estimate": ["--topology NAME", "(default: v5e:2x4)"],
    "benchmarks.train_step": ["--depth", "--threads N"],
}
# Their flags are the process's: each in one of its own.
WITH_FLAGS = {
    "psp_jax.main": [
        "--config=FILE", "--workdir=DIR", "--mode=train|eval", "default: train",
        "--allow_config_change=FIELD", "psp_jax/default_config.py",
        "--config.num_train_steps=500"],
    "psp_jax.compile_tpu": [
        "--config=FILE", "--topology=NAME", "--[no]search", "(default: 15)",
        "--image_size=HxW"],
}


def check(text, name, words):
  assert max(map(len, text.splitlines())) <= 80
  assert f"python -m {name}" in text
  for word in words:
    assert word in text


@pytest.fixture
def environment(monkeypatch):
  before = dict(os.environ)
  monkeypatch.setenv("COLUMNS", "80")
  yield
  os.environ.clear()  # Benchmarks set some of it before JAX is imported.
  os.environ.update(before)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help(name, monkeypatch, capsys, environment):
  monkeypatch.setattr(sys, "argv", [name, "--help"])
  with pytest.raises(SystemExit) as left:
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    runpy.run_path(str(path), run_name="__main__")
  assert left.value.code == 0
  check(capsys.readouterr().out, name, PROGRAMS[name])


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_help_of_flags(name):
  done = subprocess.run([sys.executable, "-m", name, "--help"], cwd=ROOT,
                        capture_output=True, text=True, timeout=120)
  assert (done.returncode, done.stderr) == (0, "")
  check(done.stdout, name, WITH_FLAGS[name])
  # absl's own are not among them, nor where this file lies.
  assert "--verbosity" not in done.stdout and str(ROOT) not in done.stdout


def test_every_command_is_here():
  commands = {f"{folder}.{path.stem}" for folder in ("psp_jax", "benchmarks")
              for path in (ROOT / folder).glob("*.py")
              if '\nif __name__ == "__main__":' in path.read_text()}
  assert commands == PROGRAMS.keys() | WITH_FLAGS.keys()
