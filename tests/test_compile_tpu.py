"""The compiler of TPUs, on a machine that need not have any."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import warnings

import jax
import pytest

from benchmarks import tpu_estimate
from psp_jax import (
  compile_tpu,
  default_config,
  hlo_text,
  tpu_chips,
  tpu_report,
  tpu_search,
)
from psp_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parent.parent
GIB = 2**30
needs_libtpu = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"),
    reason="needs libtpu, the TPU compiler: pip install -e '.[tpu]'")


def _run(*args, code=None):
  command = (["-m", "psp_jax.compile_tpu"] if code is None
             else ["-c", code + "\nfrom psp_jax import compile_tpu, main\n"
                   "main.run(compile_tpu.run)"])
  # jax sets it where libtpu has been loaded, as other tests here do.
  env = {k: v for k, v in os.environ.items() if k != "TPU_LIBRARY_PATH"}
  return subprocess.run(
      [sys.executable, *command, *args], cwd=ROOT, capture_output=True,
      text=True, timeout=300, env=env)


@pytest.fixture
def toy_config():
  c = default_config.get_config()
  c.model.depth = 10
  c.model.width_multiplier = 0.0625
  c.model.num_classes = 5
  c.data.crop_size = 33
  c.global_batch_size = 8
  c.eval.window_batch = 2
  return c


# ---- Names of chips.


@pytest.mark.parametrize("name, chips, shape", [
    ("v5e:2x4", "v5e", (2, 4)), ("v5litepod-8", "v5e", (2, 4)),
    ("v5e-8", "v5e", (2, 4)), ("V5E=8x8", "v5e", (8, 8)),
    ("v5e:1x1", "v5e", (1, 1)), ("v5e-256", "v5e", (16, 16)),
    ("v4-8", "v4", (2, 2, 1)),  # Eight TensorCores.
    ("v4:2x2", "v4", (2, 2, 1)), ("v5p-16", "v5p", (2, 2, 2)),
    ("v6e:2x4", "v6e", (2, 4))])
def test_topologies_by_both_names(name, chips, shape):
  topology = tpu_chips.parse_topology(name)
  assert (topology.chip.name, topology.shape) == (chips, shape)
  assert tpu_chips.parse_topology(topology.name) == topology


@pytest.mark.parametrize("name, words", [
    ("v5e", ["v5e:2x4"]), ("v9:2x2", ["'v9'", "v5e"]),
    ("v5e:3x5", ["2x2 chips", "v5e:2x4"]), ("v5e-7", ["v5e-8"]),
    ("v4-2", ["v4-8"]), ("v5e:32x32", ["256"]), ("v5e:2x", ["v5e:2x4"]),
    ("v5e:0x4", ["sides"]), ("v5e:2x4x1", ["2 sides"])])
def test_topologies_that_are_not(name, words):
  with pytest.raises(ConfigError) as error:
    tpu_chips.parse_topology(name)
  for word in [name, *words]:
    assert word in str(error.value)


@needs_libtpu
@pytest.mark.parametrize("name, kind, chips", [
    ("v5e:1x1", "TPU v5 lite", 1), ("v5e:2x4", "TPU v5 lite", 8),
    ("v5e:1x4", "TPU v5 lite", 4), ("v5e:16x16", "TPU v5 lite", 256),
    ("v4-8", "TPU v4", 4), ("v5p:2x2x1", "TPU v5", 4),
    ("v6e:2x4", "TPU v6 lite", 8)])
def test_a_device_is_a_chip(name, kind, chips, monkeypatch):
  _keep_environment(monkeypatch)
  topology = tpu_chips.parse_topology(name)
  devices = compile_tpu.topology_devices(topology)
  assert len(devices) == topology.num_chips == chips
  assert devices[0].device_kind == kind


def _keep_environment(monkeypatch):
  for name in ("TPU_ACCELERATOR_TYPE", "TPU_LOG_DIR", "TPU_SKIP_MDS_QUERY",
               "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
    monkeypatch.setenv(name, "")  # Restored after the test.
    monkeypatch.delenv(name)


# ---- Mistakes.


@pytest.mark.parametrize("args, words", [
    ([], ["--topology=v5e:2x4"]),
    (["--topology=v9:2x2"], ["'v9'"]),
    (["--topology=v5e:2x4", "--config.modle.depth=10"], ["'modle'"]),
    (["--topology=v5e:2x4", "--mode=tset"], ["train|eval"])],
    ids=["no topology", "unknown", "field", "mode"])
def test_mistakes_are_one_line_and_exit_2(args, words):
  done = _run("--config=configs/scenes.py", *args)
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ") and "Traceback" not in done.stderr
  for word in words:
    assert word in last


def test_without_libtpu_it_says_what_to_install():
  done = _run(
      "--config=configs/scenes.py", "--topology=v5e:2x4",
      code="import sys, importlib.util as u; find = u.find_spec\n"
      "u.find_spec = lambda n, *a: None if n == 'libtpu' else find(n, *a)")
  assert done.returncode == 2
  assert "pip install -e '.[tpu]'" in done.stderr
  assert "Traceback" not in done.stderr


@needs_libtpu
def test_what_training_refuses_is_refused(toy_config, monkeypatch):
  _keep_environment(monkeypatch)
  devices = compile_tpu.topology_devices(tpu_chips.parse_topology("v5e:2x4"))
  toy_config.global_batch_size = 12
  with pytest.raises(ConfigError, match="global_batch_size=12"):
    compile_tpu.lower(compile_tpu.settle(toy_config), devices, "train")
  toy_config.eval.window = "whole"
  with pytest.raises(ConfigError, match="eval.window=sliding"):
    compile_tpu.lower(compile_tpu.settle(toy_config), devices, "eval")


def test_the_config_of_a_tpu(toy_config):
  assert toy_config.model.dtype == "auto"
  settled = compile_tpu.settle(toy_config)
  assert settled.model.dtype == "bfloat16"
  assert toy_config.model.dtype == "auto"  # The caller's stays.
  toy_config.model.dtype = "float32"
  assert compile_tpu.settle(toy_config).model.dtype == "float32"
  toy_config.model.num_classes = 0
  assert compile_tpu.settle(toy_config).model.num_classes == 150
  toy_config.data.name = "folder"
  with pytest.raises(ConfigError, match="--config.model.num_classes=N"):
    compile_tpu.settle(toy_config)


# ---- Memory.


@pytest.mark.parametrize("message, needed, limit", [
    ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
     "for HLO temporaries (135.33G) exceeds available HBM (15.75G).", 135.33,
     15.75),
    ("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory "
     "in memory space hbm. Used 18.30G of 15.75G hbm. Exceeded hbm capacity "
     "by 2.55G.", 18.30, 15.75)])
def test_what_the_compiler_says_when_it_runs_out(message, needed, limit):
  error = compile_tpu.OutOfMemory(message)
  assert error.needed == int(needed * GIB) and error.limit == int(limit * GIB)
  unknown = compile_tpu.OutOfMemory("RESOURCE_EXHAUSTED: hbm")
  assert unknown.needed is None and unknown.limit is None


def _one_chip(monkeypatch):
  """A v5e's topology and what places an array on its one chip."""
  _keep_environment(monkeypatch)
  topology = tpu_chips.parse_topology("v5e:1x1")
  device, = compile_tpu.topology_devices(topology)
  return topology, jax.sharding.SingleDeviceSharding(device)


