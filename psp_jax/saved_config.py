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


# What changes no bit, or no more than another number of devices, of the
# weights that the steps to come lead to. Names of groups end in a point.
FREE = (
    "published", "batch_per_device", "model.pretrained", "model.layout",
    "model.remat", "data.manual_dir", "data.data_dir", "data.workers",
    "data.num_threads", "data.cache_gib", "mesh.", "eval.", "validation.",
    "checkpoint.", "log_every_steps", "profile", "max_skipped_steps",
    "stall_seconds",
    "peer_timeout_seconds")


def check_unchanged(config, workdir, allowed=()) -> None:
  """Whether a run goes on as it was.

  Args:
    config: of now.
    workdir: with the config.json of then.
    allowed: names of fields that may differ besides `FREE`; "all": any.

  Raises:
    ConfigError: another field differs; all that do are shown.
  """
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    return
  then, now = (flat(c.to_dict()) for c in (get_config(workdir), config))
  free = (*FREE, *allowed)
  changed = [name for name in now if then.get(name) != now[name]
             and not name.startswith(tuple(f for f in free if f[-1:] == "."))
             and name not in free]
  if changed and "all" not in allowed:
    shown = "".join(f"\n  config.{name}: {then.get(name)!r} then, "
                    f"{now[name]!r} now" for name in changed)
    raise ConfigError(
        f"{workdir}: this run was started with another config:{shown}\nUse "
        "another --workdir, or go on with what is new by "
        f"--allow_config_change={','.join(changed)}")


def flat(config: dict, prefix: str = "") -> dict:
  """{"model": {"depth": 50}} -> {"model.depth": 50}."""
  fields = {}
  for name, value in config.items():
    if isinstance(value, dict):
      fields |= flat(value, f"{prefix}{name}.")
    else:
      fields[prefix + name] = value
  return fields
