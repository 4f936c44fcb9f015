"""python -m benchmarks.kill_test [--kills=20] [--seed=0] [--wait]

A small run is killed (SIGKILL) at random moments, among them inside a save and
inside a validation, and started again each time, until it ends. Its last
checkpoint, its validations and its scores must be, bit for bit, those of a run
that nothing disturbed. A start goes back to the last save, which is written
while training goes on: what is lost is a save's interval at most, and what was
done while the next save was being written. With --wait (of the run,
--config.checkpoint.asynchronous=False) training waits for that, and no more
than an interval is lost.
"""

import collections
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent
SAVE_EVERY, VALIDATE_EVERY = 20, 60
MOMENTS = ("any", "save", "validation")


def command(workdir, data_dir, steps: int) -> list[str]:
  fields = {
      "data.data_dir": data_dir, "num_train_steps": steps, "log_every_steps": 1,
      "checkpoint.every_steps": SAVE_EVERY,
      "validation.every_steps": VALIDATE_EVERY, "validation.num_images": 8,
      "eval.num_images": 8, "global_batch_size": 4, "data.crop_size": 97,
      "model.depth": 10, "model.width_multiplier": 0.125,
      "data.num_threads": 2}
  return [sys.executable, "-m", "psp_jax.main", "--config=configs/scenes.py",
          f"--workdir={workdir}",
          *(f"--config.{name}={value}" for name, value in fields.items())]


def start(line):
  return subprocess.Popen(line, cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT,
                          env=dict(os.environ, JAX_PLATFORMS="cpu"))


def step_of(text: str) -> int | None:
  found = re.match(r"(?:[\d:]+ )?step +(\d+)/", text)
  return int(found[1]) if found else None


def wait_for(process, moment: str, workdir, draw) -> int | None:
  """The last step seen when it is time to kill; None: the run has ended."""
  step, first = 0, None
  after = draw.randint(2, 3 * SAVE_EVERY)
  for text in process.stdout:
    now = step_of(text)
    if now is None:
      continue
    step, first = now, first or now
    if moment == "any" and step - first >= after:
      time.sleep(draw.random() * 0.05)
      return step
    if moment == "validation" and step % VALIDATE_EVERY == 0:
      time.sleep(draw.random())
      return step
    if (moment == "save" and step % SAVE_EVERY == 0
        and step - first >= SAVE_EVERY):  # Or no start would get further.
      # Until its folder is there, without its final name yet.
      deadline = time.monotonic() + 0.5
      while time.monotonic() < deadline:
        if list((workdir / "checkpoints").glob(f"{step}.*tmp*")):
          return step
      return step
  return None


def kills(workdir, line, count: int, draw) -> list[dict]:
  """Kills until there were `count`; then lets it end."""
  told = []
  while len(told) < count:
    moment = MOMENTS[len(told) % len(MOMENTS)]
    process = start(line)
    seen = wait_for(process, moment, workdir, draw)
    process.kill()
    process.communicate()
    if seen is None:
      break
    unfinished = list((workdir / "checkpoints").glob("*tmp*"))
    saved = max((int(p.name) for p in (workdir / "checkpoints").iterdir()
                 if p.name.isdigit()), default=0)
    told.append({"moment": moment, "killed at": seen, "saved": saved,
                 "lost": seen - saved, "inside a save": bool(unfinished)})
    print(told[-1], flush=True)
  process = start(line)
  out, _ = process.communicate()
  if process.returncode:
    raise SystemExit(out)
  return told


def end_of(workdir) -> dict:
  """Everything that must be equal: digests of the last checkpoint, scores."""
  from psp_jax import checkpoint, runs
  _, state = runs.load(workdir)
  return {"state": checkpoint.digests(state),
          "scores": json.loads((workdir / "eval.json").read_text()),
          "validation": (workdir / "validation.jsonl").read_text(),
          "training": (workdir / "training.jsonl").read_text()}


def run(count: int, steps: int, seed: int, root: pathlib.Path,
        wait: bool = False) -> dict:
  """What happened, and whether the two ends are equal."""
  straight, killed = root / "straight", root / "killed"
  process = start(command(straight, root / "tfds", steps))
  out, _ = process.communicate()
  if process.returncode:
    raise SystemExit(out)
  line = command(killed, root / "tfds", steps)
  line += ["--config.checkpoint.asynchronous=False"] * wait
  told = kills(killed, line, count, random.Random(seed))
  one, other = end_of(straight), end_of(killed)
  return {"kills": told, "arrays": len(one["state"]), "equal": {
      name: one[name] == other[name] for name in one}}


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--kills", type=int, default=20, metavar="N",
                      help="how often")
  parser.add_argument("--steps", type=int, default=600, metavar="N",
                      help="of the run")
  parser.add_argument("--seed", type=int, default=0, metavar="N",
                      help="of the moments")
  parser.add_argument("--wait", action="store_true",
                      help="training waits until a save is written")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    result = run(args.kills, args.steps, args.seed, pathlib.Path(root),
                 args.wait)
  told = result["kills"]
  moments = collections.Counter(each["moment"] for each in told)
  print(f"\n{len(told)} kills ({dict(moments)}), "
        f"{sum(each['inside a save'] for each in told)} of them left an "
        f"unfinished save; at most {max(each['lost'] for each in told)} steps "
        f"lost, saves every {SAVE_EVERY}; {result['arrays']} arrays; equal to "
        f"the undisturbed run: {result['equal']}")
  if not all(result["equal"].values()):
    sys.exit(1)


if __name__ == "__main__":
  main()