@needs_libtpu
def test_more_than_a_chip_has_is_refused_by_the_compiler(monkeypatch):
  topology, placed = _one_chip(monkeypatch)
  x = jax.ShapeDtypeStruct((80_000, 65_536), "bfloat16", sharding=placed)
  answer = compile_tpu.measure(jax.jit(lambda x: x + 1).lower(x),
                               topology.chip)
  memory = answer["memory"]
  assert not memory["fits"] and memory["usable_bytes"] == int(15.75 * GIB)
  # An argument and a result.
  assert memory["needed_bytes"] == pytest.approx(4 * 80_000 * 65_536, rel=.01)


def _answer(per_chip, fixed, each, known=True):
  needed = fixed + each * per_chip
  fits = needed <= 16 * GIB
  return {"memory": {"fits": fits, "usable_bytes": 16 * GIB,
                     "needed_bytes": needed if known or fits else None}}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("start", [1, 2, 13, 14, 500])
@pytest.mark.parametrize("fixed, each, best", [
    (GIB, GIB * 11 / 10, 13), (0, GIB, 16), (15 * GIB, GIB / 7, 7),
    (17 * GIB, GIB, 0), (0, GIB / 1000, 4096)])
def test_the_search_finds_the_largest_that_fits(
    fixed, each, best, start, known):
  tried = []

  def compile_at(n):
    tried.append(n)
    return _answer(n, fixed, each, known)

  attempts = tpu_search.search(compile_at(start), start, compile_at)
  assert [a["per_chip"] for a in attempts] == tried
  assert len(set(tried)) == len(tried) <= 16
  assert max((a["per_chip"] for a in attempts if a["fits"]),
             default=0) == best
  assert best == 4096 or any(
      a["per_chip"] == best + 1 for a in attempts)  # And does not fit.


