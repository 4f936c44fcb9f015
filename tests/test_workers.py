"""Threads or processes: the same batches, and nothing left behind."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from runner import HEARING, untimed

from psp_jax import default_config, errors, stopping
from psp_jax.data import input_pipeline

ROOT = pathlib.Path(__file__).parent.parent
SHARED_MEMORY = pathlib.Path("/dev/shm")


class Pictures:
  """Records with something to see; number `broken` cannot be read."""

  def __init__(self, broken=None):
    self._broken = broken

  def __len__(self):
    return 400

  def __getitem__(self, index):
    if index == self._broken:
      raise errors.DataError(f"{index}.png: not readable; replace it")
    rng = np.random.default_rng(index)
    return {"image": rng.integers(0, 256, (20, 24, 3)).astype(np.uint8),
            "label": rng.integers(0, 11, (20, 24)).astype(np.uint8),
            "name": f"{index}", "further": {"key": [index]}}


def config(workers="processes", batch=8):
  c = default_config.get_config()
  c.global_batch_size = batch
  c.data.crop_size = 16
  c.data.workers, c.data.num_threads = workers, 2
  c.data.augment.cat_max_ratio = 0.75
  c.data.augment.photometric_distortion = True
  return c


def same(a, b):
  return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def shared_memory():
  return ({p.name for p in SHARED_MEMORY.glob("psm_*")}
          if SHARED_MEMORY.is_dir() else set())


@pytest.fixture(autouse=True)
def nothing_is_left(alone_with_shared_memory):
  before = shared_memory()
  yield
  gc.collect()  # An error's frames may hold a batch, in a cycle.
  assert not multiprocessing.active_children()
  deadline = time.monotonic() + 5  # Grain frees it in a thread.
  while shared_memory() - before and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not shared_memory() - before


@pytest.mark.parametrize(("hosts", "start"), [(1, 0), (2, 10**9), (4, 1000)])
def test_processes_make_the_batches_that_threads_make(hosts, start):
  """Of every host; and together, in order, they are the whole batch."""
  shares = []
  for host in range(hosts):
    threads, processes = (input_pipeline.train_batches(
        Pictures(), config(workers), start, host, hosts)
        for workers in input_pipeline.WORKERS)
    shares.append(list(itertools.islice(processes, 5)))
    for batch in shares[-1]:
      assert same(batch, next(threads))
      assert type(batch["image"]) is np.ndarray  # Not in shared memory.
      assert batch["image"].shape == (8 // hosts, 16, 16, 3)
    threads.close()
    processes.close()
  whole = input_pipeline.train_dataset(Pictures(), config(), 0, 1)
  for i, parts in enumerate(zip(*shares, strict=True)):
    assert same(whole[start + i], {
        k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


def first_batch_with(record):
  """The step whose batch is the first to hold it, by the order of reading."""
  class Reading(Pictures):
    def __getitem__(self, index):
      read.append(index)
      return super().__getitem__(index)

  read = []
  dataset = input_pipeline.train_dataset(Reading(), config(), 0, 1)
  for step in itertools.count():
    dataset[step]
    if record in read:
      return step


@pytest.mark.parametrize("workers", input_pipeline.WORKERS)
def test_an_error_comes_in_its_batchs_place_in_the_same_words(workers):
  batches = input_pipeline.train_batches(Pictures(77), config(workers), 0)
  for _ in range(first_batch_with(77)):
    next(batches)
  with pytest.raises(errors.DataError) as raised:
    next(batches)
  assert str(raised.value) == "77.png: not readable; replace it"
  batches.close()


def test_every_user_error_survives_the_way_between_processes():
  kinds = [errors.UserError, *errors.UserError.__subclasses__()]
  assert len(kinds) == 7
  for kind in kinds:
    copy = pickle.loads(pickle.dumps(kind("what is wrong; what to do")))
    assert type(copy) is kind and str(copy) == "what is wrong; what to do"


@pytest.mark.parametrize("taken", [0, 2])
def test_closing_ends_the_workers(taken):
  batches = input_pipeline.train_batches(Pictures(), config(), 0)
  for _ in range(taken):
    next(batches)
  assert len(multiprocessing.active_children()) == taken  # One made each.
  batches.close()
  assert not multiprocessing.active_children()
  batches.close()
  with pytest.raises(StopIteration):
    next(batches)


# ---- Seeking.


class Counted(Pictures):
  def __init__(self):
    super().__init__()
    self.read = 0

  def __getitem__(self, index):
    self.read += 1
    return super().__getitem__(index)


def test_any_step_is_ten_milliseconds_away():
  """Of the time that the start at 0 takes, first batch and all."""
  c = config("threads")
  c.data.num_threads = 1  # More would make the next batches beside the first.
  dataset = input_pipeline.train_dataset(Pictures(), c, 0, 1)
  steps = 0, 10**3, 10**6, 10**9
  times = {step: [] for step in steps}
  for _ in range(15):
    for step in steps:
      split = Counted()
      began = time.perf_counter()
      batches = input_pipeline.train_batches(split, c, step)
      constructed = time.perf_counter()
      batch = next(batches)
      times[step].append((constructed - began, time.perf_counter() - began))
      batches.close()
      assert same(batch, dataset[step])
      assert split.read <= 8 * 5  # Those read ahead.
  # The shortest of each: what else the machine does only adds.
  construct, first = (dict(zip(steps, np.min(list(times.values()), 1)[:, i]))
                      for i in (0, 1))
  assert max(construct.values()) < 0.010, construct
  assert max(first.values()) - first[0] < 0.010, first


# ---- Values.


@pytest.mark.parametrize(("field", "value", "words"), [
    ("num_threads", 0, "1 or more"), ("num_threads", -3, "1 or more"),
    ("workers", "thread", "choose one of 'threads', 'processes'"),
    ("cache_gib", -1.0, "0, which is off"),
    ("cache_gib", float("nan"), "0, which is off"),
    ("cache_gib", float("inf"), "0, which is off")])
def test_values_that_cannot_work_are_named(field, value, words):
  c = config()
  c.data[field] = value
  with pytest.raises(errors.ConfigError) as error:
    input_pipeline.check(c)
  assert str(error.value).startswith(f"config.data.{field}={value!r}: ")
  assert words in str(error.value)


def test_too_little_shared_memory_is_told_beforehand(monkeypatch):
  c = config(batch=16)
  c.data.crop_size, c.data.num_threads = 512, 4
  free = 256 * 2**20  # 4 processes, 4 batches each of 16 MiB.

  def check(less):
    monkeypatch.setattr(input_pipeline.shutil, "disk_usage",
                        lambda _: type("Usage", (), {"free": free - less}))
    input_pipeline.check_shared_memory(c, 1, "/")

  check(less=0)
  with pytest.raises(errors.ConfigError, match="0.25 GiB of /, .*--shm-size"):
    check(less=1)
  c.data.workers = "threads"
  check(less=1)


def test_evaluation_reads_with_threads_whatever_is_set():
  records = input_pipeline.evaluation_records(Pictures(), [3, 1, 2], config())
  assert [r["name"] for r in records] == ["3", "1", "2"]
  assert not multiprocessing.active_children()


# ---- Real processes, started and ended in all ways.

KILLED = """
import os, signal, sys, multiprocessing
sys.path.insert(0, {tests!r})
import test_workers
from psp_jax.data import input_pipeline

