"""python -m benchmarks.ablations [NAME ...]

Builds rows of configs/ablations.py (without arguments, all) at their full
width and trains each for one step: two crops of 65x65, cut from a made
picture with the row's augmentation. Stops where the loss is not finite or an
array of parameters stays as it was. Rows whose networks and crops are equal
share a step. Prints a Markdown table.
"""

import json
import os
import resource
import sys
import time

# Compiling is most of the time, and the step runs once.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0")

import jax  # noqa: E402  After the environment is set.
import numpy as np  # noqa: E402

from benchmarks import machine  # noqa: E402
from psp_jax import (  # noqa: E402
  default_config,
  published,
  train_step,
)
from psp_jax.data import augment  # noqa: E402
from psp_jax.models import create_model  # noqa: E402

CROP, BATCH = 65, 2


def make_batch(config):
  """Augmented crops of noise in which each class has a colour."""
  rng = np.random.default_rng(0)
  classes = config.model.num_classes
  colours = rng.integers(0, 256, (classes, 3))
  images, labels = [], []
  for _ in range(BATCH):
    label = np.kron(rng.integers(0, classes, (6, 8)), np.ones((16, 16), int))
    image = colours[label] + rng.normal(0, 20, (*label.shape, 3))
    drawn = augment.draw(rng, *label.shape, CROP, config)
    image, label = augment.apply(
        drawn, image.clip(0, 255).astype(np.uint8), label.astype(np.uint8),
        CROP)
    images.append(image)
    labels.append(label)
  return {"image": np.stack(images), "label": np.stack(labels)}


def one_step(config) -> tuple[int, float]:
  """(number of parameters, loss of the first step)."""
  # Decay would move every weight, with a gradient or without.
  config.optimizer.weight_decay = 0.0
  model = create_model(config)
  state = train_step.create_train_state(model, config)
  before = jax.tree.map(np.array, state.params)
  # The state is donated, as train.py's: less memory.
  step = jax.jit(lambda state, batch: train_step.train_step(
      state, batch, model=model, config=config), donate_argnums=0)
  state, metrics = step(state, make_batch(config))
  if not metrics["finite_grads"].all():
    raise AssertionError("a gradient is not finite")
  for (path, old), new in zip(jax.tree_util.tree_leaves_with_path(before),
                              jax.tree.leaves(state.params)):
    if np.array_equal(old, new):
      raise AssertionError(f"{jax.tree_util.keystr(path)} did not change")
  return sum(p.size for p in jax.tree.leaves(before)), float(metrics["loss"])


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("rows", nargs="*", metavar="NAME", default="all",
                      help="rows of configs/ablations.py")
  rows = parser.parse_args().rows
  names = list(published.ROWS) if rows == "all" else rows
  if unknown := sorted(set(names) - published.ROWS.keys()):
    parser.error(f"no row {unknown[0]!r}; rows are "
                 f"{', '.join(published.ROWS)}")
  print("| row | change | published, % | parameters | loss |\n"
        "|---|---|---|---|---|", flush=True)
  done = {}
  for name in names:
    row = published.ROWS[name]
    config = default_config.get_config()
    config.update_from_flattened_dict(row.changes)
    key = json.dumps([config.model.to_dict(), config.data.augment.to_dict()])
    if key not in done:
      began = time.monotonic()
      done[key] = one_step(config)
      jax.clear_caches()
      peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
      print(f"{name}: {time.monotonic() - began:.0f} s, peak {peak:.1f} GiB",
            file=sys.stderr, flush=True)
    parameters, loss = done[key]
    changes = ", ".join(f"{k.removeprefix('model.')}={v}"
                        for k, v in row.changes.items())
    figures = ", ".join(
        f"{source} {' / '.join(filter(None, values))}" for source, values in (
            ("paper", row.paper), ("semseg", row.semseg)) if any(values))
    print(f"| {name} | {changes or 'none'} | {figures} ({row.split}) | "
          f"{parameters:,} | {loss:.4f} |", flush=True)


if __name__ == "__main__":
  main()
