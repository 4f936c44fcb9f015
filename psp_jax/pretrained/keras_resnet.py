"""Keras's ImageNet ResNet-50 (`.npz` of its tensors by Keras name).

Keras feeds BGR minus a mean and has BatchNorm epsilon 1e-3; we feed RGB
normalised by mean and std, with 1e-5. The conversion is exact: the first
kernel absorbs the input's change, the variances absorb the epsilon's.
"""

import pathlib
import re
import zipfile
import zlib

import flax.traverse_util
import numpy as np

from psp_jax.data.normalize import MEAN, STD
from psp_jax.errors import CheckpointError

_KERAS_MEAN_RGB = np.array([123.68, 116.779, 103.939])
_EPSILON_CHANGE = 1e-3 - 1e-5
_BRANCHES = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "downsample"}
_BN_FIELDS = {"gamma": ("params", "scale"), "beta": ("params", "bias"),
              "moving_mean": ("batch_stats", "mean"),
              "moving_variance": ("batch_stats", "var")}


def load_backbone(path: str, variables):
  """`variables` with the backbone's arrays taken from `path`.

  Args:
    path: an .npz with `conv1/kernel`, `res2a_branch2a/kernel`,
      `bn2a_branch2a/gamma`, ...; the classifier `fc1000` is left out.
    variables: {"params", "batch_stats"} of a PSPNet with a 7x7 stem and
      strides in the 1x1.

  Raises:
    CheckpointError: the file is not there or unreadable, or an array is
      missing, left over or of another shape: all are listed.
  """
  found = convert(_read(path))
  ours = {(collection, *key): value
          for collection in ("params", "batch_stats")
          for key, value in flax.traverse_util.flatten_dict(
              variables[collection]["backbone"]).items()}
  problems = [f"missing: {'/'.join(k)} {ours[k].shape}"
              for k in ours if k not in found]
  problems += [f"left over: {'/'.join(k)} {found[k].shape}"
               for k in found if k not in ours]
  problems += [f"shape of {'/'.join(k)}: {found[k].shape} in the file, "
               f"{ours[k].shape} in the model"
               for k in ours if k in found and ours[k].shape != found[k].shape]
  if problems:
    raise CheckpointError(
        f"config.model.pretrained={path} does not fit the backbone (it needs "
        "model.depth=50, model.stem='7x7', model.stride_in='1x1', "
        "model.width_multiplier=1):\n  " + "\n  ".join(problems))
  loaded = flax.traverse_util.unflatten_dict(found)
  return {collection: {**variables[collection],
                       "backbone": loaded[collection]}
          for collection in ("params", "batch_stats")}


def convert(tensors: dict[str, np.ndarray]) -> dict[tuple, np.ndarray]:
  """Keras tensors to (collection, layer, ..., field) -> float32 array."""
  out, biases = {}, {}
  for name, value in tensors.items():
    value = np.asarray(value, np.float64)
    layer, field = name.split("/", 1) if "/" in name else (name, "")
    if layer == "fc1000":
      continue
    place = _place(layer)
    if place is None:
      out["params", name] = value  # Reported as left over.
    elif field == "kernel":
      out["params", *place, "conv", "kernel"] = value
    elif field == "bias":
      biases[place] = value
    elif field in _BN_FIELDS:
      collection, ours = _BN_FIELDS[field]
      out[collection, *place, "bn", ours] = value
    else:
      out["params", name] = value

  stem = ("params", "stem_conv1", "conv", "kernel")
  if stem in out and out[stem].ndim == 4 and out[stem].shape[2] == 3:
    kernel = out[stem][:, :, ::-1]  # BGR to RGB.
    shift = 255 * np.array(MEAN) / 255 - _KERAS_MEAN_RGB
    biases["stem_conv1",] = (biases.get(("stem_conv1",), 0)
                             + np.einsum("hwco,c->o", kernel, shift))
    out[stem] = kernel * np.array(STD)[:, None]
  for place, bias in biases.items():
    mean = ("batch_stats", *place, "bn", "mean")
    if mean in out:  # A bias before BatchNorm is a shift of its mean.
      out[mean] = out[mean] - bias
  for key in out:
    if key[-1] == "var":
      out[key] = out[key] + _EPSILON_CHANGE
  return {key: value.astype(np.float32) for key, value in out.items()}


def _place(layer: str) -> tuple[str, ...] | None:
  """Keras layer name to our module path below the backbone."""
  if layer in ("conv1", "bn_conv1"):
    return ("stem_conv1",)
  match = re.fullmatch(r"(?:res|bn)([2-5])([a-z])_branch(2a|2b|2c|1)", layer)
  if not match:
    return None
  stage, block, branch = match.groups()
  return (f"layer{int(stage) - 1}_{ord(block) - ord('a')}",
          _BRANCHES[branch])


def _read(path: str) -> dict[str, np.ndarray]:
  if not pathlib.Path(path).is_file():
    raise CheckpointError(f"config.model.pretrained={path}: no such file")
  try:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
      raise ValueError("a single array")
    with archive:
      return dict(archive)
  except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile,
          zlib.error) as error:
    raise CheckpointError(f"config.model.pretrained={path}: not a readable "
                          f".npz of arrays ({error})") from error
