"""Every config builds its model and says what it reproduces."""

import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from psp_jax.data import datasets
from psp_jax.models import create_model

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
VARIANTS = [("ade20k", ""), ("camvid", ""), ("camvid", "cpu"),
            ("camvid", "baseline"), ("scenes", "")]


def _module(name):
  spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_all_configs_are_tested():
  assert {p.stem for p in FOLDER.glob("*.py")} == {n for n, _ in VARIANTS}


@pytest.mark.parametrize("name, arg", VARIANTS)
def test_config_builds_its_model_for_its_dataset(name, arg):
  config = _module(name).get_config(arg)
  assert isinstance(config, ml_collections.ConfigDict)
  assert config.model.num_classes == datasets.taxonomy(
      config.data.name).num_classes
  model = create_model(config)
  images = jnp.zeros((1, 65, 65, 3))
  logits, aux = jax.eval_shape(
      lambda: model.init_with_output(jax.random.key(0), images,
                                     train=True)[0])
  assert logits.shape == aux.shape == (1, 65, 65, config.model.num_classes)


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


@pytest.mark.parametrize("name", ["ade20k", "camvid", "scenes"])
def test_docstring_gives_the_command_and_the_cost(name):
  text = _module(name).__doc__
  assert f"python -m psp_jax.main --config=configs/{name}.py" in text
  assert re.search(r"reproduce", text, re.I)
  assert re.search(r"hour|minute", text)


@pytest.mark.parametrize("name", ["ade20k", "camvid", "scenes"])
def test_unknown_argument_is_refused(name):
  with pytest.raises(ValueError, match="nonsense"):
    _module(name).get_config("nonsense")
