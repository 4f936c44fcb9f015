"""Errors that a user can mend: `main` prints them as one line, exit code 2.

Everything else that escapes is a bug of ours and keeps its traceback.
"""

import re


class UserError(Exception):
  """Base of all errors whose message names the thing and the remedy."""


class ConfigError(UserError):
  """A config field or flag that cannot work."""


class DataError(UserError):
  """A dataset, image or mask that cannot be used."""


class CheckpointError(UserError):
  """A checkpoint or weights file that does not fit the model."""


class NonFiniteError(UserError):
  """Training produced NaN or Inf; no checkpoint holds it."""


class StorageError(UserError):
  """A folder that cannot be written, or that another run is using."""


class ExportError(UserError):
  """A network that cannot be written for another runtime."""


class Stopped(Exception):
  """The run was told to stop, by the signal of this name, and has saved."""


def check_choice(field: str, value, choices) -> None:
  """Raises ConfigError where config.`field` is none of `choices`."""
  if value not in choices:
    raise ConfigError(f"config.{field}={value!r}: choose one of "
                      f"{', '.join(map(repr, choices))}")


def check_folder(flag: str, path) -> None:
  """Raises ConfigError where a folder is wanted and `path` is a bucket's.

  pathlib would take "gs://bucket" for a folder "gs:" of the current one.
  """
  if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
    bucket = re.split("[/:]+", str(path))[1] or "BUCKET"
    raise ConfigError(
        f"{flag}={path}: not a folder of this machine. Use a disk, and copy "
        "from and to the bucket (gcloud storage rsync --recursive FROM TO); "
        "or mount the bucket, if it has a hierarchical namespace, and name a "
        f"folder in it (gcsfuse {bucket} ~/bucket): docs/cloud_tpu.md")