@needs_libtpu
def test_the_search_by_the_compilers_own_answers(monkeypatch):
  _keep_environment(monkeypatch)
  topology = tpu_chips.parse_topology("v5e:1x1")
  device, = compile_tpu.topology_devices(topology)

  def compile_at(n):  # n half GiB in, and as much out.
    x = jax.ShapeDtypeStruct(
        (n, 2**21, 128), "bfloat16",
        sharding=jax.sharding.SingleDeviceSharding(device))
    return compile_tpu.measure(jax.jit(lambda x: x + 1).lower(x),
                               topology.chip)

  attempts = tpu_search.search(compile_at(16), 16, compile_at)
  assert [(a["per_chip"], a["fits"]) for a in attempts] == [
      (16, False), (15, True)]


@needs_libtpu
def test_nothing_goes_to_the_cache_which_could_not_be_read_again(
    monkeypatch, tmp_path):
  _, placed = _one_chip(monkeypatch)
  x = jax.ShapeDtypeStruct((8, 128), "float32", sharding=placed)
  before = jax.config.jax_compilation_cache_dir
  fast = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      for _ in range(2):
        compile_tpu.compile_lowered(jax.jit(lambda x: x + 1).lower(x))
    assert jax.config.jax_enable_compilation_cache
    assert not list(tmp_path.iterdir())
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", fast)


@pytest.mark.parametrize("mode, space, batches", [
    ("train", 1, [16, 24, 32]), ("train", 2, [16, 20, 24, 28, 32]),
    ("eval", 1, [4, 5, 6])])
def test_the_search_changes_the_batch_of_all_chips(
    toy_config, monkeypatch, mode, space, batches):
  """One chip's images more or fewer are as many for each group of chips."""
  toy_config.global_batch_size = 16
  toy_config.eval.window_batch = 4
  toy_config.mesh.space = space
  tried = []

  def lower(config, devices, asked, size):
    assert asked == mode and len(devices) == 8 and size is None
    tried.append(config.global_batch_size if mode == "train"
                 else config.eval.window_batch)
    return tried[-1]

  def measure(batch, chip, top):
    del chip, top
    limit = 31 if mode == "train" else 5
    return {"memory": {"fits": batch <= limit, "usable_bytes": limit,
                       "needed_bytes": batch}}

  monkeypatch.setattr(compile_tpu, "lower", lower)
  monkeypatch.setattr(compile_tpu, "measure", measure)
  attempts = compile_tpu._search(toy_config, list(range(8)), mode, None, None,
                                 None)
  assert set(tried) <= set(batches)
  step = {("train", 1): 8, ("train", 2): 4, ("eval", 1): 1}[mode, space]
  assert [a["per_chip"] * step for a in attempts] == tried
  assert max(a["per_chip"] * step for a in attempts if a["fits"]) == (
      batches[-2])


def test_the_search_is_with_and_without_remat_where_that_matters(toy_config):
  (_, same), (remat, other) = compile_tpu._remats(toy_config, "train")
  assert same is toy_config and remat and other.model.remat
  assert not toy_config.model.remat
  assert list(compile_tpu._remats(toy_config, "eval")) == [
      (False, toy_config)]


def test_remedies_are_of_this_config(toy_config):
  topology = tpu_chips.parse_topology("v5e:2x4")
  toy_config.global_batch_size, toy_config.data.crop_size = 128, 473
  report = {
      "mode": "train", "compile_seconds": 100,
      **tpu_report.describe(toy_config, topology, "train"),
      "memory": {"fits": False, "needed_bytes": int(31.5 * GIB),
                 "usable_bytes": int(15.75 * GIB), "hbm_bytes": 16 * GIB}}
  tpu_report.add_estimates(report, topology)
  text = tpu_report.text(report)
  assert "DOES NOT FIT: 31.50 GiB a chip of 15.75, 15.75 too many" in text
  assert "--config.global_batch_size=64 (8 a chip)" in text
  assert "--config.data.crop_size=329" in text  # 473 / sqrt(2), 8 n + 1.


# ---- Real compilations of a toy.


