"""The command line, in real processes."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from runner import untimed

from psp_jax import runs, saved_config
from psp_jax.data import datasets

ROOT = pathlib.Path(__file__).parent.parent


def _command(*args):
  return [sys.executable, "-m", "psp_jax.main", *map(str, args)]


def _main(*args):
  return subprocess.run(_command(*args), cwd=ROOT, capture_output=True,
                        text=True, timeout=300)


@pytest.mark.parametrize("args, words", [
    ([], ["--config=configs/scenes.py"]),
    (["--config=configs/nope.py"], ["configs/nope.py", "no such file"]),
    (["--config=configs/scenes.py", "--config.foo=1"], ["'foo'"]),
    (["--config=configs/scenes.py", "--config.model.depht=1"],
     ["'depht'", "did you mean depth"]),
    (["--config=configs/scenes.py", "--config.seed=x"], ["seed", "'x'"]),
    (["--config=configs/camvid.py:gpu"], ["camvid.py:gpu", ":cpu"]),
    (["--config=configs/scenes.py", "--mode=tset"], ["mode", "train|eval"]),
    (["--config=configs/scenes.py", "--wrkdir=x"], ["wrkdir", "workdir"]),
    (["--config=configs/scenes.py", "eval"], ["'eval'", "not a flag"]),
    (["--config=configs/scenes.py", "--mode=eval", "--workdir=/no/run"],
     ["/no/run", "train first"]),
    (["--mode=eval", "--workdir=/no/run"], ["--config="]),
    # Each row in a folder of its own: one would resume another's run.
    (["--config=configs/ablations.py:table2_aux_0.3", "--mode=eval"],
     ["runs/ablations_table2_aux_0.3: no run"]),
    (["--config=configs/ablations.py:table5"], [":table5", "table4_psp"]),
], ids=lambda value: " ".join(value)[-30:] or "nothing")
def test_mistakes_are_one_line_and_exit_2(args, words):
  done = _main(*args)
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ")
  assert "Traceback" not in done.stderr
  for word in words:
    assert word in last


def test_a_cache_that_cannot_be_written_is_done_without():
  done = _main("--config=configs/scenes.py", "--mode=eval", "--workdir=/no/run",
               "--compilation_cache=/dev/null/cache")
  warning, error = done.stderr.strip().splitlines()[-2:]
  assert warning.startswith("warning: the compilation cache /dev/null/cache")
  assert error.startswith("error: /no/run")


_READS_RECORDS = """
import sys
from psp_jax import main, runs, saved_config, events, train
from psp_jax.data import datasets, input_pipeline
config = saved_config.get_config(sys.argv[1])
split = datasets.open_split(config, "train")
writer = events.EventWriter(sys.argv[1])
with_reader = input_pipeline.train_batches(split, config, 0)
assert next(with_reader)["image"].shape == (8, 33, 33, 3)
with_reader.close()
late = {"tensorflow", "clu", "tensorboard", "keras", "torch", "h5py",
        "matplotlib", "pandas"} & set(sys.modules)
assert not late, late
"""


def test_tensorflow_is_not_there_before_the_first_step(tiny_config, tmp_path):
  """It takes seconds to import, and the first step needs none of it."""
  datasets.prepare(tiny_config)
  runs.save_config(tiny_config, tmp_path)
  done = subprocess.run([sys.executable, "-c", _READS_RECORDS, str(tmp_path)],
                        cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr


def test_killed_and_started_again_it_goes_on(tiny_flags, tmp_path):
  """SIGKILL after a checkpoint; the end is that of an undisturbed run."""
  steps = ["--config.num_train_steps=60"]
  straight = _main(*tiny_flags, *steps, f"--workdir={tmp_path / 'straight'}")
  assert straight.returncode == 0, straight.stderr

  killed = [*tiny_flags, *steps, f"--workdir={tmp_path / 'killed'}"]
  process = subprocess.Popen(_command(*killed), cwd=ROOT,
                             stdout=subprocess.PIPE, text=True)
  deadline = time.monotonic() + 120
  while not (tmp_path / "killed" / "checkpoints" / "5").is_dir():
    assert process.poll() is None and time.monotonic() < deadline
    process.stdout.readline()
  os.kill(process.pid, signal.SIGKILL)
  process.communicate()
  assert not (tmp_path / "killed" / "eval.json").exists()

  again = _main(*killed)
  assert again.returncode == 0, again.stderr
  assert "resumed    from the checkpoint of step" in again.stdout
  assert (tmp_path / "killed" / "eval.json").read_text() == (
      tmp_path / "straight" / "eval.json").read_text()

  # A run's folder is enough to score it again, or otherwise.
  for flip in ("True", "False"):
    scored = _main("--mode=eval", f"--workdir={tmp_path / 'killed'}",
                   f"--config.eval.flip={flip}")
    assert scored.returncode == 0, scored.stderr
    same = (tmp_path / "killed" / "eval.json").read_text() == (
        tmp_path / "straight" / "eval.json").read_text()
    assert same == (flip == str(saved_config.get_config(
        tmp_path / "killed").eval.flip))

  # The losses too: the same batches, the same dropout.
  def losses(text):
    return {line.split()[1]: line.split()[3]
            for line in untimed(text).splitlines() if line.startswith("step ")}

  common = losses(again.stdout).keys()
  assert "60/60" in common
  assert {k: losses(straight.stdout)[k] for k in common} == losses(
      again.stdout)
