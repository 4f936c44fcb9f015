"""python -m benchmarks.preemption [--rounds=3]

SIGTERM to a small run while it compiles, trains, validates and evaluates: the
seconds until its last step is saved whole, and until the process has left.
"""

import os
import pathlib
import signal
import statistics
import tempfile
import time

from benchmarks import kill_test, machine

# What a run says when it is at it; validation begins after the log line of its
# step, once that is saved.
_SIGNS = {"compile": "compiling ", "train": "step  90/", "validation":
          f"step {kill_test.VALIDATE_EVERY:>3}/", "final evaluation":
          "evaluation of step"}
_PAUSE = {"compile": 1.0, "validation": 0.1}
_STEPS = 900


def tell(moment: str, root: pathlib.Path) -> tuple[float, float, int, str]:
  """(seconds until saved, until gone, exit code, its last line)."""
  workdir = root / moment.replace(" ", "_")
  # Much to score, so that the signal meets it.
  line = kill_test.command(
      workdir, root / "tfds", 3 if moment == "final evaluation" else _STEPS)
  line += ["--config.eval.num_images=100", "--config.checkpoint.every_steps=0",
           "--config.validation.num_images=100"]
  if moment != "validation":
    line.append("--config.validation.every_steps=0")
  if moment == "compile":
    line.append(f"--compilation_cache={workdir}_compiled")
  process = kill_test.start(line)
  for text in process.stdout:
    if _SIGNS[moment] in text:
      break
  time.sleep(_PAUSE.get(moment, 0))
  process.send_signal(signal.SIGTERM)
  began = time.monotonic()
  saved = None
  while process.poll() is None:
    if saved is None and any(workdir.glob("checkpoints/*[0-9]/digests")):
      saved = time.monotonic() - began
    time.sleep(0.005)
  gone = time.monotonic() - began
  if any(workdir.glob("checkpoints/*tmp*")):
    raise SystemExit(f"{moment}: left an unfinished checkpoint")
  lines = process.stdout.read().splitlines()
  return saved or 0.0, gone, process.returncode, lines[-1]


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--rounds", type=int, default=3, metavar="N",
                      help="signals at each moment")
  args = parser.parse_args()
  print(machine.describe(os.cpu_count(), ("jax", "orbax-checkpoint"))
        + f"; medians of {args.rounds} (least to most)\n\n"
        "| told in | saved after, s | gone after, s | exit code |\n"
        "|---|---|---|---|")
  for moment in _SIGNS:
    seen = []
    for _ in range(args.rounds):
      with tempfile.TemporaryDirectory() as root:
        seen.append(tell(moment, pathlib.Path(root)))
    saved, gone, codes, _ = zip(*seen, strict=True)
    cells = [f"{statistics.median(t):.2f} ({min(t):.2f} to {max(t):.2f})"
             for t in (saved, gone)]
    if moment == "compile":
      cells[0] = "nothing to save"
    print(f"| {moment} | {' | '.join(cells)} | "
          f"{', '.join(map(str, sorted(set(codes))))} |", flush=True)


if __name__ == "__main__":
  main()
