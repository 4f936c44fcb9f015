"""python -m benchmarks.scale [--steps=30] [--only=equal|kill|weak]

The same run of configs/scenes.py by 1, 2 and 4 real processes of 1 or 2
devices each, on this machine's CPU:

equal  every crop that is trained on, every loss, and the confusion matrix of
       a split that does not divide by the number of processes. At a learning
       rate of 0.001: at the config's own, rounding errors
       grow fourfold a step.
kill   one of four is killed: when the others end, and whether the same command
       goes on with four, and with two.
weak   one process on one core, against two on one each with twice the batch,
       and against two runs at the same time that share nothing.
"""

import csv
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import machine

_ROOT = pathlib.Path(__file__).parent.parent
# (processes, devices of each, mesh.space)
_SETTINGS = ((1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1), (4, 2, 1),
             (2, 1, 2), (2, 2, 2))
_BASE_LR = 0.001
_IMAGES = 37  # To score; 2 and 4 do not divide it.
_PEER_TIMEOUT = 20


def _free_port() -> int:
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


def start(workdir, data_dir, fields, processes=1, devices=1, mode="train",
          cores=None):
  """The processes of a run; each writes its crops' digests to the workdir."""
  workdir.mkdir(parents=True, exist_ok=True)
  fields = {"data.data_dir": data_dir, "data.num_threads": 2,
            "log_every_steps": 1, "validation.every_steps": 0,
            "eval.num_images": _IMAGES, "eval.contact_sheet_images": 0,
            "peer_timeout_seconds": _PEER_TIMEOUT, **fields}
  port = _free_port()
  started = []
  for i in range(processes):
    line = [sys.executable, "-m", "benchmarks.scale", "--child",
            str(workdir / f"crops{processes}_{i}.txt"),
            "--config=configs/scenes.py", f"--workdir={workdir}",
            f"--mode={mode}",
            *(f"--config.{name}={value}" for name, value in fields.items())]
    if cores:
      line = ["taskset", "-c", str(cores[i]), *line]
    env = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if processes > 1:
      env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
              "JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(i)}
    log = open(workdir / f"log{processes}_{i}.txt", "w")
    started.append(subprocess.Popen(
        line, cwd=_ROOT, env=os.environ | env, stdout=log, stderr=log))
  return started


def run(workdir, *args, **options) -> float:
  """Starts, waits for success, and says how long it took."""
  began = time.monotonic()
  for i, process in enumerate(started := start(workdir, *args, **options)):
    if process.wait():
      raise SystemExit(f"process {i} of {len(started)} failed:\n" + (
          workdir / f"log{len(started)}_{i}.txt").read_text()[-3000:])
  return time.monotonic() - began


def child(file: str) -> None:
  """`psp_jax.main`, telling of crops that go to a device, and when a step ends.
  """
  from psp_jax import console, main, sharding
  shard_batch = sharding.shard_batch

  def telling(batch, mesh):
    index, _ = sharding.data_share(mesh)
    with open(file, "a") as told:
      told.write(json.dumps([index, [
          hashlib.sha256(image.tobytes() + label.tobytes()).hexdigest()[:16]
          for image, label in zip(batch["image"], batch["label"],
                                  strict=True)]]) + "\n")
    return shard_batch(batch, mesh)

  line = console.Progress.line

  def timed(progress, step, values):  # Called when a step's loss is there.
    with open(file + ".times", "a") as told:
      told.write(f"{time.monotonic()}\n")
    return line(progress, step, values)

  sharding.shard_batch = telling
  console.Progress.line = timed
  main.run(main.main)


def crops(workdir, processes: int, steps: int) -> list[list[str]]:
  """Of each step, its crops in the order of the whole batch."""
  told = []
  for i in range(processes):
    lines = (workdir / f"crops{processes}_{i}.txt").read_text().splitlines()
    told.append([json.loads(line) for line in lines[:steps]])
  batches = []
  for shares in zip(*told, strict=True):
    # Processes that share images told the same.
    parts = {index: digests for index, digests in shares}
    assert all(parts[index] == digests for index, digests in shares)
    batches.append([d for index in sorted(parts) for d in parts[index]])
  return batches


def losses(workdir) -> list[float]:
  return [json.loads(line)["loss"] for line in (
      workdir / "training.jsonl").read_text().splitlines()]


def confusion(workdir) -> np.ndarray:
  rows = list(csv.reader((workdir / "confusion.csv").open()))
  return np.array([row[1:] for row in rows[1:]], int)


def equal(root, steps: int) -> None:
  """Prints how far each setting is from one process of one device."""
  print("| processes | devices | rows shared by | crops | largest difference "
        "of a loss | its own score: pixels that differ | the same checkpoint "
        "scored: pixels that differ |\n|" + "---|" * 7)
  first = None
  for processes, devices, space in _SETTINGS:
    workdir = root / f"{processes}_{devices}_{space}"
    fields = {"num_train_steps": steps, "mesh.space": space,
              "optimizer.base_lr": _BASE_LR}
    run(workdir, root / "tfds", fields, processes=processes, devices=devices)
    found = (crops(workdir, processes, steps), np.array(losses(workdir)),
             confusion(workdir))
    if first is None:
      first, one = found, workdir
    # The first run's checkpoint, so that only the scoring differs.
    scored = root / f"scored_{processes}_{devices}_{space}"
    shutil.copytree(one, scored)
    (scored / "confusion.csv").unlink()
    run(scored, root / "tfds", fields, processes=processes, devices=devices,
        mode="eval")
    worst = np.max(np.abs(found[1] / first[1] - 1))
    same = "equal" if found[0] == first[0] else "DIFFER"
    own, again = (np.abs(matrix - first[2]).sum() // 2
                  for matrix in (found[2], confusion(scored)))
    print(f"| {processes} | {devices} | {space} | {len(found[0])} x "
          f"{len(found[0][0])} {same} | {worst:.1e} | {own} of "
          f"{first[2].sum()} | {again} |", flush=True)


