"""Programs that a second start finds without tracing."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from jax.sharding import NamedSharding, PartitionSpec

from psp_jax import (
  inference,
  kept_programs,
  sharding,
  sliding_window,
  stitching,
  train_step,
)
from psp_jax.models import create_model

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty cache, JAX's own too, that takes the smallest program."""
  settings = {"jax_compilation_cache_dir": str(tmp_path / "compiled"),
              "jax_persistent_cache_min_compile_time_secs": 0}
  before = {name: getattr(jax.config, name) for name in settings}
  (tmp_path / "compiled").mkdir()
  for name, value in settings.items():
    jax.config.update(name, value)
  jax_cache.reset_cache()
  kept_programs.enable(str(tmp_path / "compiled"))
  yield tmp_path / "compiled"
  for name, value in before.items():
    jax.config.update(name, value)
  jax_cache.reset_cache()


def start(config, by=3, traced=None):
  """As a new process would: a function that nobody has traced yet.

  Args:
    by: what the program multiplies by.
    traced: a list that each tracing adds to.
  """
  def program(x):
    if traced is not None:
      traced.append(1)
    (y,) = jax.tree.leaves(x)
    return {"sum": jnp.tanh(y @ y).sum(), "x": by * y}

  return kept_programs.kept("program", jax.jit(program), config)


@contextlib.contextmanager
def set_for_now(name, value):
  before = getattr(jax.config, name)
  jax.config.update(name, value)
  try:
    yield
  finally:
    jax.config.update(name, before)


def names(folder):
  return {p.name for p in folder.glob("program-*-cache")}


X = np.arange(16, dtype=np.float32).reshape(4, 4) / 10


def x(shape=(4, 4)):
  return jnp.asarray(np.resize(X, shape))


def test_what_was_compiled_is_not_traced_again(folder, tiny_config):
  traced = []
  for _ in range(3):
    call = start(tiny_config, traced=traced)
    for _ in range(2):
      out = call(x())
      np.testing.assert_allclose(out["sum"], np.tanh(X @ X).sum(), rtol=1e-6)
      np.testing.assert_array_equal(out["x"], 3 * X)
  assert traced == [1]


def test_what_changes_nothing_is_traced_once_more(folder, tiny_config):
  traced = []
  start(tiny_config, traced=traced)(x())
  first = names(folder)
  tiny_config.eval.flip = not tiny_config.eval.flip
  for _ in range(2):
    start(tiny_config, traced=traced)(x())
  assert traced == [1, 1]
  (new,) = names(folder) - first
  # The same program by another name, which takes no room.
  assert any(os.path.samefile(folder / new, folder / old) for old in first)


@pytest.mark.parametrize("change", [
    "sources", "config", "shape", "dtype", "sharding", "structure",
    "XLA_FLAGS", "precision"])
def test_what_may_change_it_does_so(
    change, folder, tiny_config, tmp_path, monkeypatch):
  monkeypatch.setattr(kept_programs, "_ROOT", tmp_path / "sources")
  (tmp_path / "sources").mkdir()
  kept_programs._sources.cache_clear()
  try:
    start(tiny_config)(x())
    by, traced, argument = 3, [], x()
    if change == "sources":
      (tmp_path / "sources" / "a.py").write_text("by = 5")
      kept_programs._sources.cache_clear()
      by = 5
    elif change == "config":
      tiny_config.base_learning_rate = by = 7
    elif change == "shape":
      argument = x((5, 5))
    elif change == "dtype":
      argument = x().astype(jnp.bfloat16)
    elif change == "sharding":
      mesh = jax.make_mesh((4,), ("data",))
      argument = jax.device_put(
          x(), NamedSharding(mesh, PartitionSpec("data")))
    elif change == "structure":
      argument = [x()]
    elif change == "XLA_FLAGS":
      monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=false")
    with (set_for_now("jax_default_matmul_precision", "highest")
          if change == "precision" else contextlib.nullcontext()):
      out = start(tiny_config, by, traced)(argument)
    (value,) = jax.tree.leaves(argument)
    np.testing.assert_array_equal(out["x"], by * value)
    assert out["x"].dtype == value.dtype
    assert traced == [1]
  finally:
    kept_programs._sources.cache_clear()


def test_results_have_the_names_of_today(folder, tiny_config):
  def named(name):
    return jax.jit(lambda x: {name: x + 1})

  for name in ("loss", "main_loss"):
    tiny_config.eval.flip = not tiny_config.eval.flip  # Traced again.
    call = kept_programs.kept("program", named(name), tiny_config)
    np.testing.assert_array_equal(call(x())[name], X + 1)


def test_the_state_that_goes_in_is_used_up(folder, tiny_config):
  for _ in range(2):
    step = kept_programs.kept("step", jax.jit(
        lambda state, batch: state + batch.sum(), donate_argnums=0),
        tiny_config)
    state = x()
    for _ in range(3):
      before, state = state, step(state, x())
      assert before.is_deleted()
    np.testing.assert_allclose(state, X + 3 * X.sum(), rtol=1e-6)


def test_half_a_file_is_made_anew(folder, tiny_config):
  start(tiny_config)(x())
  for path in folder.glob("program-*-cache"):
    path.write_bytes(path.read_bytes()[:100])
  traced = []
  for _ in range(2):
    np.testing.assert_array_equal(start(tiny_config, 3, traced)(x())["x"],
                                  3 * X)
  assert len(traced) >= 1


