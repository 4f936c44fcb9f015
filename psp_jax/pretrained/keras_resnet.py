"""Keras's ImageNet ResNets, by the names of either generation of Keras.

Keras feeds BGR minus a mean and has another BatchNorm epsilon; we feed RGB
normalised by mean and std, with 1e-5. The conversion is exact: the first
kernel absorbs the input's change, the variances absorb the epsilon's.
"""

import re

import numpy as np

from psp_jax.data.normalize import MEAN, STD

# What Caffe and Keras subtract.
_BGR_NETS_MEAN_RGB = np.array([123.68, 116.779, 103.939])
_EPSILON = 1e-5
_BRANCHES = {"2a": "conv1", "2b": "conv2", "2c": "conv3", "1": "downsample"}
_NEW_BRANCHES = {"0": "downsample", "1": "conv1", "2": "conv2", "3": "conv3"}
_CLASSIFIERS = ("fc1000", "predictions", "probs")
_BN_FIELDS = {"gamma": ("params", "scale"), "beta": ("params", "bias"),
              "moving_mean": ("batch_stats", "mean"),
              "moving_variance": ("batch_stats", "var")}


def is_keras(names) -> bool:
  return any(_place(name.split("/")[0]) for name in names)


def convert(tensors: dict[str, np.ndarray]) -> dict[tuple, np.ndarray]:
  """Keras tensors to (collection, layer, ..., field) -> float32 array.

  Those of no place in a ResNet keep their names, ("params", name).
  """
  out: dict[tuple[str, ...], np.ndarray] = {}
  biases, epsilons = {}, {}
  for name, value in tensors.items():
    value = np.asarray(value, np.float64)
    layer, _, field = name.partition("/")
    if layer in _CLASSIFIERS:
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
      # keras.applications since 2.2.3 names layers anew, with this epsilon.
      epsilons[place] = 1.001e-5 if layer.endswith("_bn") else 1e-3
    else:
      out["params", name] = value

  for place, bias in biases.items():
    mean = ("batch_stats", *place, "bn", "mean")
    if mean in out:  # A bias before BatchNorm is a shift of its mean.
      out[mean] = out[mean] - bias
  fold_bgr_input(out)
  for key in out:
    if key[-1] == "var":
      out[key] = out[key] + (epsilons[key[1:-2]] - _EPSILON)
  return {key: value.astype(np.float32) for key, value in out.items()}


def fold_bgr_input(arrays: dict[tuple, np.ndarray], *prefix: str) -> None:
  """Makes a stem that takes BGR minus a mean take our RGB, in place.

  Exact but for the border, where our zero padding is 0.005 grey levels away
  from theirs.
  """
  stem = ("params", *prefix, "stem_conv1", "conv", "kernel")
  mean = ("batch_stats", *prefix, "stem_conv1", "bn", "mean")
  if stem not in arrays or arrays[stem].shape[2:3] != (3,):
    return  # Reported as missing or misshapen.
  kernel = arrays[stem][:, :, ::-1].astype(np.float64)
  shift = np.einsum("hwco,c->o", kernel, np.array(MEAN) - _BGR_NETS_MEAN_RGB)
  arrays[stem] = (kernel * np.array(STD)[:, None]).astype(arrays[stem].dtype)
  if mean in arrays and arrays[mean].shape == shift.shape:
    arrays[mean] = (arrays[mean] - shift).astype(arrays[mean].dtype)


def _place(layer: str) -> tuple[str, ...] | None:
  """Keras layer name to our module path below the backbone."""
  if layer in ("conv1", "bn_conv1", "conv1_conv", "conv1_bn"):
    return ("stem_conv1",)
  if match := re.fullmatch(r"(?:res|bn)([2-5])([a-z])_branch(2a|2b|2c|1)",
                           layer):
    stage, block, branch = match.groups()
    return (f"layer{int(stage) - 1}_{ord(block) - ord('a')}",
            _BRANCHES[branch])
  if match := re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(?:conv|bn)",
                           layer):
    stage, block, branch = match.groups()
    return (f"layer{int(stage) - 1}_{int(block) - 1}", _NEW_BRANCHES[branch])
  return None
