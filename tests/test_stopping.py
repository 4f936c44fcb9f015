"""Real signals to real runs: what is done is saved, and nothing is broken."""

import json
import math
import signal
import time

import pytest
from runner import (
  is_whole,
  lines_until,
  starting,
  steps_of,
  two_processes,
  untimed,
)

from psp_jax import stopping


@pytest.fixture
def runs(tiny_flags, tmp_path):
  with starting(tiny_flags, tmp_path) as run:
    yield run


def seconds_until_saved(workdir, limit: float) -> float:
  """Until its last checkpoint is whole; infinite if `limit` is not enough."""
  began = time.monotonic()
  while time.monotonic() - began < limit:
    steps = steps_of(workdir)
    if steps and is_whole(workdir, steps[-1]):
      return time.monotonic() - began
    time.sleep(0.02)
  return math.inf


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_in_training_it_saves_the_step(runs, tmp_path, number):
  flags = (f"--workdir={tmp_path / 'run'}", "--config.num_train_steps=100000",
           "--config.checkpoint.every_steps=0",  # Whoever is deaf saves none.
           "--config.validation.every_steps=0")
  run = runs(*flags)
  lines_until(run, "step      3/")
  assert not steps_of(tmp_path / "run")
  run.send_signal(number)
  # 2 s and a step where nobody else is; machines are busy.
  assert seconds_until_saved(tmp_path / "run", 10) < 10
  out, _ = run.communicate(timeout=60)
  assert run.returncode == stopping.EXIT_CODE == 75
  step, = steps_of(tmp_path / "run")
  assert is_whole(tmp_path / "run", step)
  done = [line for line in untimed(out).splitlines()
          if line.startswith("step")]
  # No step after the last that is saved; those of log lines are before it.
  assert step >= int(done[-1].split()[1].split("/")[0]) - 1 if done else 3
  assert run.told().splitlines()[-1] == (
      f"stopped: saved step {step:,}; the same command goes on")
  assert f"{number.name}: saving" in run.told()

  again = runs(*flags)
  assert f"checkpoint of step {step:,}" in "".join(
      lines_until(again, "resumed"))


def test_told_while_compiling_it_leaves_nothing_behind(runs, tmp_path):
  # A folder of programs that is empty makes the compilation long.
  run = runs(f"--workdir={tmp_path / 'run'}", f"--compilation_cache={tmp_path}")
  lines_until(run, "compiling")
  time.sleep(1)
  began = time.monotonic()
  run.send_signal(signal.SIGTERM)
  run.communicate(timeout=180)
  assert time.monotonic() - began < 15
  assert run.returncode == 75
  assert run.told().splitlines()[-1] == (
      "SIGTERM: stopped before there was anything to save; the same command "
      "starts again")
  assert steps_of(tmp_path / "run") == []


def test_told_in_validation_and_at_the_end(runs, tmp_path):
  scales = "--config.eval.scales=" + str(
      tuple(0.5 + i / 50 for i in range(120)))  # They take a while.
  flags = (f"--workdir={tmp_path / 'run'}", "--config.num_train_steps=6",
           "--config.validation.every_steps=4", scales,
           "--config.eval.window=sliding", "--config.eval.base_size=300")
  run = runs(*flags)
  lines_until(run, "step 4/")
  deadline = time.monotonic() + 60
  while not is_whole(tmp_path / "run", 4) and time.monotonic() < deadline:
    time.sleep(0.05)
  run.send_signal(signal.SIGTERM)
  out, _ = run.communicate(timeout=180)
  assert run.returncode == 75, run.told()
  assert "validation mIoU" not in out and steps_of(tmp_path / "run") == [4]
  assert "all that is done is saved" in run.told().splitlines()[-1]

  # The validation that was disturbed is made up for, once.
  run = runs(*flags[:3])
  run.communicate(timeout=180)
  assert run.returncode == 0, run.told()
  scores = tmp_path / "run" / "eval.json"
  assert json.loads(scores.read_text())["step"] == 6
  validations = (tmp_path / "run" / "validation.jsonl").read_text()
  assert [json.loads(line)["step"] for line in validations.splitlines()] == [4]

  scores.unlink()
  run = runs(*flags)
  lines_until(run, "evaluation of step 6")
  run.send_signal(signal.SIGTERM)
  run.communicate(timeout=180)
  assert run.returncode == 75, run.told()
  assert is_whole(tmp_path / "run", 6) and not scores.exists()


def test_the_second_ctrl_c_leaves_at_once(runs, tmp_path):
  scales = "--config.eval.scales=" + str(
      tuple(0.5 + i / 50 for i in range(120)))
  run = runs(f"--workdir={tmp_path / 'run'}", "--config.num_train_steps=2",
             scales, "--config.eval.window=sliding",
             "--config.eval.base_size=2000")
  lines_until(run, "evaluation of step 2")
  run.send_signal(signal.SIGINT)
  deadline = time.monotonic() + 60
  while "Ctrl-C again" not in run.told():
    assert time.monotonic() < deadline
    time.sleep(0.02)
  run.send_signal(signal.SIGINT)
  assert run.wait(timeout=15) in (stopping.EXIT_CODE_AT_ONCE, 75)


def test_one_of_two_processes_is_told_and_both_save_the_same(runs, tmp_path):
  both = [runs(f"--workdir={tmp_path / 'run'}",
               "--config.num_train_steps=100000",
               "--config.checkpoint.every_steps=0",
               "--config.validation.every_steps=0", **environment)
          for environment in two_processes()]
  lines_until(both[0], "step      3/")
  both[1].send_signal(signal.SIGTERM)
  for run in both:
    run.communicate(timeout=180)
    assert run.returncode == 75, run.told()
  step, = steps_of(tmp_path / "run")
  assert is_whole(tmp_path / "run", step)
  assert {run.told().splitlines()[-1] for run in both} == {
      f"stopped: saved step {step:,}; the same command goes on"}
