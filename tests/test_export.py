"""Exported files against the network itself, by their own runtimes."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import checkpoint, default_config, export, runs, train_step
from psp_jax.errors import ExportError
from psp_jax.models import create_model
from psp_jax.models.convolution import conv2d, max_pool_3x3

onnx = pytest.importorskip("onnx", reason="pip install -e '.[export]'")
onnxruntime = pytest.importorskip("onnxruntime")
from psp_jax import onnx_graph  # noqa: E402  It imports onnx.

CLASSES = 11


def tiny(**changes):
  c = default_config.get_config()
  c.model.num_classes, c.model.depth = CLASSES, 10
  c.model.width_multiplier, c.model.auxiliary = 0.0625, False
  c.data.name, c.data.crop_size = "camvid", 41
  with c.unlocked():
    c.model.update_from_flattened_dict(changes)
  return c


def drawn(config, images):
  """A state without compiling anything but the network."""
  rng = np.random.default_rng(0)

  def draw(path, x):
    kind = path[-1].key
    if kind == "kernel":
      value = rng.normal(0, (2 / np.prod(x.shape[:3]))**0.5, x.shape)
    else:
      value = rng.uniform(*((0.5, 1.5) if kind in ("scale", "var")
                            else (-0.1, 0.1)), x.shape)
    return jnp.asarray(value, x.dtype)

  model = create_model(config)
  variables = jax.tree_util.tree_map_with_path(draw, jax.eval_shape(
      lambda: model.init(jax.random.key(0), images.astype("f"))))
  state = train_step.create_train_state(None, config, variables)
  # No class is ahead everywhere.
  logits = logits_of(config, state, images)
  bias = state.params["classifier"]["conv"]["bias"]
  state.params["classifier"]["conv"]["bias"] = bias - logits.mean((0, 1, 2))
  return state


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "run"
  folder.mkdir()
  config = tiny()
  runs.save_config(config, folder)
  checkpoints = checkpoint.Checkpoints(folder)
  checkpoints.save(drawn(config, photos(3, 41, 33)))
  checkpoints.close()
  return folder


def photos(count, height, width):
  rng = np.random.default_rng(1)
  return np.stack([cv2.resize(
      rng.integers(0, 256, (5, 7, 3)).astype(np.uint8), (width, height))
      for _ in range(count)])


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables, images):
  return model.apply(variables, images)


def logits_of(config, state, images):
  """Without anything of `export`."""
  mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  return np.asarray(apply(
      create_model(config),
      {"params": state.params, "batch_stats": state.batch_stats},
      ((images - np.array(mean)) / np.array(std)).astype(np.float32)))


def expected(config, state, images):
  """Probabilities."""
  logits = logits_of(config, state, images).astype(np.float64)
  exponentials = np.exp(logits - logits.max(-1, keepdims=True))
  return exponentials / exponentials.sum(-1, keepdims=True)


def run_file(path, images):
  if path.suffix == ".onnx":
    session = onnxruntime.InferenceSession(str(path))
    return session.run(None, {session.get_inputs()[0].name: images})[0]
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  return np.asarray(exported.call(images))


@pytest.mark.parametrize("suffix", ["onnx", "stablehlo"])
@pytest.mark.parametrize("size,batch,outputs", [
    ("65x50", "any", "labels"), ("41x33", "3", "probabilities")])
def test_files_answer_as_the_network(
    run, tmp_path, capsys, suffix, size, batch, outputs):
  path, photo = tmp_path / f"net.{suffix}", tmp_path / "photo.png"
  cv2.imwrite(str(photo), photos(1, 100, 80)[0])
  assert export.main([
      f"--workdir={run}", f"--output={path}", f"--size={size}",
      f"--batch={batch}", f"--outputs={outputs}", f"--image={photo}"]) == 0
  said = capsys.readouterr().out
  assert "100 % of" in said and str(path) in said
  height, width = map(int, size.split("x"))
  config, state = runs.load(run)
  for count in ((1, 3) if batch == "any" else (int(batch),)):
    images = photos(count, height, width)
    found, wanted = run_file(path, images), expected(config, state, images)
    if outputs == "labels":
      assert found.dtype == np.uint8
      assert len(np.unique(found)) > 1
      assert (found == wanted.argmax(-1)).mean() >= 0.999
    else:
      np.testing.assert_allclose(found, wanted, atol=2e-5)
  spec = json.loads((tmp_path / f"net.{suffix}.json").read_text())
  count = "N" if batch == "any" else int(batch)
  assert spec["input"]["shape"] == [count, height, width, 3]
  assert spec["output"]["name"] == outputs
  assert spec["class_names"][0] == "sky"
  assert len(spec["class_names"]) == len(spec["palette"]) == CLASSES
  assert not list(tmp_path.glob(".*"))


def test_stablehlo_needs_no_psp_jax(run, tmp_path):
  path = tmp_path / "net.stablehlo"
  assert export.main([f"--workdir={run}", f"--output={path}", "--no_check",
                      "--platforms=cpu,tpu"]) == 0
  images = photos(2, 41, 41)
  np.save(tmp_path / "images.npy", images)
  script = f"""
import sys, numpy as np
import jax
with open({str(path)!r}, "rb") as file:
  run = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
