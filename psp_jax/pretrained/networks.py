"""Published arrays to our parameter tree and back.

Every array is accounted for: what is missing, left over or misshapen is listed
under the name it has, or should have, in the file.
"""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from psp_jax import default_config
from psp_jax.errors import CheckpointError, ConfigError
from psp_jax.models import create_model
from psp_jax.pretrained import keras_resnet
from psp_jax.pretrained.names import BACKBONES, DROPPABLE, source_name

_LEFT_OUT = {
    # Stages that SMP's network has and does not run; ImageNet classifiers.
    "smp": ("encoder.layer3.", "encoder.layer4.", "classification_head."),
    **dict.fromkeys(BACKBONES, ("fc.",))}
_SHOWN = 20


def config_of(fields: dict):
  """The default config with these fields of `config.model`."""
  config = default_config.get_config()
  config.model.dtype = "float32"
  config.model.update_from_flattened_dict(fields)
  return config


def to_variables(tensors: dict[str, np.ndarray], family: str, fields: dict):
  """A file's arrays as {"params", "batch_stats"} of float32 numpy arrays.

  Args:
    tensors: {name: array}, kernels OIHW.
    family: of `names.FAMILIES`.
    fields: of `config.model`, as `architecture.recognise` tells them.

  Raises:
    CheckpointError: the file's arrays are not exactly the network's.
  """
  config = config_of(fields)
  bins = config.model.pyramid.bins
  wanted = _shapes(create_model(config))
  if family in BACKBONES:
    wanted = {path: shape for path, shape in wanted.items()
              if path[1] == "backbone"}
  names = {path: source_name(family, path, bins) for path in wanted}
  problems = [f"missing: {name} {_torch_shape(path, wanted[path])}"
              for path, name in names.items() if name not in tensors]
  known = set(names.values())
  left_out = _LEFT_OUT.get(family, ())
  problems += [f"left over: {name} {list(value.shape)}"
               for name, value in tensors.items() if name not in known
               and not DROPPABLE.fullmatch(name)
               and not name.startswith(left_out)]
  arrays = {}
  for path, name in names.items():
    if name not in tensors:
      continue
    value = tensors[name]
    if path[-1] == "kernel" and value.ndim == 4:
      value = value.transpose(2, 3, 1, 0)
    elif value.shape == (1, *wanted[path], 1, 1):  # As Caffe keeps vectors.
      value = value.reshape(-1)
    if value.shape != wanted[path]:
      problems.append(f"shape of {name}: {list(tensors[name].shape)}, expected "
                      f"{_torch_shape(path, wanted[path])}")
    arrays[path] = np.asarray(value, np.float32)
  if problems:
    more = len(problems) - _SHOWN
    raise CheckpointError(
        f"read as {family}, ResNet-{config.model.depth}, stem "
        f"{config.model.stem}: {len(problems)} arrays do not fit:\n  "
        + "\n  ".join(problems[:_SHOWN])
        + (f"\n  ... and {more} more" if more > 0 else ""))

  fuse = ("params", "pyramid", "kernel")
  if family == "smp":  # The features come last there.
    arrays[fuse] = np.roll(arrays[fuse], arrays[fuse].shape[2] // 2, axis=2)
  if family == "caffe":
    x, pyramid = np.split(arrays[fuse], 2, axis=2)
    branches = np.split(pyramid, len(bins), axis=2)  # 6, 3, 2, 1 there.
    arrays[fuse] = np.concatenate([x, *branches[::-1]], axis=2)
    keras_resnet.fold_bgr_input(arrays, "backbone")
  return flax.traverse_util.unflatten_dict(arrays)


def with_new_classifiers(variables, num_classes: int, seed: int = 0):
  """`variables` whose classifiers are drawn anew, for other classes.

  As torch.nn.Conv2d starts: uniform within 1 / sqrt(fan in).
  """
  rng = np.random.default_rng(seed)
  params = dict(variables["params"])
  for name in ("classifier", "aux_classifier"):
    if name in params:
      kernel = params[name]["conv"]["kernel"]
      bound = np.prod(kernel.shape[:3])**-0.5
      params[name] = {"conv": {
          "kernel": rng.uniform(-bound, bound, (*kernel.shape[:3], num_classes))
          .astype(np.float32),
          "bias": rng.uniform(-bound, bound, num_classes).astype(np.float32)}}
  return {**variables, "params": params}


def to_semseg(variables, config, step: int = 0) -> dict[str, np.ndarray]:
  """`variables` under the names of hszhao/semseg's PSPNet, kernels OIHW.

  Raises:
    ConfigError: the network is one that semseg's code cannot be.
  """
  c = config.model
  same = {"stride_in": "3x3", "output_stride": 8, "contract_dilation": False,
          "align_corners": True, "num_stages": 4, "avg_down": False,
          "classifier_size": 1, "pyramid.pool": "average",
          "pyramid.reduce": True, "pyramid.fuse_size": 3,
          "pyramid.bin1_norm": True}
  found = {name: c.pyramid[name[8:]] if name.startswith("pyramid.") else c[name]
           for name in same}
  problems = [f"config.model.{name}={found[name]} (semseg: {value})"
              for name, value in same.items() if found[name] != value]
  if c.stem == "32-32-64":
    problems.append("config.model.stem=32-32-64 (semseg: 64-64-128 or 7x7)")
  if problems:
    raise ConfigError(
        "semseg's code would compute something else from these weights, its "
        "PSPNet has no such options:\n  " + "\n  ".join(problems))
  out = {}
  flat = flax.traverse_util.flatten_dict(
      {name: variables[name] for name in ("params", "batch_stats")})
  for path, value in flat.items():
    name = source_name("semseg", path, tuple(c.pyramid.bins))
    value = np.asarray(value, np.float32)
    if value.ndim == 4:
      value = value.transpose(3, 2, 0, 1)
    out[name] = np.ascontiguousarray(value)
    if path[-1] == "var":  # PyTorch counts the batches each BatchNorm saw.
      out[name.replace("running_var", "num_batches_tracked")] = np.array(
          step, np.int64)
  return out


def _shapes(model) -> dict[tuple, tuple[int, ...]]:
  images = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
  tree = jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, True), images)
  return {path: leaf.shape
          for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def _torch_shape(path, shape) -> list[int]:
  if path[-1] == "kernel":
    return [shape[3], shape[2], *shape[:2]]
  return list(shape)
