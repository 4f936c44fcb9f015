"""The whole evaluation on real photographs is semseg's, number by number.

The Evaluator (device, batches of windows, matrices for resizing) beside
semseg_protocol.py (host, one window at a time, cv2, float64), both with a real
small PSPNet whose random answers vary over classes.
"""

import concurrent.futures
import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import semseg_protocol

from psp_jax import default_config, evaluate
from psp_jax.data import camvid, datasets, input_pipeline, pairs
from psp_jax.models import create_model

SINGLE = (1.0,)
SIX = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def make_config(name, num_classes, window, base_size, **fields):
  c = default_config.get_config()
  c.data.name = name
  c.data.num_threads = 1
  c.model.update({"num_classes": num_classes, "depth": 14, "dtype": "float32",
                  "width_multiplier": 1 / 16, "head_channels": 32})
  c.eval.update({"window_size": window, "base_size": base_size,
                 "window_batch": 1, "absent_classes": "zero", **fields})
  return c


def make_state(model, image):
  """Random weights, statistics too: a fresh BatchNorm's would hide mistakes.

  On `image` every class has the mean logit 0 and a spread of 2, so that the
  answers vary.
  """
  shapes = jax.eval_shape(
      lambda: model.init(jax.random.key(0), jnp.zeros((1, 65, 65, 3)), True))
  rng = np.random.default_rng(0)
  flat = {}
  for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
    kind = path[-1]
    if kind == "kernel":
      value = rng.normal(0, (2 / np.prod(leaf.shape[:-1]))**0.5, leaf.shape)
    elif kind in ("var", "scale"):
      value = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      value = rng.normal(0, 0.3, leaf.shape)
    flat[path] = value.astype(np.float32)
  state = types.SimpleNamespace(**flax.traverse_util.unflatten_dict(flat))
  head = state.params["classifier"]["conv"]
  logits = make_network(model, state)(
      (image - semseg_protocol.MEAN) / semseg_protocol.STD)
  gain = 2 / logits.std((0, 1))
  head["kernel"] = head["kernel"] * gain
  head["bias"] = (head["bias"] - logits.mean((0, 1))) * gain
  return state


def make_network(model, state):
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  apply = jax.jit(lambda x: model.apply(variables, x[None], train=False)[0])
  return lambda x: np.asarray(apply(np.asarray(x, np.float32)))


class Case:
  """A network, photographs, and what semseg answers for them."""

  def __init__(self, config, split):
    self.config, self.split = config, split
    self.model = create_model(config)
    photo = split[0]["image"]
    self.state = make_state(self.model, photo[:257, :257])
    self.network = make_network(self.model, self.state)

  def semseg(self, scales, photos):
    """semseg's predictions of the photos of these indices."""
    c = self.config.eval
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      return list(pool.map(lambda i: semseg_protocol.semseg_probabilities(
          self.network, self.split[i]["image"], scales, c.base_size,
          c.window_size, flip=True).argmax(-1), photos))

  def agreement(self, expected, photos, **fields):
    """How the Evaluator's results differ from the predictions `expected`."""
    config = self.config.copy_and_resolve_references()
    config.eval.update(fields)
    split = [self.split[i] for i in photos]
    confusion, kept = evaluate.Evaluator(self.model, config).run(
        self.state, split, keep=len(split))
    classes, labels = config.model.num_classes, [r["label"] for r in split]
    count = np.zeros((classes, classes))
    for label, prediction in zip(labels, expected, strict=True):
      known = label != 255
      np.add.at(count, (label[known], prediction[known]), 1)
    ours = evaluate.score(confusion, config)
    scores = semseg_protocol.semseg_scores(expected, labels, classes)
    equal = [k[2] == p for k, p in zip(kept, expected, strict=True)]
    return {
        "pixels": sum(e.size for e in equal),
        "pixels that differ": sum((~e).sum() for e in equal),
        "confusion": np.abs(confusion - count).max() / count.sum(),
        "scores": np.abs(np.divide(
            (ours.miou, ours.mean_accuracy, ours.pixel_accuracy), scores) - 1),
        "classes predicted": len(np.unique(np.concatenate(
            [p.ravel() for p in expected])))}


def check(found, classes):
  print(found)  # For docs/fidelity.md; shown with -rP.
  assert found["classes predicted"] >= classes  # Else little is compared.
  assert found["pixels that differ"] <= 1e-4 * found["pixels"]
  assert found["confusion"] <= 1e-4
  assert found["scores"].max() <= 1e-4


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """Eight simulated ones share two cores, and ask for eight windows each."""
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])


def ade20k(shared, data_dir):
  c = make_config("ade20k", 150, window=473, base_size=512)
  c.data.manual_dir = str(shared / "data/ade20k_sample/ADEChallengeData2016")
  c.data.data_dir = str(data_dir)
  c.data.allow_partial = True
  return Case(c, datasets.open_split(c, "val"))


def camvid_test(shared, count):
  """Evenly spread, from the files: preparing all 701 pairs takes a minute."""
  root = shared / "data/CamVid"
  found = pairs.pair_folders(root / "test", root / "testannot", [])
  chosen = input_pipeline.subset_indices(len(found), count)
  records = [{"image": found[i].image.read_bytes(),
              "label": found[i].mask.read_bytes(),
              "name": found[i].name.encode()} for i in chosen]
  c = make_config("camvid", 11, window=233, base_size=480, window_batch=4)
  return Case(c, datasets.Split(records, camvid.TAXONOMY))


@pytest.mark.parametrize(("scales", "photos"), [
    (SINGLE, [0, 1, 2]),
    (SIX, [2])])  # Of 150 classes half a minute a photograph.
def test_ade20k_is_scored_as_semseg_scores_it(
    shared, data_dir, scales, photos):
  case = ade20k(shared, data_dir)
  check(case.agreement(case.semseg(scales, photos), photos, scales=scales),
        classes=80)


@pytest.mark.parametrize(("scales", "photos"), [
    (SINGLE, range(10)), (SIX, range(0, 10, 2))])
def test_camvid_is_scored_as_semseg_scores_it(shared, scales, photos):
  case = camvid_test(shared, 10)
  check(case.agreement(case.semseg(scales, photos), photos, scales=scales),
        classes=9)


@pytest.mark.parametrize("window", ["sliding", "whole"])
def test_camvid_as_mmsegmentation_averages(shared, window):
  case = camvid_test(shared, 3)
  expected = [semseg_protocol.mmseg_probabilities(
      case.network, case.split[i]["image"], (0.75, 1.0), 320,
      233 if window == "sliding" else None, flip=True).argmax(-1)
              for i in range(3)]
  found = case.agreement(
      expected, range(3), scales=(0.75, 1.0), base_size=320, window=window,
      base_side="short", average="logits")
  check(found, classes=9)
