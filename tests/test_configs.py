"""Every config builds its model and says what it reproduces."""

import functools
import importlib.util
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from psp_jax import default_config, published, train, train_step
from psp_jax.data import augment, datasets
from psp_jax.errors import DataError
from psp_jax.models import create_model

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
VARIANTS = [("ade20k", ""), ("camvid", ""), ("camvid", "cpu"),
            ("camvid", "baseline"), ("scenes", ""), ("voc2012", ""),
            ("voc2012", "paper"), ("coco_voc", ""), ("folder", ""),
            ("folder", "cpu"), ("cityscapes", ""), ("cityscapes", "paper"),
            ("cityscapes", "coarse"), ("cityscapes", "fine"),
            *(("ablations", row) for row in published.ROWS)]


def _module(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _model_key(config):
  # The weight of a loss is a constant of the program.
  return json.dumps(config.model.to_dict() | {"aux_loss_weight": 0.4})


def _config_of(model_key):
  config = default_config.get_config()
  fields = json.loads(model_key)
  fields["pyramid"]["bins"] = tuple(fields["pyramid"]["bins"])
  config.model.update(fields)
  return config


@functools.cache
def _abstract_params(model_key):
  config = _config_of(model_key)
  model = create_model(config)
  return jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 65, 65, 3)), train=True))["params"]


def _abstract_step(config):
  """Shapes of (state, (next state, metrics)) of a train step on two crops."""
  # More blocks of the same kind, 269 layers of them, take long to trace.
  shallow = config.copy_and_resolve_references()
  shallow.model.depth = min(50, config.model.depth)
  return _step_of(_model_key(shallow))


@functools.cache
def _step_of(model_key):
  config = _config_of(model_key)
  model = create_model(config)
  state = jax.eval_shape(lambda: train_step.create_train_state(model, config))
  batch = {"image": jax.ShapeDtypeStruct((2, 65, 65, 3), jnp.uint8),
           "label": jax.ShapeDtypeStruct((2, 65, 65), jnp.uint8)}
  return state, jax.eval_shape(functools.partial(
      train_step.train_step, model=model, config=config), state, batch)


def test_all_configs_are_tested():
  assert {p.stem for p in FOLDER.glob("*.py")} == {n for n, _ in VARIANTS}


@pytest.mark.parametrize("name, arg", VARIANTS)
def test_config_builds_its_model_for_its_dataset(name, arg):
  config = _module(name).get_config(arg)
  assert isinstance(config, ml_collections.ConfigDict)
  if config.data.name == "folder":  # As many as its classes.csv lists.
    assert config.model.num_classes == 0
    classes = config.model.num_classes = 7
  else:
    classes = datasets.taxonomy(config).num_classes
    assert config.model.num_classes == classes
  state, (after, scalars) = _abstract_step(config)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
      lambda x: (x.shape, x.dtype), after)
  assert ("aux_loss" in scalars) is config.model.auxiliary
  assert ("aux_classifier" in state.params) is config.model.auxiliary
  for head in {"classifier", "aux_classifier"} & set(state.params):
    assert state.params[head]["conv"]["bias"].shape == (classes,)


@pytest.mark.parametrize("name, arg", VARIANTS)
def test_fields_that_others_rely_on(name, arg):
  c = _module(name).get_config(arg)
  for value, kind in (
      (c.num_train_steps, int), (c.global_batch_size, int), (c.seed, int),
      (c.model.pyramid.bins, tuple), (c.model.pretrained, str),
      (c.checkpoint.every_steps, int), (c.eval.scales, tuple),
      (c.eval.flip, bool)):
    assert isinstance(value, kind)


def test_ade20k_is_the_papers_recipe():
  c = _module("ade20k").get_config()
  assert (c.model.depth, c.data.crop_size, c.global_batch_size) == (
      50, 473, 16)
  assert (c.num_train_steps, c.optimizer.base_lr, c.optimizer.poly_power,
          c.optimizer.momentum, c.optimizer.weight_decay) == (
              150_000, 0.01, 0.9, 0.9, 1e-4)
  assert (c.model.aux_loss_weight, c.model.pyramid.bins,
          c.model.pyramid.pool, c.model.dropout) == (
              0.4, (1, 2, 3, 6), "average", 0.1)
  assert tuple(c.data.augment.scale) == (0.5, 2.0)
  assert c.data.augment.rotate_degrees == 10


