"""Compiled programs found by what they are made of, with no tracing.

JAX's persistent cache (`compilation_cache`) spares a second start the compiler,
but only once the program is traced and lowered: seconds of Python for a deep
network. Here the sources, the config and the arguments' shapes name a program
that the same command made before. Where one of these is new, but not what comes
of them, the program is found after tracing, and has its new name from then on.

Only this package's own commands switch it on: in a process that changes its
functions, as a notebook may, their files do not say what a program is.
"""

import contextlib
import functools
import hashlib
import os
import pathlib
import pickle
import platform
import shutil
import sys
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import serialize_executable

_ROOT = pathlib.Path(__file__).parent
_config: Any = jax.config  # Its flags are made at run time.
_folder: pathlib.Path | None = None  # None: nothing is kept.


def enable(folder: str | None) -> None:
  """Keeps programs in `compilation_cache.enable`'s folder.

  Buckets (gs://...) are left to JAX's own cache.
  """
  global _folder
  nowhere = folder is None or "://" in folder
  _folder = None if nowhere else pathlib.Path(str(folder))


def kept(name: str, function, config, *also):
  """`function`, of which the first call looks for its program.

  Args:
    name: of the program; what it computes from its arguments is told by
      the package's sources, `config` and `also`.
    function: under `jax.jit`.
    config: the run's.
    also: what else decides, as far as its text tells.

  Returns:
    A function for arguments of one kind; `function` itself where nothing is
    kept: by several processes, for instance, or while debugging.
  """
  if (_folder is None or jax.process_count() > 1
      or _config.jax_debug_nans or _config.jax_disable_jit):
    return function
  folder, program = _folder, None

  def call(*args):
    nonlocal program
    if program is None:
      program = _find(folder, name, function, (_text(config), *also), args)
    return program(*args)
  return call


def kept_shapes(make: Callable[[], Any], config):
  """`make()`, a tree of `jax.ShapeDtypeStruct` that takes a tracing to know.

  Args:
    make: what it gives is told by the package's sources and `config`.
    config: the run's.
  """
  if _folder is None or jax.process_count() > 1:
    return make()
  path = _path(_folder, "shapes", _sources(), _text(config))
  shapes = _read(path, lambda saved: saved)
  if shapes is None:
    shapes = make()
    _write(path, lambda: shapes)
  return shapes


def _text(config) -> str:
  return config.to_json_best_effort(sort_keys=True)


def _find(folder, name, function, decided_by, args):
  structure = jax.tree.structure(args)
  made_of = _path(
      folder, name, _sources(), *decided_by, structure,
      *((x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(args)))
  program = _read(made_of, _decoded)
  if program is not None:
    return program
  lowered = function.lower(*args)
  itself = _path(
      folder, name, structure, lowered.out_tree, lowered.as_text())
  program = _read(itself, _decoded)
  if program is None:
    program, fresh = _compile(lowered)
    if not fresh or not _write(itself, lambda: _encoded(program)):
      return program
  with contextlib.suppress(OSError):
    made_of.unlink(missing_ok=True)
    try:
      os.link(itself, made_of)
    except OSError:  # Not every file system has links.
      shutil.copyfile(itself, made_of)
  return program


def _path(folder: pathlib.Path, name: str, *parts) -> pathlib.Path:
  """The file of a program; the cache is pruned by the end of its name."""
  text = "\n".join(map(str, (*_environment(), *parts)))
  return folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()}-cache"


@functools.cache
def _sources() -> str:
  digest = hashlib.sha256()
  for path in sorted(_ROOT.rglob("*.py")):
    text = path.read_bytes()
    digest.update(f"{path.relative_to(_ROOT)} {len(text)} ".encode() + text)
  return digest.hexdigest()


def _environment():
  """What else tells one program from another: versions, devices, settings."""
  import flax
  import jaxlib
  import optax

  devices = jax.devices()
  yield from (sys.version, jax.__version__, jaxlib.__version__,
              flax.__version__, optax.__version__)
  yield from (devices, devices[0].device_kind,
              devices[0].client.platform_version)
  yield sorted(map(str, _config.values.items()))
  yield from (os.environ.get(name)
              for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS"))
  if devices[0].platform == "cpu":  # Machines that share a home may differ.
    yield platform.uname()[4:]
    with contextlib.suppress(OSError):
      yield sorted({line for line in open("/proc/cpuinfo")
                    if line.startswith(("flags", "Features", "model name"))})


def _compile(lowered) -> tuple[Any, bool]:
  """The program, and whether it may be written.

  One that JAX has read from its own cache may not: written again, a CPU's
  lacks a part of its functions, which shows when it runs.
  """
  events = []

  def listen(event, **_):
    events.append(event.rpartition("/")[2])

  jax.monitoring.register_event_listener(listen)
  try:
    program = lowered.compile()
  finally:
    jax.monitoring.unregister_event_listener(listen)
  fresh = events.count("cache_misses") == 1 and "cache_hits" not in events
  return program, fresh


def _encoded(program):
  return (*serialize_executable.serialize(program), _device_ids(program))


def _device_ids(program) -> list[int]:
  """Of the devices it runs on, in its own order.

  Raises:
    ValueError: it does not tell the order.
  """
  sharding = jax.tree.leaves(program.output_shardings)[0]
  if isinstance(sharding, jax.sharding.NamedSharding):
    return [device.id for device in sharding.mesh.devices.flat]
  (device,) = sharding.device_set
  return [device.id]


def _decoded(saved):
  binary, takes, gives, ids = saved
  by_id = {device.id: device for device in jax.devices()}
  return serialize_executable.deserialize_and_load(
      binary, takes, gives, execution_devices=[by_id[i] for i in ids])


def _read(path: pathlib.Path, decode):
  """What `decode` makes of what was written there; None: nothing can be."""
  try:
    with path.open("rb") as file:
      found = decode(pickle.load(file))
    with contextlib.suppress(OSError):  # It may be someone else's.
      os.utime(path)  # What was used longest ago is pruned first.
    return found
  except OSError:
    return None
  except Exception:  # Unpickling half a file raises nearly anything.
    with contextlib.suppress(OSError):
      path.unlink()
    return None


def _write(path: pathlib.Path, encode) -> bool:
  """Whether it could be: not all devices' programs can, and disks are full."""
  part = path.with_name(f"{os.getpid()}-{path.name}")  # Pruned if left.
  try:
    saved = encode()
    with part.open("wb") as file:
      pickle.dump(saved, file)
    part.replace(path)
  except (OSError, ValueError, NotImplementedError, pickle.PicklingError,
          jax.errors.JaxRuntimeError):
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
    return False
  return True