np.save("labels.npy", run(np.load("images.npy")))
assert not any(name.startswith("psp_jax") for name in sys.modules)
assert not any(name.split(".")[0] == "flax" for name in sys.modules)
"""
  subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True,
                 env=os.environ | {"PYTHONPATH": ""})
  wanted = expected(*runs.load(run), images).argmax(-1)
  assert (np.load(tmp_path / "labels.npy") == wanted).mean() >= 0.999


VARIANTS = {
    "max": {"pyramid.pool": "max", "pyramid.bins": (1, 3)},
    "d": {"depth": 14, "avg_down": True, "stem": "32-32-64"},
    "smp": {"num_stages": 2, "pyramid.fuse_size": 1, "classifier_size": 3,
            "pyramid.bin1_norm": False, "stem": "7x7",
            "align_corners": False}}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_network_is_an_onnx_graph(tmp_path, name):
  config = tiny(**VARIANTS[name])
  images = photos(2, 33, 46)
  state = drawn(config, images)
  shape = jax.ShapeDtypeStruct(
      (jax.export.symbolic_shape("N")[0], 33, 46, 3), jnp.uint8)
  model = onnx_graph.to_model(
      functools.partial(*export.inference(config, state, "probabilities")),
      shape, "in", "out")
  onnx.checker.check_model(model, full_check=True)
  path = tmp_path / "net.onnx"
  onnx.save(model, path)
  np.testing.assert_allclose(
      run_file(path, images), expected(config, state, images), atol=2e-5)


def test_the_forms_of_cpus_take_any_batch_without_gathers():
  # Channels enough for Winograd's tiles, which the tiny networks lack.
  kernel = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype("f")

  def function(x):
    return conv2d(max_pool_3x3(conv2d(x, kernel, dilation=2)), kernel[:1, :1],
                  stride=2)
  n, = jax.export.symbolic_shape("n")
  exported = jax.export.export(jax.jit(function), platforms=("cpu", "tpu"))(
      jax.ShapeDtypeStruct((n, 40, 37, 64), jnp.float32))
  assert "stablehlo.gather" not in exported.mlir_module()
  x = np.random.default_rng(1).normal(size=(3, 40, 37, 64)).astype("f")
  np.testing.assert_allclose(exported.call(x), function(x), rtol=1e-4,
                             atol=1e-3)


@pytest.mark.parametrize("options,words", [
    (["--workdir={tmp}/none"], "none/config.json: no such file"),
    (["--size=7x41"], "use 8x8 or more"),
    (["--output={tmp}/no/net.onnx"], "no folder"),
    (["--output={tmp}"], "is a folder"),
    (["--step=77"], "77"),
    (["--format=tflite"], "invalid choice: 'tflite'"),
    (["--size=41"], "HEIGHTxWIDTH"),
    (["--height=41"], "go together"),
    (["--batch=0"], "a number from 1"),
    (["--platforms=cpu,abacus"], "'abacus'"),
    (["--image={tmp}/no.jpg"], "no.jpg")])
def test_mistakes_are_told(run, tmp_path, capsys, options, words):
  given = [f"--workdir={run}", f"--output={tmp_path}/net.stablehlo",
           *(o.format(tmp=tmp_path) for o in options)]
  try:
    code = export.main(given)
  except SystemExit as left:
    code = left.code
  assert code == 2
  assert words in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(run, tmp_path, capsys, monkeypatch):
  monkeypatch.delitem(sys.modules, "psp_jax.onnx_graph")
  monkeypatch.delattr("psp_jax.onnx_graph")
  monkeypatch.setitem(sys.modules, "onnx", None)
  assert export.main([f"--workdir={run}", f"--output={tmp_path}/a.onnx"]) == 2
  assert "pip install 'psp_jax[export]'" in capsys.readouterr().err


def test_a_wrong_file_is_not_written(run, tmp_path, capsys, monkeypatch):
  write, read, snippet = export.FORMATS["stablehlo"]
  monkeypatch.setitem(export.FORMATS, "stablehlo", (
      lambda function, *rest: write(
          lambda images: function(255 - images), *rest), read, snippet))
  assert export.main([f"--workdir={run}", f"--output={tmp_path}/net"]) == 2
  said = capsys.readouterr().err
  assert "% of 3,362 pixels have the library's class, of 9 that appear" in said
  assert "99.9 % are asked for" in said
  assert not list(tmp_path.iterdir())


def test_answers_of_another_kind_are_an_error():
  images = np.zeros((1, 3, 3, 3), np.uint8)
  with pytest.raises(ExportError, match="int32 .* not uint8"):
    export.check(lambda x: x[..., 0].astype(np.int32),
                 lambda x: x[..., 0], images, "labels")


def test_what_runs_elsewhere_alone_is_said_not_to_be_checked(
    run, tmp_path, capsys):
  assert export.main([f"--workdir={run}", f"--output={tmp_path}/net",
                      "--platforms=tpu"]) == 0
  assert "written for tpu, this is a cpu" in capsys.readouterr().out
  assert pathlib.Path(tmp_path / "net").stat().st_size > 10_000


def test_what_onnx_cannot_hold_is_told(monkeypatch):
  monkeypatch.delitem(onnx_graph._RULES, "exp")
  with pytest.raises(ExportError, match="know exp, .*stablehlo"):
    export.to_onnx(jnp.exp, jax.ShapeDtypeStruct((1, 2, 2, 3), jnp.float32),
                   "labels", ())