if __name__ == "__main__":
  batches = input_pipeline.train_batches(
      test_workers.Pictures(), test_workers.config(), 0)
  next(batches), next(batches)  # One of each worker's.
  print(*[p.pid for p in multiprocessing.active_children()], flush=True)
  os.kill(os.getpid(), signal.{signal})
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_killed_it_takes_its_workers_along(name, tmp_path):
  script = tmp_path / "killed.py"
  script.write_text(KILLED.format(tests=str(ROOT / "tests"), signal=name))
  done = subprocess.run([sys.executable, script], cwd=ROOT, text=True,
                        capture_output=True, timeout=100, check=False)
  assert done.returncode == -getattr(signal, name), done.stderr
  workers = [int(pid) for pid in done.stdout.split()]
  assert len(workers) == 2
  deadline = time.monotonic() + 20
  while any(map(is_running, workers)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(is_running, workers))


def is_running(pid):
  try:
    os.kill(pid, 0)
    return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
  except (ProcessLookupError, FileNotFoundError):
    return False


@pytest.fixture
def command(tiny_config, tmp_path):
  """The command line of a tiny run with two worker processes."""
  flat = {
      "data.manual_dir": tiny_config.data.manual_dir,
      "data.data_dir": tiny_config.data.data_dir, "data.allow_partial": True,
      "data.crop_size": 33, "data.num_threads": 2, "global_batch_size": 4,
      "data.workers": "processes", "model.depth": 10,
      "model.width_multiplier": 0.0625, "checkpoint.every_steps": 1000,
      "validation.every_steps": 0, "log_every_steps": 1,
      "eval.num_images": 2}
  return ["--config=configs/camvid.py:cpu", f"--workdir={tmp_path / 'run'}",
          *(f"--config.{k}={v}" for k, v in flat.items())]