@pytest.mark.parametrize("name", sorted({n for n, _ in VARIANTS}))
def test_docstring_gives_the_command_and_the_cost(name):
  text = _module(name).__doc__
  assert f"python -m psp_jax.main --config=configs/{name}.py" in text
  assert re.search(r"reproduce", text, re.I)
  assert re.search(r"hour|minute", text)


@pytest.mark.parametrize("name", sorted({n for n, _ in VARIANTS}))
def test_unknown_argument_is_refused(name):
  with pytest.raises(ValueError, match="nonsense"):
    _module(name).get_config("nonsense")


@pytest.mark.parametrize("name, arg, row", [
    ("ade20k", "", "table3_resnet50"), ("voc2012", "", "voc2012_resnet50"),
    ("voc2012", "paper", "voc2012"), ("cityscapes", "", "cityscapes_resnet50"),
    ("cityscapes", "paper", "cityscapes")])
def test_a_datasets_config_is_its_row_of_the_tables(name, arg, row):
  ours, rows = (_module(module).get_config(a).to_dict() for module, a in (
      (name, arg), ("ablations", row)))
  for config in (ours, rows):
    del config["published"]
    del config["eval"]["scales"]  # Multi-scale is a flag.
  assert ours == rows


def test_the_two_stages_of_coarse_and_fine_labels():
  coarse, fine = (_module("cityscapes").get_config(a)
                  for a in ("coarse", "fine"))
  assert coarse.data.train_split == "train+train_extra"
  assert fine.data.train_split == "train"
  # The folder that main.py gives the first stage.
  assert fine.model.pretrained == "runs/cityscapes_coarse"


# ---- The rows of the paper's tables.


def row_config(name):
  return _module("ablations").get_config(name)