def _step_of(workdir) -> int:
  found = re.findall(r"step +(\d+)/", (workdir / "log4_0.txt").read_text())
  return int(found[-1]) if found else 0


def kill(root, steps: int) -> None:
  """Prints what becomes of a run of four when one is killed."""
  fields = {"num_train_steps": steps, "checkpoint.every_steps": 5}
  for again in (4, 2):
    workdir = root / f"killed_{again}"
    started = start(workdir, root / "tfds", fields, processes=4)
    while _step_of(workdir) < 12:
      time.sleep(0.1)
      if any(p.poll() is not None for p in started):
        raise SystemExit((workdir / "log4_0.txt").read_text()[-3000:])
    started[2].send_signal(signal.SIGKILL)
    killed_at = _step_of(workdir)
    began = time.monotonic()
    codes = [p.wait(timeout=10 * _PEER_TIMEOUT) for p in started]
    took = time.monotonic() - began
    last = (workdir / "log4_0.txt").read_text().strip().splitlines()[-1]
    saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir()
                if p.name.isdigit())
    run(workdir, root / "tfds", fields, processes=again)
    text = (workdir / f"log{again}_0.txt").read_text()
    resumed = re.findall(r"resumed.*step (\d+)", text)
    print(f"killed one of 4 at step {killed_at}: all gone after "
          f"{took:.1f} s (time-out {_PEER_TIMEOUT}), exit codes {codes}, last "
          f"line {last[:100]!r}; saved {saved}; the same command with {again} "
          f"processes resumed from {resumed} and ended", flush=True)


def weak(root, steps: int, rounds: int, batch: int) -> None:
  """Prints images/s of one process, of two, and of two runs side by side."""
  fields = {"num_train_steps": steps, "batch_per_device": batch,
            "eval.num_images": 2, "data.num_threads": 1,
            "checkpoint.every_steps": 0}
  found = {"one": [], "two": [], "apart": []}

  def images_per_second(workdir, processes):
    text = (workdir / f"crops{processes}_0.txt.times").read_text()
    seconds = np.diff([float(line) for line in text.splitlines()])
    # Not while TensorFlow is imported for the event files.
    return processes * batch / np.median(seconds[len(seconds) // 3:])

  for i in range(rounds):
    for name, processes in (("one", 1), ("two", 2)):
      workdir = root / f"weak{i}_{name}"
      run(workdir, root / "tfds", fields, processes=processes, cores=(0, 1))
      found[name].append(images_per_second(workdir, processes))
    # What this machine's second core is worth: two runs that share nothing.
    folders = [root / f"weak{i}_apart{core}" for core in (0, 1)]
    started = [process for core, folder in enumerate(folders) for process in
               start(folder, root / "tfds", fields, cores=(core,))]
    if any([process.wait() for process in started]):
      raise SystemExit(f"a run failed: see the logs in {root}")
    found["apart"].append(sum(images_per_second(folder, 1)
                              for folder in folders))
  for name, over in (("two", "one"), ("apart", "one"), ("two", "apart")):
    ratios = [a / b for a, b in zip(found[name], found[over], strict=True)]
    print(f"{name} / {over}: {np.median(ratios):.2f} ({min(ratios):.2f} to "
          f"{max(ratios):.2f})  images/s {np.round(found[name], 1)}, "
          f"{np.round(found[over], 1)}")


def main() -> None:
  if sys.argv[1:2] == ["--child"]:
    file = sys.argv[2]
    del sys.argv[1:3]
    child(file)
    return
  parser = machine.arguments(__doc__)
  parser.add_argument("--steps", type=int, default=30, metavar="N",
                      help="of each run")
  parser.add_argument("--rounds", type=int, default=3, metavar="N",
                      help="of the weak scaling")
  parser.add_argument("--batch", type=int, default=16, metavar="N",
                      help="of a process, in the weak scaling")
  parser.add_argument("--only", choices=("equal", "kill", "weak"), default="",
                      help="one of the three")
  args = parser.parse_args()
  print(machine.describe(os.cpu_count(), ("jax",)), end="\n\n", flush=True)
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    # The dataset is prepared once.
    run(root / "prepared", root / "tfds", {"num_train_steps": 1})
    for name, measure in (("equal", lambda: equal(root, args.steps)),
                          ("kill", lambda: kill(root, args.steps)),
                          ("weak", lambda: weak(root, args.steps,
                                                args.rounds, args.batch))):
      if args.only in ("", name):
        print(f"\n{name}\n")
        measure()


if __name__ == "__main__":
  main()
