"""python -m benchmarks.startup [--rounds=3] [--depth=50 --crop=233 --batch=2]

Time to the first step of `python -m psp_jax.main`, cold and warm: a training
step of the rendered scenes in processes of their own, from a compilation cache
that is empty and from the one that the cold start filled. The dataset lies
prepared. Each round is a cold start, then a warm one; prints medians of the
parts that the console tells, and the ratio within rounds. Without --depth, the
network of configs/scenes.py; with it, one of full width.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import machine


def command(root: pathlib.Path, args) -> list[str]:
  overrides = {
      "num_train_steps": 1, "eval.num_images": 1, "checkpoint.every_steps": 0,
      "eval.contact_sheet_images": 0, "data.data_dir": root / "tfds"}
  if args.depth:
    overrides |= {"model.depth": args.depth, "model.width_multiplier": 1.0}
  if args.crop:
    overrides["data.crop_size"] = args.crop
  if args.batch:
    overrides["global_batch_size"] = args.batch
  return [sys.executable, "-m", "psp_jax.main", "--config=configs/scenes.py",
          f"--workdir={root / 'run'}", f"--compilation_cache={root / 'cache'}",
          *(f"--config.{name}={value}" for name, value in overrides.items()),
          *args.flags]


def first_step(line: list[str], environment) -> dict[str, float]:
  """Seconds to the first step and its parts; the process ends there.

  "whole" is from before the process was started until its line was read;
  "CPU" is what it used of all cores until then, whatever else they did.
  """
  began = time.perf_counter()
  with subprocess.Popen(line, env=environment, text=True,
                        stdout=subprocess.PIPE) as process:
    told = []
    for text in process.stdout:
      told.append(text)
      if re.search(r"first step [\d.]+ s after", text):
        whole = time.perf_counter() - began
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text(
            ).rpartition(")")[2].split()
        cpu = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
        process.kill()
        parts = re.findall(r"([a-z ]+) ([\d.]+)", text.partition("(")[2])
        return {"whole": whole, "CPU": cpu} | {
            k.strip(): float(v) for k, v in parts}
  raise SystemExit("".join(told) + "no first step")


def measure(args) -> list[tuple[dict[str, float], dict[str, float]]]:
  """[(cold, warm)] a round."""
  environment = dict(os.environ, JAX_PLATFORMS="cpu")
  for name in [n for n in environment if n.startswith("JAX_PERSISTENT_")]:
    del environment[name]
  found = []
  with tempfile.TemporaryDirectory() as root:
    root = pathlib.Path(root)
    from psp_jax import default_config
    from psp_jax.data import datasets
    config = default_config.get_config()
    config.data.name, config.data.data_dir = "scenes", str(root / "tfds")
    datasets.prepare(config)
    for _ in range(args.rounds):
      subprocess.run(["rm", "-rf", root / "cache"], check=True)
      times = []
      for _ in ("cold", "warm"):
        subprocess.run(["rm", "-rf", root / "run"], check=True)
        times.append(first_step(command(root, args), environment))
      found.append(tuple(times))
      print(".", end="", file=sys.stderr, flush=True)
    files = list((root / "cache").glob("*-cache"))
    size = sum(f.stat().st_size for f in files)
    print(f"\n{len(files)} programs in the cache, {size / 2**20:.1f} MiB")
  return found


def report(found) -> None:
  where = machine.describe(
      os.cpu_count(), ("jax", "flax", "grain", "orbax-checkpoint"))
  print(f"{where}; medians of {len(found)} rounds (least to most)\n\n"
        "| seconds | cold | warm | cold / warm |\n|---|---|---|---|")
  for part in found[0][0]:
    cold, warm = (np.array([r[i][part] for r in found]) for i in (0, 1))
    cells = [f"{np.median(x):.1f} ({x.min():.1f} to {x.max():.1f})"
             for x in (cold, warm)]
    ratio = np.median(cold / np.maximum(warm, 0.05))
    print(f"| {part} | {cells[0]} | {cells[1]} | {ratio:.1f} |")


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--rounds", type=int, default=3, metavar="N",
                      help="cold and warm starts")
  parser.add_argument("--depth", type=int, metavar="N",
                      help="of a network of full width")
  parser.add_argument("--crop", type=int, metavar="N", help="pixels of a side")
  parser.add_argument("--batch", type=int, metavar="N", help="crops a step")
  parser.add_argument("flags", nargs="*", metavar="FLAG",
                      help="for psp_jax.main, after --")
  args = parser.parse_args()
  report(measure(args))


if __name__ == "__main__":
  main()
