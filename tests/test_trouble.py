"""What machines do to a run: it ends soon, says why, and loses nothing."""

import pathlib
import re
import subprocess
import time

import pytest
from runner import is_whole, lines_until, starting, steps_of, two_processes

from psp_jax import watchdog

LONG = ("--config.num_train_steps=100000", "--config.validation.every_steps=0")


@pytest.fixture
def runs(tiny_flags, tmp_path):
  with starting(tiny_flags, tmp_path) as run:
    yield run


def _children(pid):
  tasks = pathlib.Path(f"/proc/{pid}/task")
  if not tasks.is_dir():
    pytest.skip("needs /proc")
  return [int(child) for task in tasks.iterdir()
          for child in (task / "children").read_text().split()]


def test_a_reader_that_hangs_ends_the_run(
    alone_with_shared_memory, runs, tmp_path):
  run = runs(*LONG, f"--workdir={tmp_path / 'run'}",
             "--config.data.workers=processes", "--config.stall_seconds=4")
  lines_until(run, "step      6/")
  stopped = _children(run.pid)
  try:
    for child in stopped:
      subprocess.run(["kill", "-STOP", str(child)], check=False)
    began = time.monotonic()
    run.wait(timeout=60)
    assert time.monotonic() - began < 20
  finally:
    for child in stopped:
      subprocess.run(["kill", "-KILL", str(child)], check=False,
                     capture_output=True)
  assert run.returncode == watchdog.EXIT_CODE
  assert re.match(r"error: waiting for the batch of step \d+ for \d+ s",
                  run.told().splitlines()[-1])
  assert is_whole(tmp_path / "run", 5)


def test_a_reader_that_cannot_read_ends_the_run(runs, tmp_path, tiny_config):
  data = tmp_path / "tfds"
  run = runs(*LONG, f"--workdir={tmp_path / 'run'}",
             f"--config.data.data_dir={data}")
  lines_until(run, "step      2/")
  run.kill()
  run.wait()
  for file in data.rglob("*train.array_record*"):
    content = bytearray(file.read_bytes())
    start = len(content) // 8
    content[start:start + 3000] = bytes(3000)
    file.write_bytes(content)
  run = runs(*LONG, f"--workdir={tmp_path / 'run'}",
             f"--config.data.data_dir={data}")
  began = time.monotonic()
  run.communicate(timeout=120)
  assert run.returncode == 2 and time.monotonic() - began < 60
  assert re.match(r"error: record \d+ of a prepared dataset cannot be read .*"
                  "hash mismatch.*prepare it anew", run.told().splitlines()[-1])


def test_the_death_of_one_of_two_ends_the_other(runs, tmp_path):
  both = [runs(*LONG, f"--workdir={tmp_path / 'run'}",
               "--config.peer_timeout_seconds=10", **environment)
          for environment in two_processes()]
  lines_until(both[0], "step      6/")
  both[1].kill()
  began = time.monotonic()
  both[0].communicate(timeout=90)
  took = time.monotonic() - began
  assert both[0].returncode not in (0, 75) and took < 40, took
  last = both[0].told().splitlines()[-1]
  assert last.startswith("error: ") and re.search("onnection|peer", last), last
  saved = steps_of(tmp_path / "run")

  alone = runs(*LONG, f"--workdir={tmp_path / 'run'}")
  said = lines_until(alone, "resumed")
  assert int(re.search(r"step (\d+)", said[-1])[1]) >= saved[-1] > 0
  lines_until(alone, f"step {saved[-1] + 3:>6}/")


def test_a_full_disk_is_told_and_with_room_it_goes_on(
    runs, small_disk):
  workdir = small_disk(1500) / "run"
  flags = (f"--workdir={workdir}", "--config.num_train_steps=60",
           "--config.validation.every_steps=0")
  run = runs(*flags)
  run.communicate(timeout=120)
  assert run.returncode == 2
  last = run.told().splitlines()[-1]
  assert last.startswith("error: ") and str(workdir) in last
  assert "No space left" in last and "untouched" in last
  saved = steps_of(workdir)
  assert saved and saved[-1] < 60

  small_disk(50_000)
  run = runs(*flags)
  out, _ = run.communicate(timeout=120)
  assert run.returncode == 0, run.told()
  assert f"checkpoint of step {saved[-1]}" in out and "damaged" not in out
  assert (workdir / "eval.json").exists()


def test_a_run_is_not_disturbed_by_a_second_on_its_folder(runs, tmp_path):
  flags = (*LONG, f"--workdir={tmp_path / 'run'}")
  first = runs(*flags)
  lines_until(first, "compiling")
  second = runs(*flags)
  second.communicate(timeout=60)
  assert second.returncode == 2
  assert f"process {first.pid} on " in second.told().splitlines()[-1]
  lines_until(first, "step      2/")


def test_another_config_is_shown_and_refused(runs, tmp_path):
  flags = (f"--workdir={tmp_path / 'run'}", "--config.validation.every_steps=0")
  run = runs(*flags, "--config.num_train_steps=5")
  run.communicate(timeout=120)
  assert run.returncode == 0, run.told()
  changed = (*flags, "--config.num_train_steps=7", "--config.seed=3",
             "--config.log_every_steps=2", "--config.eval.flip=False")
  run = runs(*changed)
  run.communicate(timeout=120)
  assert run.returncode == 2
  said = run.told()
  assert "config.num_train_steps: 5 then, 7 now" in said
  assert "config.seed: 0 then, 3 now" in said
  assert "log_every" not in said and "flip" not in said
  assert said.rstrip().endswith("--allow_config_change=seed,num_train_steps"
                                ) or said.rstrip().endswith(
                                    "--allow_config_change=num_train_steps,seed")
  run = runs(*changed, "--allow_config_change=num_train_steps")
  run.communicate(timeout=120)
  assert run.returncode == 2 and "num_train" not in run.told()
  run = runs(*changed, "--allow_config_change=num_train_steps,seed")
  out, _ = run.communicate(timeout=120)
  assert run.returncode == 0 and "step 7/7" in out, run.told()