def test_what_jax_has_read_from_its_cache_is_not_written(folder, tiny_config):
  """Read and written again, a CPU's program lacks some of its functions."""
  start(tiny_config)(x())
  assert names(folder)
  for path in folder.glob("program-*-cache"):
    path.unlink()
  assert list(folder.glob("jit_program-*-cache"))  # JAX's own.
  for _ in range(2):
    np.testing.assert_array_equal(start(tiny_config)(x())["x"], 3 * X)
  assert not names(folder)


def test_a_full_disk_is_done_without(folder, tiny_config, monkeypatch):
  whole = pathlib.Path.open

  def full(path, mode="r", *args, **kwargs):
    if "w" in mode:
      raise OSError(28, "No space left on device")
    return whole(path, mode, *args, **kwargs)

  monkeypatch.setattr(pathlib.Path, "open", full)
  np.testing.assert_array_equal(start(tiny_config)(x())["x"], 3 * X)
  assert not names(folder)


def test_a_file_system_without_links_has_copies(
    folder, tiny_config, monkeypatch):
  def refuse(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(os, "link", refuse)
  traced = []
  for _ in range(2):
    start(tiny_config, traced=traced)(x())
  assert traced == [1] and len(names(folder)) == 2


def test_in_a_shared_folder_others_files_serve_and_stay(
    folder, tiny_config, monkeypatch):
  def refuse(*_):
    raise PermissionError(1, "Operation not permitted")

  start(tiny_config)(x())
  before = names(folder)
  monkeypatch.setattr(os, "utime", refuse)
  traced = []
  start(tiny_config, traced=traced)(x())
  assert not traced and names(folder) == before


def test_where_nothing_is_kept_the_function_stays(
    folder, tiny_config, monkeypatch):
  def same():
    function = jax.jit(lambda x: x)
    return kept_programs.kept("same", function, tiny_config) is function

  assert not same()
  for name in ("jax_debug_nans", "jax_disable_jit"):
    with set_for_now(name, True):
      assert same()
  with monkeypatch.context() as patch:
    patch.setattr(jax, "process_count", lambda: 2)
    assert same()
  for nowhere in (None, "gs://bucket/compiled"):
    kept_programs.enable(nowhere)
    assert same()


def test_shapes_are_found_too(folder, tiny_config):
  made = []

  def make():
    made.append(1)
    return {"a": jax.ShapeDtypeStruct((tiny_config.seed + 1, 2), jnp.float32)}

  for _ in range(2):
    assert kept_programs.kept_shapes(make, tiny_config)["a"].shape == (1, 2)
  assert made == [1]
  tiny_config.seed = 4
  assert kept_programs.kept_shapes(make, tiny_config)["a"].shape == (5, 2)


def test_a_state_is_of_the_same_shapes(folder, tiny_config):
  model, where = create_model(tiny_config), sharding.replicated(
      sharding.create_mesh())
  fresh, found = (train_step.state_shapes(model, tiny_config, where)
                  for _ in range(2))
  assert jax.tree.structure(found) == jax.tree.structure(fresh)
  assert jax.tree.leaves(found) == jax.tree.leaves(fresh)
  assert all(leaf.sharding == where for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("devices", [1, 8])
def test_scoring_and_predicting_find_theirs(
    devices, folder, tiny_config, monkeypatch):
  monkeypatch.setattr(
      jax, "local_devices", lambda own=jax.local_devices: own()[:devices])
  model = create_model(tiny_config)
  rng = np.random.default_rng(0)
  state = jax.tree.map(
      lambda x: rng.uniform(0.1, 0.3, x.shape).astype(x.dtype),
      train_step.state_shapes(model, tiny_config))
  photos = [(i, rng.integers(0, 256, (*size, 3), np.uint8))
            for i, size in enumerate([(33, 41), (25, 33), (33, 41)])]

  def answers(flip):
    tiny_config.eval.flip = flip
    protocol = sliding_window.Protocol.from_config(tiny_config)
    net = inference.Inference(model, tiny_config, protocol)
    return [np.concatenate([np.asarray(b) for b in blocks], None)
            for _, blocks in net.stitched(
                net.variables(state), iter(photos), protocol)]

  first = answers(False)

  def traced(*_, **__):
    raise AssertionError("traced")

  with monkeypatch.context() as patch:
    patch.setattr(inference, "prepack", traced)
    patch.setattr(stitching, "make_forward", lambda *_: traced)
    again = answers(False)
    for one, other in zip(first, again, strict=True):
      np.testing.assert_array_equal(one, other)
    with pytest.raises(AssertionError, match="traced"):
      answers(True)  # Of another protocol.


def test_another_process_finds_the_step(tmp_path):
  """By the command line, up to the first step; what each process traced."""
  said = []
  for seed in ("1", "2"):  # Of Python's hashes, which order its sets.
    errors = tmp_path / f"errors{seed}"
    with errors.open("w") as file, subprocess.Popen(
        [sys.executable, "-m", "psp_jax.main", "--config=configs/scenes.py",
         f"--workdir={tmp_path / ('run' + seed)}",
         f"--compilation_cache={tmp_path / 'compiled'}",
         "--config.model.depth=10", "--config.model.width_multiplier=0.1",
         "--config.global_batch_size=2", "--config.data.crop_size=65"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=file, env={
            **os.environ, "JAX_LOG_COMPILES": "1",
            "PYTHONHASHSEED": seed}) as process:
      loss = next(filter(None, (
          re.search(r"step +1/.* loss (\S+)", line)
          for line in process.stdout)))[1]
      process.kill()
    said.append((loss, *(f"Compiling jit({name})" in errors.read_text()
                         for name in ("train_step", "<lambda>"))))
  assert said[0][1:] == (True, True)
  assert said[1] == (said[0][0], False, False)
