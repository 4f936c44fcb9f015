"""Published weights into our parameter trees."""

import pathlib
from typing import Any

import flax.traverse_util
import numpy as np

from psp_jax import runs
from psp_jax.errors import CheckpointError, ConfigError
from psp_jax.pretrained import architecture, files, keras_resnet, networks
from psp_jax.pretrained.names import BACKBONES

__all__ = ["check", "load", "load_backbone"]

# Of a file in our own names: params/backbone/stem_conv1/conv/kernel, ...
_OWN = ("params/backbone/", "batch_stats/backbone/")


def check(config) -> None:
  """Raises CheckpointError where there is no config.model.pretrained."""
  path = config.model.pretrained
  if path and not pathlib.Path(path).exists():
    raise CheckpointError(f"config.model.pretrained={path}: no such file, or "
                          "folder of a run")


def load(path: str, variables, config):
  """`variables` with what `config.model.pretrained=path` has for them.

  A file is an ImageNet backbone (PyTorch, timm, semseg, Keras, ours). A folder
  is a run, or a converted checkpoint: everything is taken from it, except the
  classifiers where the number of classes differs.

  Raises:
    CheckpointError: it cannot be read, or fits another network.
  """
  try:
    if pathlib.Path(path).is_dir():
      return _load_run(path, variables, config)
    return load_backbone(path, variables, config)
  except (CheckpointError, ConfigError) as error:
    raise CheckpointError(f"config.model.pretrained={path}: {error}") from error


def load_backbone(path: str, variables, config):
  """`variables` with the backbone's arrays taken from a file; see `load`."""
  arrays, needs = read_backbone(path)
  has = {name: config.model[name] for name in needs}
  if has != needs:
    flags = [f"--config.model.{name}={value} (now {has[name]})"
             for name, value in needs.items() if has[name] != value]
    raise CheckpointError("the file holds a network of another make; set "
                          + ", ".join(flags))
  ours = _backbone_of(variables)
  problems = [f"missing: {'/'.join(k)} {ours[k].shape}"
              for k in ours if k not in arrays]
  problems += [f"left over: {'/'.join(k)} {arrays[k].shape}"
               for k in arrays if k not in ours]
  problems += [f"shape of {'/'.join(k)}: {arrays[k].shape} in the file, "
               f"{ours[k].shape} in the model" for k in ours
               if k in arrays and ours[k].shape != arrays[k].shape]
  if problems:
    raise CheckpointError("does not fit the backbone:\n  "
                          + "\n  ".join(problems))
  loaded = flax.traverse_util.unflatten_dict(arrays)
  return {name: {**variables[name], "backbone": loaded[name]}
          for name in ("params", "batch_stats")}


def read_backbone(path: str):
  """An ImageNet backbone's file.

  Returns:
    {(collection, layer, ..., field): float32 array}, and the fields of
    `config.model` that it needs.
  """
  tensors = files.read(path)
  if any(name.startswith(_OWN) for name in tensors):
    needs = {name.removeprefix("needs/"): tensors.pop(name).item()
             for name in list(tensors) if name.startswith("needs/")}
    return {tuple(name.replace("/backbone/", "/", 1).split("/")): value
            for name, value in tensors.items()}, needs
  if keras_resnet.is_keras(tensors):
    return keras_resnet.convert(tensors), {
        "stem": "7x7", "stride_in": "1x1", "avg_down": False}
  shapes = {name: value.shape for name, value in tensors.items()}
  try:
    family, fields = architecture.recognise(shapes)
    if family not in BACKBONES:
      raise CheckpointError(
          f"holds a whole PSPNet of {family}'s: make a run of it, python -m "
          f"psp_jax.convert {path} DIR, and name that folder instead")
    variables = networks.to_variables(tensors, family, fields)
  except CheckpointError as error:
    raise CheckpointError(f"{path}: {error}") from error
  return _backbone_of(variables), fields


def write_backbone(path: str, arrays, needs) -> None:
  """A file that `load_backbone` reads without PyTorch."""
  named: dict[str, Any] = {
      f"{key[0]}/backbone/{'/'.join(key[1:])}": value
      for key, value in arrays.items()}
  named |= {f"needs/{k}": np.array(v) for k, v in needs.items()}
  np.savez(path, **named)


def _backbone_of(variables):
  return {(name, *key): value for name in ("params", "batch_stats")
          for key, value in flax.traverse_util.flatten_dict(
              variables[name]["backbone"]).items()}


def _load_run(path, variables, config):
  theirs, state = runs.load(path)
  loaded = {"params": state.params, "batch_stats": state.batch_stats}
  if theirs.model.num_classes != config.model.num_classes:
    for name in ("classifier", "aux_classifier"):
      if name in loaded["params"] and name in variables["params"]:
        loaded["params"] = {
            **loaded["params"], name: variables["params"][name]}
  ours = flax.traverse_util.flatten_dict(variables)
  found = flax.traverse_util.flatten_dict(loaded)
  problems = [f"{'/'.join(k)}: {getattr(found.get(k), 'shape', 'absent')} in "
              f"the run, {getattr(ours.get(k), 'shape', 'absent')} in the model"
              for k in sorted(ours.keys() | found.keys())
              if getattr(ours.get(k), "shape", None)
              != getattr(found.get(k), "shape", None)]
  if problems:
    raise CheckpointError("the run's network is another one:\n  "
                          + "\n  ".join(problems[:8]))
  return loaded
