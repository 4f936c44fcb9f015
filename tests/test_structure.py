"""The house rules that a machine can hold: layers, sizes, plain configs."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted((ROOT / "psp_jax").rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# A module imports only from layers above its own line.
LAYERS = [
    {"models.winograd", "models.phases", "models.pairs", "models.pending"},
    {"errors", "default_config", "published", "progress", "hlo_text",
     "compilation_cache", "kept_programs", "models.convolution", "watchdog",
     "onnx_graph"},
    {"models.layers", "models.pooling", "data.normalize", "data.taxonomy",
     "data.scene_sprites", "data.photometric", "data.cache", "data.decode",
     "data.downloads", "metrics", "optimizers", "sharding", "events",
     "visualize", "saved_config", "limits", "hlo_layers", "tpu_chips",
     "tpu_report", "tpu_search", "stopping", "workdir", "processes",
     "profiling", "memory"},
    {"losses", "models.resnet", "data.pairs", "data.scene_renderer",
     "data.augment", "data.cityscapes_labels", "submission", "hlo_report",
     "history", "extremes"},
    {"models.pspnet", "data.check", "pretrained.keras_resnet", "console",
     "checkpoint", "sliding_window", "pretrained.files", "pretrained.names",
     "cityscapes_scores", "web"},
    {"models", "pretrained.architecture", "data.builder", "stitching"},
    {"data.ade20k", "data.camvid", "data.cityscapes", "data.folder",
     "data.scenes", "data.voc2012", "inference"},
    {"data.coco_voc"},
    {"data.datasets", "data.input_pipeline", "train_step",
     "pretrained.networks"},
    {"evaluate", "runs", "tables", "prepare", "non_finite"},
    {"pretrained", "segmenter", "report"},
    {"convert", "predict", "serve", "export", ""},
    {"train"},
    {"main"},
    {"compile_tpu"},
]


def _name(path):
  parts = path.relative_to(ROOT / "psp_jax").with_suffix("").parts
  return ".".join(p for p in parts if p != "__init__")


def _own_imports(path):
  """Names below psp_jax that `path` imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module:
      top, _, rest = node.module.partition(".")
      if top == "psp_jax":
        for alias in node.names:
          inner = f"{rest}.{alias.name}".strip(".")
          is_module = any(_name(m) == inner for m in MODULES)
          yield inner if is_module else rest
    elif isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith("psp_jax."):
          yield alias.name.removeprefix("psp_jax.")


def _layer(name):
  return next(i for i, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_point_one_way(path):
  name = _name(path)
  if name == "data":
    assert not list(_own_imports(path))  # The package's root stays empty.
    return
  for imported in _own_imports(path):
    assert _layer(imported) < _layer(name), f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_are_short_and_named(path):
  text = path.read_text()
  assert len(text.splitlines()) <= 350
  assert ast.get_docstring(ast.parse(text)) or not text
  assert path.stem != "utils"


def test_flax_stays_under_models():
  for path in MODULES:
    if "models" in path.parts:
      continue
    text = path.read_text()
    assert not re.search(r"flax\.linen|\bnnx\b", text), path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_import_nothing_heavy(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f"{node.module}.{a.name}" for a in node.names]
    else:
      continue
    for name in names:
      assert name.split(".")[0] == "ml_collections" or (
          name in ("psp_jax.default_config", "psp_jax.published"))


def test_what_configs_import_is_plain_data():
  for name in ("default_config", "published"):
    path = ROOT / "psp_jax" / f"{name}.py"
    imported = {node.module if isinstance(node, ast.ImportFrom) else a.name
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for a in node.names}
    assert imported <= {"ml_collections", "dataclasses", "typing"}
