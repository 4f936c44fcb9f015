"""python -m psp_jax.main --config=configs/NAME.py [--workdir=DIR] [--mode=...]

Trains (and resumes), or evaluates. Without --config, the one that the workdir
carries. Exit code 2 means that something must be mended first: one message
says what. 75: told to stop (SIGTERM, Ctrl-C), and saved; 70: it hung.

  python -m psp_jax.main --config=configs/scenes.py
  python -m psp_jax.main --config=configs/camvid.py:cpu --workdir=runs/mine \\
      --config.data.manual_dir=CamVid --config.num_train_steps=500
  python -m psp_jax.main --mode=eval --workdir=runs/mine --config.eval.flip=True

--config.FIELD=VALUE changes a field of the config; psp_jax/default_config.py
has them all, with what each is for. Tuples: --config.eval.scales='(0.75,1.0)'.
"""

import gc
import os
import pathlib
import re
import sys
import textwrap
import time
import traceback

_HELP, _INDENT = ("-h", "-help", "--help", "--helpshort"), 24
_BEGAN = time.monotonic()  # A few hundredths after the process.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # Or it tells that it is.

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from psp_jax import processes, stopping  # noqa: E402
from psp_jax.errors import (  # noqa: E402
  CheckpointError,
  Stopped,
  StorageError,
  UserError,
  check_folder,
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="<FILE>: Of configs/; with its argument, where it "
    "takes one, FILE:ARGUMENT")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "<DIR>: Checkpoints, logs and scores; default runs/NAME, "
    "or runs/NAME_ARGUMENT")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "Train and score, or score only")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "auto", "<DIR>: Folder of compiled programs, for the "
    "next start; auto: that of JAX_COMPILATION_CACHE_DIR, or psp_jax/compiled "
    "in XDG_CACHE_HOME or ~/.cache; off: none")
_ALLOWED = flags.DEFINE_list(
    "allow_config_change", [], "<FIELD,...>: What may differ from config.json "
    "in a run that goes on, such as num_train_steps; all: any")


def main(argv) -> None:
  del argv
  with stopping.Stop().listen() as stop:
    _main(stop)


def _main(stop) -> None:
  stop.nothing_to_save()
  # Imports and tracing make hundreds of thousands of objects that stay; by
  # default the collector looks at them all again and again.
  gc.set_threshold(50_000)
  # Late, so that --help and mistakes in flags answer at once.
  from psp_jax import (
    compilation_cache,
    console,
    kept_programs,
    progress,
    train,
  )

  progress.log_above()
  path, argument = _config_file()
  name = f"{path.stem}_{argument}" if argument else path.stem
  workdir = pathlib.Path(_WORKDIR.value or pathlib.Path("runs") / name)
  kept_programs.enable(compilation_cache.enable(_CACHE.value))
  processes.initialize(stop, _CONFIG.value.peer_timeout_seconds)
  if _MODE.value == "eval":
    train.evaluate_checkpoint(_CONFIG.value, workdir.absolute())
    return
  start = console.Start(_BEGAN)
  start.done("imports")
  train.train(_CONFIG.value, workdir.absolute(), start, stop, _ALLOWED.value)


def _config_file() -> tuple[pathlib.Path, str]:
  """FILE and ARGUMENT of --config=FILE:ARGUMENT."""
  name = config_flags.get_config_filename(flags.FLAGS["config"])
  file, _, argument = name.partition(".py:")
  return pathlib.Path(file.removesuffix(".py") + ".py"), argument


def _with_saved_config(argv):
  """A workdir's own config where none is named."""
  workdirs = [a.split("=", 1)[1] for a in argv
              if re.match("--?workdir=", a)]
  if any(re.match("--?config(=|$)", a) for a in argv) or not workdirs:
    return argv
  if not (pathlib.Path(workdirs[-1]) / "config.json").is_file():
    return argv
  saved = pathlib.Path(__file__).with_name("saved_config.py")
  return [argv[0], f"--config={saved}:{workdirs[-1]}", *argv[1:]]


