"""Numbers of a config that cannot work are refused before any work is done.

What depends on more than one field, on the devices or on the dataset is the
business of the module that uses it.
"""

import math

from psp_jax.errors import ConfigError

_LOWEST_AND_HIGHEST = {  # Both included.
    "seed": (0, 2**32 - 1),  # As Grain takes it.
    "num_train_steps": (0, math.inf),
    "batch_per_device": (0, math.inf),
    "accumulation_steps": (1, math.inf),
    "data.crop_width": (1, math.inf),
    "model.dropout": (0, 1),
    "model.aux_loss_weight": (0, math.inf),
    "model.head_channels": (1, math.inf),
    "model.aux_channels": (1, math.inf),
    "optimizer.base_lr": (0, math.inf),
    "optimizer.end_lr": (0, math.inf),
    "optimizer.poly_power": (0, math.inf),
    "optimizer.momentum": (0, 1),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.head_lr_multiplier": (0, math.inf),
    "eval.window_size": (1, math.inf),
    "eval.window_batch": (1, math.inf),
    "eval.base_size": (0, math.inf),
    "eval.num_images": (0, math.inf),
    "eval.step": (0, math.inf),
    "eval.contact_sheet_images": (0, math.inf),
    "validation.every_steps": (0, math.inf),
    "validation.num_images": (0, math.inf),
    "checkpoint.every_steps": (0, math.inf),
    "checkpoint.keep": (1, math.inf),
    "checkpoint.keep_every_steps": (0, math.inf),
    "log_every_steps": (0, math.inf),
    "max_skipped_steps": (0, math.inf),
    "stall_seconds": (0, math.inf),
    "peer_timeout_seconds": (1, math.inf)}
_ABOVE_0_AND_HIGHEST = {
    "model.width_multiplier": math.inf, "eval.stride_fraction": 1}


def check(config) -> None:
  """Raises ConfigError where a number is out of its range."""
  for field, (lowest, highest) in _LOWEST_AND_HIGHEST.items():
    value = _value(config, field)
    if value is not None and not (
        lowest <= value <= highest and value < math.inf):
      raise ConfigError(f"config.{field}={value!r}: must be " + (
          f"{lowest} or more" if highest == math.inf
          else f"from {lowest} to {highest}"))
  for field, highest in _ABOVE_0_AND_HIGHEST.items():
    value = _value(config, field)
    if not (0 < value <= highest and value < math.inf):
      raise ConfigError(f"config.{field}={value!r}: must be above 0" + (
          "" if highest == math.inf else f" and at most {highest}"))
  scales = config.eval.scales
  if not scales or not all(isinstance(scale, (int, float))
                           and 0 < scale < math.inf for scale in scales):
    raise ConfigError(f"config.eval.scales={scales!r}: must be factors above "
                      "0, such as (0.75, 1.0, 1.25)")


def _value(config, field: str):
  for name in field.split("."):
    config = config[name]
  return config
