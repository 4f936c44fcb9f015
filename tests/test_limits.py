"""What is refused is in test_mistakes.py; here, what is not."""

import importlib.util
import math
import pathlib

import pytest

from psp_jax import default_config, limits
from psp_jax.errors import ConfigError

CONFIGS = sorted((pathlib.Path(__file__).parent.parent / "configs").glob(
    "*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_our_own_configs_pass(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  argument = ["table1_b1_max"] if path.stem == "ablations" else []
  limits.check(module.get_config(*argument))


@pytest.mark.parametrize("field, at, beyond", [
    ("num_train_steps", 0, -1), ("seed", 2**32 - 1, 2**32),
    ("model.dropout", 1.0, 1.001), ("optimizer.momentum", 0.0, -1e-9),
    ("optimizer.base_lr", 1e18, math.inf), ("eval.stride_fraction", 1.0, 1.01),
    ("eval.window_size", None, 0), ("eval.scales", (0.01,), (1.0, math.nan)),
    ("model.width_multiplier", 1e-3, 0.0)])
def test_limits_themselves_pass_and_what_is_beyond_does_not(field, at, beyond):
  config = default_config.get_config()
  config.update_from_flattened_dict({field: at})
  limits.check(config)
  config.update_from_flattened_dict({field: beyond})
  with pytest.raises(ConfigError) as refused:
    limits.check(config)
  assert str(refused.value).startswith(f"config.{field}={beyond!r}: must be ")
