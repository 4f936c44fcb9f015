"""A run's folder: its config, its classes, the state of its checkpoints.

Trained here or converted from elsewhere makes no difference.
"""

import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np

from psp_jax import checkpoint, saved_config, sharding, train_step
from psp_jax.data import decode
from psp_jax.data.taxonomy import IGNORE_LABEL, Taxonomy, voc_palette
from psp_jax.errors import CheckpointError, UserError
from psp_jax.models import create_model
from psp_jax.workdir import write_text

_LOOKED_AT = 32  # Images whose sizes tell the usual one.


@dataclasses.dataclass(frozen=True, eq=False)
class Classes:
  """What a network's answers mean: WORKDIR/classes.json.

  Attributes:
    taxonomy: names, colours and ids of the dataset.
    image_size: the usual (height, width) of the images it was trained on; None
      where nobody knows.
  """
  taxonomy: Taxonomy
  image_size: tuple[int, int] | None = None


def save_config(config, workdir: pathlib.Path) -> None:
  if jax.process_index() == 0:
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True)
    write_text(workdir / "config.json", text + "\n")


def usual_size(split) -> tuple[int, int]:
  """(height, width): the median of some images of a `datasets.Split`."""
  some = np.linspace(0, len(split) - 1, min(len(split), _LOOKED_AT)).astype(int)
  sizes = [decode.image_size(split.encoded(i)["image"]) for i in some]
  height, width = np.median(sizes, 0)
  return int(height), int(width)


def save_classes(classes: Classes, workdir: pathlib.Path) -> None:
  if jax.process_index() == 0:
    taxonomy = classes.taxonomy
    write_text(workdir / "classes.json", json.dumps({
        "class_names": list(taxonomy.class_names),
        "palette": taxonomy.palette.tolist(),
        "stored_ids": taxonomy.stored_ids.tolist(),
        "image_size": classes.image_size}, indent=2) + "\n")


def load_classes(config, workdir) -> Classes:
  """Those of a run; of one without the file, those of its dataset.

  Where the dataset is gone or another, classes are named by their numbers.

  Raises:
    CheckpointError: the file is not one of ours.
  """
  path = pathlib.Path(workdir) / "classes.json"
  try:
    found = json.loads(path.read_text())
    label_map = np.full(256, IGNORE_LABEL, np.int16)
    label_map[np.array(found["stored_ids"], np.uint8)] = np.arange(
        len(found["class_names"]))
    palette = np.array(found["palette"], np.uint8)
    size = found["image_size"]
    if len(palette) != len(found["class_names"]):
      raise ValueError("a colour for each class")
    if not all(isinstance(name, str) for name in found["class_names"]):
      raise TypeError("names of classes are texts")
    return Classes(Taxonomy(tuple(found["class_names"]),
                            palette.reshape(-1, 3), label_map),
                   None if size is None else (int(size[0]), int(size[1])))
  except FileNotFoundError:
    pass
  except (OSError, ValueError, KeyError, TypeError, OverflowError,
          IndexError) as error:
    raise CheckpointError(
        f"{path}: not readable ({error}); remove it, and classes are named as "
        "the run's dataset has them") from error
  return Classes(_taxonomy_of(config))


def _taxonomy_of(config) -> Taxonomy:
  from psp_jax.data import datasets  # Late: it imports TensorFlow.
  count = config.model.num_classes
  try:
    taxonomy = datasets.taxonomy(config)
    if taxonomy.num_classes == count:
      return taxonomy
  except UserError:
    pass
  label_map = np.full(256, IGNORE_LABEL, np.int16)
  label_map[:count] = np.arange(count)
  return Taxonomy(tuple(f"class {i}" for i in range(count)),
                  voc_palette(256)[1:count + 1], label_map)


def restore(config, workdir, step: int | None = None) -> train_step.TrainState:
  """The state of `step` (None: the last), on every device.

  Raises:
    CheckpointError: there is none, or it does not fit the config.
  """
  checkpoints = checkpoint.Checkpoints.existing(workdir)
  like = train_step.state_shapes(
      create_model(config), config, sharding.replicated(sharding.create_mesh()))
  with contextlib.closing(checkpoints):
    return checkpoints.restore(like, step)


def load(workdir, step: int | None = None):
  """(config, state) of a run, by the config beside its checkpoints."""
  config = saved_config.get_config(workdir)
  return config, restore(config, workdir, step)
