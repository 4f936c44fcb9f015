"""python -m benchmarks.soak [--steps=2000]

A long small run with saves and validations, looked at from outside: resident
memory, open files and threads in the second and in the last quarter of its
steps. A look may meet what is soon given back, so that medians are compared.
"""

import os
import pathlib
import statistics
import subprocess
import tempfile

from benchmarks import kill_test, machine


def look(pid: int) -> dict[str, float]:
  status = dict(line.split(":", 1) for line in pathlib.Path(
      f"/proc/{pid}/status").read_text().splitlines())
  return {"resident MiB": int(status["VmRSS"].split()[0]) / 1024,
          "threads": int(status["Threads"]),
          "open files": len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir()))}


def run(steps: int, root: pathlib.Path) -> list[tuple[int, dict]]:
  line = kill_test.command(root / "run", root / "tfds", steps)
  line += ["--config.checkpoint.every_steps=100",
           "--config.validation.every_steps=250",
           "--config.log_every_steps=10"]
  seen = []
  with subprocess.Popen(line, cwd=kill_test.ROOT, text=True,
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                        env=dict(os.environ, JAX_PLATFORMS="cpu")) as process:
    for text in process.stdout:
      step = kill_test.step_of(text)
      # Right after a save, which gives memory back that malloc has kept, and
      # right before the next, whose threads and files come and go.
      if step and step % 100 == 10 and step > 100:
        after = look(process.pid)
      if step and step % 100 == 90 and step > 100:
        seen.append((step, look(process.pid) | {
            "resident MiB": after["resident MiB"]}))
  if process.returncode:
    raise SystemExit("the run failed")
  return seen


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--steps", type=int, default=2000, metavar="N",
                      help="of the run")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    seen = run(args.steps, pathlib.Path(root))
  names = list(seen[0][1])
  print(f"| step | {' | '.join(names)} |\n|---" + "|---" * len(names) + "|")
  for step, values in seen:
    print(f"| {step} | " + " | ".join(f"{values[n]:.0f}" for n in names)
          + " |")
  quarter = len(seen) // 4
  warm, end = ({n: statistics.median(values[n] for _, values in part)
                for n in names}
               for part in (seen[quarter:2 * quarter], seen[-quarter:]))
  print("\nfrom the second quarter to the last, medians: " + ", ".join(
      f"{n} {end[n] - warm[n]:+.0f} ({end[n] / warm[n] - 1:+.1%})"
      for n in names))


if __name__ == "__main__":
  main()
