"""The config that a run's folder carries: --config=saved_config.py:WORKDIR.

`main` uses it where --workdir names a run and --config is left out.
"""

import json
import pathlib

import ml_collections

from psp_jax import default_config
from psp_jax.errors import ConfigError


def get_config(workdir="") -> ml_collections.ConfigDict:
  """WORKDIR/config.json over the defaults.

  Raises:
    ConfigError: the file is absent, unreadable, or has fields of another
      version.
  """
  path = pathlib.Path(workdir) / "config.json"
  try:
    saved = json.loads(path.read_text())
  except FileNotFoundError:
    raise ConfigError(f"{path}: no such file; name a --config, or the "
                      "--workdir of a run") from None
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: not readable JSON ({error})") from error
  config = default_config.get_config().lock()  # No new fields.
  try:
    config.update(_tuples(saved))
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise ConfigError(f"{path}: not a config of this version of psp_jax "
                      f"({str(error).splitlines()[0]})") from error
  return config


def _tuples(value):
  """JSON has lists for our tuples."""
  if isinstance(value, dict):
    return {name: _tuples(item) for name, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