# Row -> (row it is compared with, all that differs); "" is the ADE20K recipe.
SIX = {"eval.scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}
BINS = {"model.pyramid.bins": (1, 2, 3, 6)}
VOC = {"data.name": "voc2012", "data.train_split": "train_aug",
       "num_train_steps": 30_000, "model.num_classes": 21}
CITY = {"data.name": "cityscapes", "data.crop_size": 713,
        "num_train_steps": 90_000, "model.num_classes": 19,
        "eval.base_size": 2048, "data.augment.blur_probability": 0.0}
DIFFERENCES = {
    "table1_b1236_average_dr": ("", {}),
    "table1_b1236_max_dr": (
        "table1_b1236_average_dr", {"model.pyramid.pool": "max"}),
    "table1_b1236_average": (
        "table1_b1236_average_dr", {"model.pyramid.reduce": False}),
    "table1_b1236_max": (
        "table1_b1236_average", {"model.pyramid.pool": "max"}),
    "table1_b1_average": (
        "table1_b1236_average", {"model.pyramid.bins": (1,)}),
    "table1_b1_max": ("table1_b1_average", {"model.pyramid.pool": "max"}),
    "table1_baseline": (
        "table1_b1236_average_dr", {"model.pyramid.bins": ()}),
    "table2_aux_0.4": ("table1_baseline", {}),
    "table2_aux_none": ("table2_aux_0.4", {"model.auxiliary": False}),
    **{f"table2_aux_{weight}": (
        "table2_aux_0.4", {"model.aux_loss_weight": weight})
       for weight in (0.3, 0.6, 0.9)},
    **{f"table3_resnet{depth}": ("table3_resnet50", {"model.depth": depth})
       for depth in (101, 152, 269)},
    "table3_resnet50": ("", {}),
    **{f"table3_resnet{depth}_multiscale": (f"table3_resnet{depth}", SIX)
       for depth in (50, 101, 152, 269)},
    "table4_multiscale": ("table4_269", SIX),
    "table4_269": ("table4_psp", {"model.depth": 269}),
    "table4_psp": ("table4_da_al", BINS),
    "table4_da_al": ("table4_da", {"model.auxiliary": True}),
    "table4_da": ("table4_baseline", {
        "data.augment.scale": (0.5, 2.0),
        "data.augment.rotate_probability": 0.5,
        "data.augment.blur_probability": 0.5,
        "data.augment.mirror_probability": 0.5}),
    "table4_baseline": ("table2_aux_none", {
        "data.augment.scale": (1.0, 1.0),
        "data.augment.rotate_probability": 0.0,
        "data.augment.blur_probability": 0.0,
        "data.augment.mirror_probability": 0.0}),
    "voc2012": ("", VOC | SIX | {"model.depth": 101}),
    "voc2012_coco": ("voc2012", {}),
    "cityscapes": ("", CITY | SIX | {"model.depth": 101}),
    "cityscapes_coarse": ("cityscapes", {}),
    "voc2012_resnet101_multiscale": ("voc2012", {"num_train_steps": 33_050}),
    "cityscapes_resnet101_multiscale": ("cityscapes", {
        "num_train_steps": 37_200, "data.augment.blur_probability": 0.5}),
    **{f"{data}_resnet{depth}_multiscale": (f"{data}_resnet{depth}", SIX)
       for data in ("voc2012", "cityscapes") for depth in (50,)},
    **{f"{data}_resnet50": (f"{data}_resnet101", {"model.depth": 50})
       for data in ("voc2012", "cityscapes")},
    **{f"{data}_resnet101": (
        f"{data}_resnet101_multiscale", {"eval.scales": (1.0,)})
       for data in ("voc2012", "cityscapes")},
}


def _fields(config):
  return {f"{path}.{name}".strip("."): value
          for path, branch in _branches(config.to_dict())
          for name, value in branch.items() if not isinstance(value, dict)}


def _branches(tree, path=""):
  yield path, tree
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _branches(value, f"{path}.{name}")


def test_every_row_is_compared_with_another():
  assert set(DIFFERENCES) == set(published.ROWS)


@pytest.mark.parametrize("name", published.ROWS)
def test_a_row_differs_in_what_the_paper_changes_and_nothing_else(name):
  reference, expected = DIFFERENCES[name]
  before = _fields(row_config(reference) if reference
                   else _module("ade20k").get_config())
  after = _fields(row_config(name))
  assert {k: v for k, v in after.items()
          if v != before[k] and k != "published"} == expected
  assert before.keys() == after.keys()


def arithmetic_count(config):
  """Parameters by the paper's layers: kernels, and two a BatchNorm channel."""
  c = config.model

  def conv(size, inputs, outputs):
    return size * size * inputs * outputs + 2 * outputs

  total = conv(3, 3, 64) + conv(3, 64, 64) + conv(3, 64, 128)
  blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3),
            269: (3, 30, 48, 8)}[c.depth]
  channels = 128
  for inner, count in zip((64, 128, 256, 512), blocks, strict=True):
    total += conv(1, channels, 4 * inner)  # The projection.
    for _ in range(count):
      total += (conv(1, channels, inner) + conv(3, inner, inner)
                + conv(1, inner, 4 * inner))
      channels = 4 * inner
  fused = 2048
  for _ in c.pyramid.bins:
    reduced = 2048 // len(c.pyramid.bins) if c.pyramid.reduce else 2048
    total += conv(1, 2048, reduced) if c.pyramid.reduce else 0
    fused += reduced
  total += conv(3, fused, 512) + (512 + 1) * c.num_classes
  if c.auxiliary:
    total += conv(3, 1024, 256) + (256 + 1) * c.num_classes
  return total


