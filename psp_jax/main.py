"""python -m psp_jax.main --config=configs/NAME.py [--workdir=DIR] [--mode=...]

Trains (and resumes), or evaluates. Exit code 2 means that something must be
mended first: one message says what.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from psp_jax.errors import UserError  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="A file of configs/; --config.field=value overrides")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Checkpoints, logs and scores; default runs/NAME")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and score, or score only")


def main(argv) -> None:
  del argv
  # Late, so that --help and mistakes in flags answer at once.
  from psp_jax import train

  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Orbax tells a lot at INFO.
  config = _CONFIG.value
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  workdir = pathlib.Path(_WORKDIR.value or
                         pathlib.Path("runs") / pathlib.Path(name).stem)
  run = {"train": train.train, "eval": train.evaluate_checkpoint}[_MODE.value]
  run(config, workdir.absolute())


def _cli() -> None:
  try:
    app.run(main, flags_parser=_parse)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def _parse(argv):
  """Flag parsing whose mistakes are one line each."""
  try:
    argv = flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise UserError("name a config: --config=configs/scenes.py")
    return argv
  except (AttributeError, KeyError, TypeError, ValueError, OSError,
          flags.Error) as error:
    message = str(error).strip("'\"")
    raise UserError(message) from error


if __name__ == "__main__":
  _cli()
