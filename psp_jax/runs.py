"""A run's folder: its config, and the state of its checkpoints.

Trained here or converted from elsewhere makes no difference.
"""

import contextlib
import json
import pathlib

import jax

from psp_jax import checkpoint, saved_config, sharding, train_step
from psp_jax.models import create_model
from psp_jax.workdir import write_text


def save_config(config, workdir: pathlib.Path) -> None:
  if jax.process_index() == 0:
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    write_text(workdir / "config.json", text + "\n")


def restore(config, workdir, step: int | None = None) -> train_step.TrainState:
  """The state of `step` (None: the last), on every device.

  Raises:
    CheckpointError: there is none, or it does not fit the config.
  """
  checkpoints = checkpoint.Checkpoints.existing(workdir)
  model = create_model(config)
  mesh = sharding.create_mesh()
  shapes = jax.eval_shape(lambda: train_step.create_train_state(model, config))
  like = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(
          s.shape, s.dtype, sharding=sharding.replicated(mesh)), shapes)
  with contextlib.closing(checkpoints):
    return checkpoints.restore(like, step)


def load(workdir, step: int | None = None):
  """(config, state) of a run, by the config beside its checkpoints."""
  config = saved_config.get_config(workdir)
  return config, restore(config, workdir, step)