@pytest.mark.parametrize("name", published.ROWS)
def test_rows_have_the_parameters_that_arithmetic_gives(name):
  config = row_config(name)
  params = _abstract_params(_model_key(config))
  count = sum(p.size for p in jax.tree.leaves(params))
  assert count == arithmetic_count(config)
  known = {  # The reference implementation's, auxiliary head included.
      "table3_resnet50": 49_180_908, "table3_resnet101": 68_173_036,
      "table3_resnet152": 83_816_684, "table3_resnet269": 125_697_260,
      "voc2012_resnet50": 49_081_578, "voc2012": 68_073_706,
      "cityscapes_resnet50": 49_080_038, "cityscapes": 68_072_166}
  assert count == known.get(name, count)


@pytest.mark.parametrize("name", [
    "table1_b1236_max", "table2_aux_none", "table2_aux_0.9"])
def test_rows_train(name):
  """One real step of a thin, shallow net with the row's other fields."""
  config = row_config(name)
  config.model.depth, config.model.width_multiplier = 10, 1 / 16
  config.optimizer.weight_decay = 0.0  # What moves has a gradient.
  model = create_model(config)
  rng = np.random.default_rng(0)
  state = jax.tree.map(  # Random enough, and quicker than XLA's compilation.
      lambda s: rng.normal(0, 0.1, s.shape).astype(s.dtype),
      jax.eval_shape(lambda: train_step.create_train_state(model, config)))
  state = state.replace(
      step=np.int32(0), batch_stats=jax.tree.map(abs, state.batch_stats),
      opt_state=jax.tree.map(np.zeros_like, state.opt_state))
  batch = {"image": rng.integers(0, 256, (4, 33, 33, 3), np.uint8),
           "label": rng.integers(0, 150, (4, 33, 33), np.uint8)}
  after, scalars = jax.jit(functools.partial(
      train_step.train_step, model=model, config=config)).lower(
          state, batch).compile({"xla_backend_optimization_level": "0"})(
              state, batch)
  assert scalars.pop("finite_grads").all()
  scalars = {k: float(v) for k, v in scalars.items()}
  assert np.isfinite(scalars["grad_norm"])
  weight = {"table2_aux_none": 0, "table2_aux_0.9": 0.9}.get(name, 0.4)
  assert scalars["loss"] == pytest.approx(
      scalars["main_loss"] + weight * scalars.get("aux_loss", 0), rel=1e-5)
  for (path, old), new in zip(
      jax.tree_util.tree_leaves_with_path(state.params),
      jax.tree.leaves(after.params), strict=True):
    assert (np.asarray(old) != new).any(), jax.tree_util.keystr(path)


def test_without_augmentation_a_crop_is_a_piece_of_the_photograph():
  config = row_config("table4_baseline")
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (40, 50, 3), np.uint8)
  label = rng.integers(0, 150, (40, 50), np.uint8)
  corners = set()
  for _ in range(50):
    drawn = augment.draw(rng, 40, 50, 33, config)
    crop, truth = augment.apply(drawn, image, label, 33)
    piece = np.s_[drawn.top:drawn.top + 33, drawn.left:drawn.left + 33]
    np.testing.assert_array_equal(crop, image[piece])
    np.testing.assert_array_equal(truth, label[piece])
    corners.add((drawn.top, drawn.left))
  assert len(corners) > 20


def test_a_row_without_its_dataset_says_so_before_any_work(tmp_path):
  c = row_config("cityscapes")
  c.data.data_dir = str(tmp_path / "tfds")
  with pytest.raises(DataError, match="register.*config.data.manual_dir"):
    train.train(c, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_rows_carry_their_figures():
  assert row_config("table3_resnet50").published == (
      "paper mIoU 41.68 %, paper pixel accuracy 80.04 %, semseg mIoU 41.89 %, "
      "semseg mean accuracy 52.27 %, semseg pixel accuracy 80.39 % on val")
  assert row_config("voc2012_coco").published == (
      "paper mIoU 85.4 % on test, after training on MS-COCO")
  assert not _module("ade20k").get_config().published


@pytest.mark.parametrize("arg", ["", "table3_resnet18"])
def test_a_missing_or_unknown_row_is_answered_with_all(arg):
  with pytest.raises(ValueError) as error:
    row_config(arg)
  assert arg in str(error.value)
  for name in published.ROWS:
    assert f"{name}," in f"{error.value},"