def _mistake(error: Exception, argv) -> UserError | None:
  """What is wrong with the flags, or in the config file; None: a bug of ours.
  """
  lines = str(error).strip().splitlines() or [type(error).__name__]
  # The line of that file, from whichever way the error came to us.
  told = "".join(traceback.format_exception(error))
  files = [a.partition("=")[2].split(".py:")[0].removesuffix(".py")
           for a in argv if re.match("--?config=", a)]
  places = [f"{file}, line {line}: " for file, line in re.findall(
      r'File "(.+)", line (\d+)', told)
            if files and os.path.abspath(file.removesuffix(".py"))
            == os.path.abspath(files[-1])]
  place = places[-1] if places else ""
  if isinstance(error, (TypeError, ValueError, OSError, flags.Error)):
    last = re.sub(r"^(\w+Error): ", "", lines[-1].strip())
    named = files and files[-1] in last
    return UserError(last if named else place + last)
  if "get_config" in lines[0] and files and not place:
    return UserError(f"--config={files[-1]}.py: has no function get_config")
  if isinstance(error, (AttributeError, KeyError)) and (
      not place or "does not exist" in told):
    # ml_collections quotes its own quoted message; take the names from it.
    field = re.search(r"\w+", lines[0].replace("Key", "", 1))
    near = re.search(r'Did you mean "([\w.]+)"', str(error))
    hint = f"did you mean {near[1]}?" if near else "default_config.py has all"
    if field:
      return UserError(f"{place}config has no field {field[0]!r}; {hint}")
  if place:
    return UserError(f"{place}{type(error).__name__}: {lines[-1].strip()}")
  return None


def _parse(argv):
  """Flag parsing whose mistakes are one line each."""
  try:
    argv = flags.FLAGS(_with_saved_config(argv))
  except UserError:
    raise
  except Exception as error:
    mistake = _mistake(error, argv)
    if mistake is None:
      raise
    raise mistake from error
  check_folder("--workdir", _WORKDIR.value or "")
  if _CONFIG.value is None:
    raise UserError("name a config: --config=configs/scenes.py")
  if not _config_file()[0].is_file():
    raise UserError(f"--config={_config_file()[0]}: no such file")
  for field in ("manual_dir", "data_dir"):
    check_folder(f"--config.data.{field}", _CONFIG.value.data[field])
  if argv[1:]:
    raise UserError(f"{argv[1]!r}: not a flag; every option starts with --")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)  # Orbax and JAX tell a lot at INFO.
  return argv


def _help() -> str:
  """The program's docstring and its own flags; absl's are in --helpfull."""
  lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "options:"]
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    # As absl says what an enumeration's values are: "<train|eval>: Train...".
    kind, _, text = flag.help.rpartition(">: ")
    name = f"  --{'[no]' * flag.boolean}{flag.name}{kind.replace('<', '=')}"
    if flag.default not in (None, "", False, []):
      text += f" (default: {str(flag.default_as_str).strip(chr(39))})"
    wrapped = textwrap.wrap(text, 78 - _INDENT)
    if len(name) > _INDENT - 2:
      lines.append(name)
      name = ""
    lines += [f"{start:<{_INDENT}}{line}" for start, line in zip(
        [name, *[""] * len(wrapped)], wrapped)]
  return "\n".join(lines)


def run(command) -> None:
  """Runs `command(argv)` with the flags; a user's mistake is exit code 2."""
  if any(argument in _HELP for argument in sys.argv[1:]):
    print(_help())
    return
  try:
    app.run(command, flags_parser=_parse)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    if (isinstance(error, (CheckpointError, StorageError))
        or processes.are_several()):
      _leave(2)
    sys.exit(2)
  except Stopped as stopped:
    print(f"stopped: {stopped}; the same command goes on", file=sys.stderr)
    processes.part()
    _leave(stopping.EXIT_CODE)
  except Exception as error:
    if not processes.are_several():
      raise
    # Going on to JAX's farewell, it would wait for those that are gone.
    traceback.print_exc()
    print(f"error: {type(error).__name__}: {error}".splitlines()[0],
          file=sys.stderr)
    _leave(1)


def _leave(code) -> None:
  """At once: threads may wait for a disk, for processes that are gone, or
  for TensorFlow's import."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


if __name__ == "__main__":
  run(main)
