"""python -m benchmarks.save [--rounds=5]

How long a save holds training up: digests of all arrays and the copy that is
written in the background; and how long the writing takes. For the states of
configs/scenes.py and of PSPNet50.
"""

import os
import tempfile
import time

import numpy as np

from benchmarks import machine


def measure(config, rounds: int):
  """(MiB of the state, seconds held up, seconds until written, of digests)."""
  import jax

  from psp_jax import checkpoint, train_step
  from psp_jax.models import create_model
  state = train_step.create_train_state(create_model(config), config)
  jax.block_until_ready(state)
  held, written, digests = [], [], []
  with tempfile.TemporaryDirectory() as root:
    checkpoints = checkpoint.Checkpoints(root, keep=1)
    for step in range(1, rounds + 1):
      began = time.perf_counter()
      checkpoint.digests(state)
      digests.append(time.perf_counter() - began)
      began = time.perf_counter()
      checkpoints.save(state.replace(step=jax.numpy.int32(step)))
      held.append(time.perf_counter() - began)
      checkpoints.wait()
      written.append(time.perf_counter() - began)
    checkpoints.close()
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  return size / 2**20, held, written, digests


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--rounds", type=int, default=5, metavar="N",
                      help="saves of each")
  args = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  from configs import scenes
  from psp_jax import default_config
  small = scenes.get_config()
  small.model.num_classes = small.model.num_classes or 8
  print(machine.describe(os.cpu_count(), ("jax", "orbax-checkpoint"))
        + f"; medians of {args.rounds} (least to most)\n\n| state | MiB | "
        "training waits, ms | of it digests | until written, ms |\n"
        "|---|---|---|---|---|")
  for name, config in (("scenes", small),
                       ("PSPNet50", default_config.get_config())):
    size, *times = measure(config, args.rounds)
    cells = [f"{1e3 * np.median(t):.0f} ({1e3 * min(t):.0f} to "
             f"{1e3 * max(t):.0f})" for t in times]
    print(f"| {name} | {size:.1f} | {cells[0]} | {cells[2]} | {cells[1]} |")


if __name__ == "__main__":
  main()
