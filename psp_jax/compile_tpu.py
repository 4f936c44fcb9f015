"""python -m psp_jax.compile_tpu --config=configs/NAME.py --topology=v5e:2x4

Compiles the train step (or, with --mode=eval, the evaluation's forward pass)
for TPUs that are not there, by libtpu's own compiler, and reports what it
says: whether it fits the memory, the work, estimated cycles by layer and kind,
what the chips send each other, and what layouts waste. It takes minutes for a
full-size network. Exit code 0 if it fits, 1 if it does not, 2 for a mistake.

  python -m psp_jax.compile_tpu --config=configs/ade20k.py --topology=v5e:2x4 \\
      --config.global_batch_size=32 --search
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import re
import sys
import time

from absl import flags

from psp_jax import (
  hlo_report,
  hlo_text,
  limits,
  main,
  progress,
  tpu_chips,
  tpu_report,
  tpu_search,
)
from psp_jax.errors import ConfigError, UserError

_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "<NAME>: Chips and their shape: v5e:2x4, v4:2x2x1, "
    "v5litepod-8")
_JSON = flags.DEFINE_string("json", None, "<FILE>: Write the report there; "
                            "- for the standard output, instead of the text")
_HLO = flags.DEFINE_string("hlo", None, "<FILE>: Write the optimised HLO there")
_TOP = flags.DEFINE_integer("top", 15, "<N>: Instructions to list", 0)
_SEARCH = flags.DEFINE_bool(
    "search", False, "Find the largest batch that fits: some more compilations"
    )
_IMAGE = flags.DEFINE_string(
    "image_size", None, "<HxW>: With --mode=eval, of images taken whole, such "
    "as 1024x2048")
flags.declare_key_flag("config")
flags.declare_key_flag("mode")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_INSTALL = "pip install -e '.[tpu]'"


class OutOfMemory(Exception):
  """The program needs more memory than a chip has.

  Attributes:
    needed: bytes; None where the compiler does not say.
    limit: bytes that it may have.
  """

  def __init__(self, message: str):
    super().__init__(message)
    found = (
        re.search(r"\(([\d.]+)([KMGT]?)i?B?\) exceeds available \w+ "
                  r"\(([\d.]+)([KMGT]?)", message)
        or re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)", message))
    self.needed = self.limit = None
    if found:
      self.needed = int(float(found[1]) * _UNITS[found[2]])
      self.limit = int(float(found[3]) * _UNITS[found[4]])


def set_environment(accelerator_type: str) -> None:
  """What libtpu and jax need to compile without a TPU; before jax runs."""
  os.environ.update({
      "JAX_PLATFORMS": "cpu",  # Nothing runs on chips that may be here.
      "TPU_SKIP_MDS_QUERY": "1",  # No metadata server to ask.
      "TPU_WORKER_HOSTNAMES": "localhost",
      # Neither takes the machine's one lock file nor minds a stale one.
      "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
      "TPU_ACCELERATOR_TYPE": accelerator_type})
  os.environ.setdefault("TPU_LOG_DIR", "disabled")


def topology_devices(topology: tpu_chips.Topology) -> list:
  """Devices to compile for.

  Raises:
    UserError: libtpu is missing, or does not know the topology.
  """
  if not (importlib.util.find_spec("libtpu")
          or os.environ.get("TPU_LIBRARY_PATH")):
    raise UserError("libtpu, the TPU compiler, is not installed; it needs no "
                    f"TPU: {_INSTALL}")
  set_environment(topology.accelerator_type)
  import jax
  from jax.experimental import topologies
  try:
    return topologies.get_topology_desc(
        topology.name, "tpu", **topology.options).devices
  except jax.errors.JaxRuntimeError as error:
    raise ConfigError(f"--topology={topology.name}: libtpu refuses it "
                      f"({str(error).splitlines()[0]})") from error
  except RuntimeError as error:  # Of another version than jax, for example.
    raise UserError(f"jax finds no TPU compiler ({error}); install the "
                    f"matching libtpu: {_INSTALL}") from error


def settle(config):
  """A copy of `config` as a run on TPUs would have it.

  Raises:
    ConfigError: a number is out of its range, or that of the classes is the
      dataset's own secret.
  """
  from psp_jax.models import is_packed

  limits.check(config)
  config = config.copy_and_resolve_references()
  if config.model.dtype == "auto":
    config.model.dtype = "bfloat16"  # "auto" would ask this machine.
  if config.model.layout == "auto":
    config.model.layout = "packed" if is_packed(config, "tpu") else "plain"
  if not config.model.num_classes:
    if config.data.name == "folder":
      raise ConfigError("config.model.num_classes=0: as many as the folder "
                        "has, which is not read here; set "
                        "--config.model.num_classes=N")
    from psp_jax.data import datasets
    config.data.manual_dir = ""  # Not read either.
    config.model.num_classes = datasets.taxonomy(config).num_classes
  return config


def lower(config, devices, mode: str, image_size=None):
  """The program of `mode` before it is compiled, and its images a chip.

  Args:
    config: a settled one.
    devices: of the topology.
    mode: "train" or "eval".
    image_size: (height, width) of images that "eval" takes whole.

  Raises:
    ConfigError: what training, too, would refuse.
  """
  import jax
  import numpy as np

  from psp_jax import inference, losses, sharding, sliding_window, train_step
  from psp_jax.data.augment import crop_shape
  from psp_jax.models import create_model

  model = create_model(config)

  def on(tree, placement):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=placement), tree)

  state = train_step.state_shapes(model, config)
  if mode == "train":
    mesh = sharding.create_mesh(config.mesh.data, config.mesh.space, devices)
    sharding.settle_batch(config, mesh)
    losses.check_normalizer(config)
    height, width = crop_shape(config)
    shape = (config.global_batch_size, sharding.padded(height, mesh), width)
    batch = {"image": jax.ShapeDtypeStruct((*shape, 3), np.uint8),
             "label": jax.ShapeDtypeStruct(shape, np.uint8)}
    return train_step.compiled_step(model, config, mesh).lower(
        on(state, sharding.replicated(mesh)),
        on(batch, sharding.batch_sharding(mesh)))

  protocol = sliding_window.Protocol.from_config(config)
  if protocol.window is None and not image_size:
    raise ConfigError(
        "config.eval.window='whole': each image is a program of its own size; "
        "name one, --image_size=HxW, or set --config.eval.window=sliding and "
        "--config.eval.window_size=N")
  side = protocol.window or 0
  height, width = image_size or (side, side)
  # A process scores its own images on its own chips.
  local = [d for d in devices if d.process_index == devices[0].process_index]
  mesh = inference.local_mesh(config, local, len(devices))
  windows = jax.ShapeDtypeStruct(
      (config.eval.window_batch * mesh.shape["data"],
       sharding.padded(height, mesh), width, 3),
      np.float32, sharding=sharding.batch_sharding(mesh))
  variables = on({"params": state.params, "batch_stats": state.batch_stats},
                 sharding.replicated(mesh))
  return inference.compiled_forward(model, protocol, mesh, height).lower(
      variables, windows)


def compile_lowered(lowered):
  """Compiled.

  Raises:
    OutOfMemory: by the compiler's own account.
  """
  import jax
  try:
    with _no_cache():
      return lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" in str(error) and "hbm" in str(error).lower():
      raise OutOfMemory(str(error)) from error
    raise


@contextlib.contextmanager
def _no_cache():
  """Without jax's persistent cache, which such programs cannot be read from.
  """
  import jax
  from jax.experimental.compilation_cache import compilation_cache
  name, before = "jax_enable_compilation_cache", (
      jax.config.jax_enable_compilation_cache)  # type: ignore[attr-defined]
  jax.config.update(name, False)
  compilation_cache.reset_cache()  # Or it goes by its first answer.
  try:
    yield
  finally:
    jax.config.update(name, before)
    compilation_cache.reset_cache()


def measure(lowered, chip: tpu_chips.Chip, top: int = 15) -> dict:
  """Compiles, and says what the compiler says of a chip's share.

  Args:
    lowered: `lower`'s.
    chip: what it is for.
    top: instructions to list.

  Returns:
    "memory" always, with "fits"; if it does, "flops", "bytes_accessed", what
    `hlo_report.analyse` gives, and "hlo", the text.
  """
  began = time.monotonic()
  try:
    compiled = compile_lowered(lowered)
  except OutOfMemory as error:
    return {"compile_seconds": round(time.monotonic() - began, 1),
            "memory": {"fits": False, "needed_bytes": error.needed,
                       "usable_bytes": error.limit or chip.usable_bytes,
                       "hbm_bytes": chip.hbm_bytes}}
  seconds = round(time.monotonic() - began, 1)
  stats, cost = compiled.memory_analysis(), compiled.cost_analysis()
  memory = {
      "argument_bytes": stats.argument_size_in_bytes,
      "aliased_bytes": stats.alias_size_in_bytes,
      "output_bytes": stats.output_size_in_bytes,
      "temporary_bytes": stats.temp_size_in_bytes,
      "code_bytes": stats.generated_code_size_in_bytes}
  needed = sum(memory.values()) - 2 * memory["aliased_bytes"]
  text = compiled.as_text()
  return {
      "compile_seconds": seconds,
      "memory": {"fits": needed <= chip.usable_bytes, "needed_bytes": needed,
                 "usable_bytes": chip.usable_bytes,
                 "hbm_bytes": chip.hbm_bytes, **memory},
      "flops": cost.get("flops"), "bytes_accessed": cost.get("bytes accessed"),
      **hlo_report.analyse(hlo_text.parse(text), top), "hlo": text}


def run(argv) -> None:
  del argv
  if not _TOPOLOGY.value:
    raise UserError("name the chips: --topology=v5e:2x4")
  mode = flags.FLAGS.mode
  topology = tpu_chips.parse_topology(_TOPOLOGY.value)
  image_size = tpu_chips.parse_image_size(_IMAGE.value)
  devices = topology_devices(topology)
  config = settle(flags.FLAGS.config)

  progress.say("tracing and compiling; a full-size network takes minutes")
  lowered = lower(config, devices, mode, image_size)
  report = {"mode": mode,
            **tpu_report.describe(config, topology, mode, image_size),
            **measure(lowered, topology.chip, _TOP.value)}
  hlo = report.pop("hlo", None)
  if _HLO.value and hlo:
    _write(_HLO.value, hlo)
  if _SEARCH.value:
    report["search"] = [
        {"remat": remat, **attempt}
        for remat, changed in _remats(config, mode)
        for attempt in _search(changed, devices, mode, image_size,
                               topology.chip,
                               report if changed is config else None)]
  tpu_report.add_estimates(report, topology)
  if _JSON.value != "-":
    print(tpu_report.text(report))
  if _JSON.value:
    _write(_JSON.value, json.dumps(report, indent=1) + "\n")
  if not report["memory"]["fits"]:
    sys.exit(1)


def _remats(config, mode):
  """(whether it recomputes, config): as it is, then what there is besides."""
  yield config.model.remat, config
  if mode == "eval":  # No backward pass to recompute for.
    return
  other = config.copy_and_resolve_references()
  other.model.remat = not other.model.remat
  yield other.model.remat, other


def _search(config, devices, mode, image_size, chip, first):
  field = config if mode == "train" else config.eval
  name = "global_batch_size" if mode == "train" else "window_batch"
  # How many images one more a chip makes.
  step = (len(devices) // max(1, config.mesh.space) if mode == "train" else 1)
  if config.mesh.space == -1:
    step = config.mesh.data
  if mode == "train":
    step *= config.accumulation_steps

  def compile_at(per_chip):
    changed = config.copy_and_resolve_references()
    target = changed if field is config else changed.eval
    target[name], changed.batch_per_device = per_chip * step, 0
    if config.loss.normalizer == "per_replica":
      changed.loss.num_replicas = 1  # The memory is the same.
    return measure(lower(changed, devices, mode, image_size), chip, 0)

  start = max(1, field[name] // step)
  return tpu_search.search(first or compile_at(start), start, compile_at)


def _write(name: str, content: str) -> None:
  if name == "-":
    print(content, end="")
    return
  try:
    pathlib.Path(name).write_text(content)
  except OSError as error:
    raise UserError(f"{name}: cannot be written ({error.strerror})"
                    ) from error


if __name__ == "__main__":
  main.run(run)