@needs_libtpu
def test_the_train_step_from_the_command_line(tmp_path):
  done = _run(
      "--config=configs/ade20k.py", "--topology=v5litepod-8",
      "--config.model.depth=10", "--config.model.width_multiplier=0.0625",
      "--config.model.num_classes=5", "--config.data.crop_size=33",
      "--config.model.pyramid.bins=(2,)", "--config.model.auxiliary=False",
      "--config.global_batch_size=8", "--config.data.manual_dir=/no/such",
      f"--json={tmp_path / 'report.json'}", f"--hlo={tmp_path / 'hlo'}")
  assert done.returncode == 0, done.stderr
  assert "fits:" in done.stdout and "not measured" in done.stdout
  assert "TPU_ACCELERATOR_TYPE" not in done.stderr  # libtpu's own noise.
  report = json.loads((tmp_path / "report.json").read_text())
  memory = report["memory"]
  assert memory["fits"] and (report["chips"], report["per_chip"]) == (8, 1)
  assert report["dtype"] == "bfloat16" and "bf16[" in (
      tmp_path / "hlo").read_text()

  # The layouts' padding is what the compiler counts for the arguments.
  module = hlo_text.parse((tmp_path / "hlo").read_text())
  arguments = [i for i in module.computations[module.entry].values()
               if i.opcode == "parameter"]
  assert sum(s.padded_bytes for i in arguments for s in i.shapes) == (
      memory["argument_bytes"])
  # Donated: all of the state comes back in its own place.
  state = [i for i in arguments if i.op_name.startswith("state")]
  assert memory["aliased_bytes"] >= .99 * sum(
      s.padded_bytes for i in state for s in i.shapes)

  cycles = report["cycles"]
  assert cycles > 1e5
  for part in ("by_layer", "by_kind", "by_phase"):
    assert sum(report[part].values()) == cycles
  layers = report["by_layer"]
  assert layers["other"] < .02 * cycles
  for layer in ("stem", "layer1", "layer4", "pyramid", "heads", "loss",
                "upsampling", "optimizer"):
    assert layers[layer] > 0, layer
  assert report["by_phase"]["backward"] > .2 * cycles
  # Gradients and BatchNorm's sums, once over all chips: 2 or 4 bytes each.
  parameters = sum(
      s.bytes // 4 for i in state for s in i.shapes
      if i.op_name.startswith("state.params"))
  sent = report["collectives"]["by_kind"]
  assert list(sent) == ["all-reduce"]
  assert 2 * parameters <= sent["all-reduce"]["bytes"] <= 5 * parameters
  assert report["collectives"]["activations"] == []


@needs_libtpu
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_chips_that_share_rows_pass_on_their_borders_alone(
    toy_config, monkeypatch, mode):
  """No activation is gathered, though 65 rows, and 33, 17 and 9, are odd."""
  _keep_environment(monkeypatch)
  topology = tpu_chips.parse_topology("v5e:2x2")
  devices = compile_tpu.topology_devices(topology)
  toy_config.data.crop_size, toy_config.mesh.space = 65, 2
  toy_config.eval.window = "whole"
  size = None if mode == "train" else (65, 129)
  report = compile_tpu.measure(compile_tpu.lower(
      compile_tpu.settle(toy_config), devices, mode, size), topology.chip, 3)
  sent = report["collectives"]["by_kind"]
  assert {"all-gather", "all-to-all", "reduce-scatter"}.isdisjoint(sent)
  halo = sent["collective-permute"]
  # A row of a map, or three, and never a map.
  largest = max(
      shape.bytes
      for computation in hlo_text.parse(report["hlo"]).computations.values()
      for i in computation.values()
      if i.opcode.startswith("collective-permute") for shape in i.shapes)
  assert halo["count"] > 10 and largest <= 8 * 3 * 129 * 16 * 2
  assert sent["all-reduce"]["bytes"] > 0  # The pyramid's bins.


@needs_libtpu
def test_the_evaluation_has_no_auxiliary_head(toy_config, monkeypatch):
  _keep_environment(monkeypatch)
  topology = tpu_chips.parse_topology("v5e:1x1")
  devices = compile_tpu.topology_devices(topology)
  lowered = compile_tpu.lower(
      compile_tpu.settle(toy_config), devices, "eval")
  report = compile_tpu.measure(lowered, topology.chip, 3)
  assert report["by_phase"]["backward"] == report["by_layer"]["loss"] == 0
  assert report["collectives"]["bytes"] == 0  # One chip.
  assert len(report["top"]) == 3
  assert "aux_classifier/" not in report["hlo"]


@needs_libtpu
def test_the_benchmark_compiles_the_textbook_beside_ours(tmp_path):
  file = tmp_path / "report.json"
  done = subprocess.run(
      [sys.executable, "-m", "benchmarks.tpu_estimate", "--depth=10",
       "--width=0.0625", "--crop=33", "--batch=2", "--classes=5",
       "--topology=v5e:1x1", "--only=textbook", f"--json={file}"],
      cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  textbook = json.loads(file.read_text())["textbook"]
  assert "| estimated cycles, M |" in done.stdout
  assert textbook["by_layer"]["pyramid"] > 0
  assert textbook["by_layer"]["other"] < .02 * textbook["cycles"]
  table = tpu_estimate.table({
      "textbook": textbook, "ours": textbook | {"flops": textbook["flops"] / 2}
  })
  row, = [line for line in table.splitlines() if "TFLOP" in line]
  assert row.endswith(" 0.500 |")