def clean(stderr):
  return "leaked" not in stderr and "Exception ignored" not in stderr


def test_a_run_from_the_command_line(command):
  done = subprocess.run(
      [sys.executable, "-m", "psp_jax.main", *command,
       "--config.num_train_steps=3"], cwd=ROOT, capture_output=True, text=True,
      timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  assert "step 3/3" in done.stdout and "written" in done.stdout
  assert clean(done.stderr) and "Traceback" not in done.stderr


BROKEN = """
from psp_jax.data import datasets
from psp_jax.errors import DataError

class Broken(datasets.Split):
  def __getitem__(self, index):
    if index == 5:
      raise DataError("0005.png: not readable; replace it")
    return super().__getitem__(index)

if __name__ == "__main__":
  datasets.Split = Broken
  from psp_jax import main
  main.run(main.main)
"""


def test_what_a_worker_finds_is_one_line_and_exit_2(command, tmp_path):
  (tmp_path / "broken.py").write_text(BROKEN)
  done = subprocess.run(
      [sys.executable, tmp_path / "broken.py", *command,
       "--config.num_train_steps=100"], cwd=ROOT, capture_output=True,
      text=True, timeout=300, check=False)
  assert done.returncode == 2, done.stderr
  assert done.stderr.strip().splitlines()[-1] == (
      "error: 0005.png: not readable; replace it")
  assert clean(done.stderr) and "Traceback" not in done.stderr


def test_ctrl_c_ends_all_of_it(command, tmp_path):
  with open(tmp_path / "stderr", "w+") as stderr:
    run = subprocess.Popen(
        [sys.executable, "-c", HEARING, "-m", "psp_jax.main", *command,
         "--config.num_train_steps=100000"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=stderr, start_new_session=True)
    for line in run.stdout:
      if untimed(line).startswith("step") and " 3/" in line:
        break
    try:
      os.killpg(run.pid, signal.SIGINT)  # As a terminal does.
      run.communicate(timeout=60)
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)  # Or a failure would run on.
    stderr.seek(0)
    said = stderr.read()
  assert run.returncode == stopping.EXIT_CODE, said
  assert said.splitlines()[-1].startswith("stopped: saved step"), said
  assert "Exception ignored" not in said and "Traceback" not in said
  with pytest.raises(ProcessLookupError):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
      os.killpg(run.pid, 0)
      time.sleep(0.05)
