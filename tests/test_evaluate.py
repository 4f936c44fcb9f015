"""The evaluator counts what the network says of each image by itself.

The oracle applies the model to one image after the other, without the
evaluator's groups, devices and padding, and counts pixels in numpy.
"""

import csv
import json
import pathlib
import subprocess
import sys
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runner import free_port

from psp_jax import (
  default_config,
  evaluate,
  inference,
  metrics,
  sharding,
  sliding_window,
  stitching,
  train_step,
)
from psp_jax.data import taxonomy
from psp_jax.errors import ConfigError
from psp_jax.models import create_model

ROOT = pathlib.Path(__file__).parent.parent
CLASSES = 4
TAXONOMY = taxonomy.Taxonomy(
    ("one", "two", "three", "four"),
    np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200), (99, 99, 0)], np.uint8),
    taxonomy.make_label_map(0, CLASSES))
MEAN = np.array([0.485, 0.456, 0.406]) * 255
STD = np.array([0.229, 0.224, 0.225]) * 255


def config(**changes):
  c = default_config.get_config()
  c.model.num_classes = CLASSES
  c.model.depth = 10
  c.model.width_multiplier = 0.0625
  c.data.crop_size = 33
  c.data.num_threads = 2
  c.eval.window = "whole"
  c.eval.base_size = 0
  c.eval.flip = False
  c.eval.window_batch = 1
  c.eval.update(changes)
  return c


class FakeSplit:
  """Records of the given sizes; class 3 is never true, much is ignored."""

  taxonomy = TAXONOMY

  def __init__(self, sizes):
    rng = np.random.default_rng(3)
    self._records = []
    for i, (height, width) in enumerate(sizes):
      coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
      label = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
      self._records.append({"image": cv2.resize(coarse, (width, height)),
                            "label": label, "name": str(i)})

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    return self._records[index]


# Runs of one size and single ones; more than one device's worth of each.
SPLIT = FakeSplit([(33, 41)] * 3 + [(25, 33)] + [(33, 41)] + [(25, 33)] * 10)


@pytest.fixture(scope="module")
def model():
  return create_model(config())


@pytest.fixture(scope="module")
def state(model):
  """Random, with a classifier that does not say the same everywhere."""
  variables = jax.device_get(train_step.initialize(model, config()))
  head = variables["params"]["classifier"]["conv"]
  rng = np.random.default_rng(0)
  head["kernel"] = rng.normal(size=head["kernel"].shape).astype(np.float32)
  return types.SimpleNamespace(**variables)


@pytest.fixture(scope="module")
def network(model, state):
  """Normalised (h, w, 3) to probabilities (h, w, classes), one image."""
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  apply = jax.jit(lambda x: jax.nn.softmax(
      model.apply(variables, x[None], train=False))[0])
  return lambda x: np.asarray(apply(jnp.asarray(x, jnp.float32)))


@pytest.fixture(scope="module")
def predictions(network):
  """Of the images of SPLIT, each in one piece."""
  found = [network((SPLIT[i]["image"] - MEAN) / STD).argmax(-1)
           for i in range(len(SPLIT))]
  shares = np.bincount(np.concatenate([f.ravel() for f in found]),
                       minlength=CLASSES)
  assert np.sort(shares)[-2] > 0.05 * shares.sum()  # Else little is tested.
  return found


def count(labels, predictions):
  matrix = np.zeros((CLASSES, CLASSES), np.int64)
  for label, prediction in zip(labels, predictions, strict=True):
    known = label != 255
    np.add.at(matrix, (label[known], prediction[known]), 1)
  return matrix


def assert_equal_counts(confusion, expected):
  assert confusion.dtype == np.int64
  # Rounding may tip a pixel or two at which two classes are equally likely.
  np.testing.assert_array_equal(confusion.sum(1), expected.sum(1))
  assert np.abs(confusion - expected).sum() <= 4


@pytest.fixture(scope="module")
def evaluator(model):
  return evaluate.Evaluator(model, config())


def test_the_matrix_is_that_of_each_image_alone(evaluator, state, predictions):
  confusion, kept = evaluator.run(state, SPLIT)
  labels = [SPLIT[i]["label"] for i in range(len(SPLIT))]
  assert_equal_counts(confusion, count(labels, predictions))
  assert confusion.sum() == sum((label != 255).sum() for label in labels)
  assert not confusion[3].any()  # Never true...
  assert not kept


def test_more_windows_at_a_time_do_not_change_it(model, state, predictions):
  evaluator = evaluate.Evaluator(model, config(window_batch=4))
  confusion, _ = evaluator.run(state, SPLIT)
  labels = [SPLIT[i]["label"] for i in range(len(SPLIT))]
  assert_equal_counts(confusion, count(labels, predictions))


@pytest.mark.parametrize(("limit", "chosen"), [
    (1, [0]), (3, [0, 7, 14]), (8, [0, 2, 4, 6, 8, 10, 12, 14]),
    (0, range(15)), (99, range(15))])
def test_a_subset_is_scored_and_shown(evaluator, state, predictions, limit,
                                      chosen):
  confusion, kept = evaluator.run(state, SPLIT, limit, keep=2)
  assert_equal_counts(confusion, count(
      [SPLIT[i]["label"] for i in chosen], [predictions[i] for i in chosen]))
  assert len(kept) == min(2, len(chosen))
  for i in range(len(kept)):
    np.testing.assert_array_equal(kept[i][0], SPLIT[chosen[-i]]["image"])


def test_what_is_kept_is_spread_over_the_images(evaluator, state, predictions):
  _, kept = evaluator.run(state, SPLIT, keep=3)
  assert len(kept) == 3
  for (image, truth, guess), i in zip(kept, (0, 7, 14), strict=True):
    np.testing.assert_array_equal(image, SPLIT[i]["image"])
    np.testing.assert_array_equal(truth, SPLIT[i]["label"])
    assert guess.shape == truth.shape and guess.dtype == np.uint8
    assert (guess != predictions[i]).sum() <= 2


@pytest.mark.parametrize("keep", [0, 3])
def test_every_prediction_is_handed_on(evaluator, state, predictions, keep):
  found = {}
  _, kept = evaluator.run(
      state, SPLIT, keep=keep, on_prediction=lambda record, guess:
      found.__setitem__(record["name"], guess))
  assert len(kept) == keep
  assert list(found) == [str(i) for i in range(15)]
  for guess, expected in zip(found.values(), predictions, strict=True):
    assert guess.shape == expected.shape and guess.dtype == np.uint8
    assert (guess != expected).sum() <= 2


def test_every_image_is_handed_on_with_its_own_matrix(
    evaluator, state, predictions):
  names = []

  def look(record, confusion, prediction):
    i = len(names)
    names.append(record["name"])
    assert_equal_counts(confusion.astype(np.int64), count(
        [SPLIT[i]["label"]], [predictions[i]]))
    assert (prediction() != predictions[i]).sum() <= 2
    assert prediction() is prediction()  # Fetched once.

  total, _ = evaluator.run(state, SPLIT, on_scored=look)
  assert names == [str(i) for i in range(15)]
  np.testing.assert_array_equal(total, evaluator.run(state, SPLIT)[0])


def test_the_same_evaluator_scores_again_and_another_state(
    evaluator, state, predictions):
  first, _ = evaluator.run(state, SPLIT, 3)
  other = types.SimpleNamespace(
      batch_stats=state.batch_stats, params=jax.tree.map(
          lambda p: p, state.params))
  bias = np.array([0, 0, 1e6, 0], np.float32)
  other.params["classifier"]["conv"] = dict(
      other.params["classifier"]["conv"], bias=bias)
  always_two, _ = evaluator.run(other, SPLIT, 3)
  np.testing.assert_array_equal(always_two[:, 2], first.sum(1))
  np.testing.assert_array_equal(evaluator.run(state, SPLIT, 3)[0], first)


def test_kernels_are_prepacked_once_for_a_split(model, state, monkeypatch):
  calls = []
  whole = inference.prepack
  monkeypatch.setattr(inference, "prepack", lambda *args, **options: (
      calls.append(options) or whole(*args, **options)))
  evaluator = evaluate.Evaluator(model, config(window="sliding", flip=True))
  seen = []
  forward = evaluator._inference._forward
  evaluator._inference._forward = lambda variables, windows: (
      seen.append((set(variables), windows.shape))
      or forward(variables, windows))
  evaluator.run(state, SPLIT, 2)
  evaluator.run(state, SPLIT, 2)
  devices = len(jax.local_devices())
  assert calls == [{"shape": (2 * devices, 33, 33, 3)}]
  assert seen[0] == ({"params", "batch_stats", "prepacked"},
                     (devices, 33, 33, 3))


def test_windows_mirrors_and_padding(model, state, network):
  """33-pixel windows: one, padded, for the first size, two for the second."""
  split = FakeSplit([(20, 33)] * 2 + [(33, 45)] * 3)
  evaluator = evaluate.Evaluator(model, config(window="sliding", flip=True))

  def both(window):
    return (network(window) + network(window[:, ::-1])[:, ::-1]) / 2

  guesses = []
  for i in range(len(split)):
    image = (split[i]["image"] - MEAN) / STD
    if i < 2:
      window = np.zeros((33, 33, 3))
      window[6:26] = image  # 13 rows are missing, 6 of them above.
      guesses.append(both(window)[6:26].argmax(-1))
    else:
      total = np.zeros((33, 45, CLASSES))
      seen = np.zeros((1, 45, 1))
      for left in (0, 12):
        total[:, left:left + 33] += both(image[:, left:left + 33])
        seen[:, left:left + 33] += 1
      guesses.append((total / seen).argmax(-1))
  confusion, kept = evaluator.run(state, split, keep=5)
  assert_equal_counts(confusion, count(
      [split[i]["label"] for i in range(5)], guesses))
  for (_, _, guess), expected in zip(kept, guesses, strict=True):
    assert (guess != expected).sum() <= 2


def test_a_large_image_is_counted_block_by_block():
  rng = np.random.default_rng(0)
  likely = rng.random((300, 260, CLASSES)).astype(np.float32)
  label = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (300, 260))
  blocks = list(np.stack([stitching.to_blocks(likely[..., c], 0)
                          for c in range(CLASSES)], -1))
  assert len(blocks) == 2
  predictions, confusion = evaluate._score(blocks, label, CLASSES)
  guess = stitching.from_blocks(predictions, *label.shape)
  assert guess.dtype == np.uint8
  np.testing.assert_array_equal(guess, likely.argmax(-1))
  np.testing.assert_array_equal(
      confusion, count([label], [likely.argmax(-1)]))


def test_devices_share_the_windows_and_change_nothing(
    model, state, monkeypatch):
  split = FakeSplit([(20, 33), (33, 45), (70, 41), (33, 45), (25, 90)])
  c = config(window="sliding", flip=True, scales=(0.5, 1.0, 1.5), base_size=60)
  assert len(jax.local_devices()) == 8
  eight, kept = evaluate.Evaluator(model, c).run(state, split, keep=5)
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
  one, kept_by_one = evaluate.Evaluator(model, c).run(state, split, keep=5)
  assert_equal_counts(eight, one)
  for (image, _, guess), (same, _, other) in zip(
      kept, kept_by_one, strict=True):
    assert image is same
    assert (guess != other).sum() <= 2


@pytest.mark.parametrize(("space", "window"), [
    (2, "sliding"), (8, "sliding"), (8, "whole")])
def test_devices_share_the_rows_and_change_nothing(
    model, state, monkeypatch, window, space):
  """Of images, and of windows, whose rows do not divide."""
  split = FakeSplit([(33, 41), (25, 33), (70, 41)])
  c = config(window=window, flip=True, scales=(1.0, 1.5))
  c.mesh.space = space
  shared, kept = evaluate.Evaluator(model, c).run(state, split, keep=3)
  monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
  one, kept_by_one = evaluate.Evaluator(model, c).run(state, split, keep=3)
  assert_equal_counts(shared, one)
  for (_, _, guess), (_, _, other) in zip(kept, kept_by_one, strict=True):
    assert (guess != other).sum() <= 2


@pytest.mark.parametrize(("data", "space", "local", "total", "expected"), [
    (-1, 1, 8, 8, (8, 1)), (-1, 2, 8, 8, (4, 2)), (-1, 8, 4, 16, (1, 4)),
    (-1, 8, 1, 1, (1, 1)), (2, -1, 4, 8, (1, 4)), (-1, 3, 4, 12, (4, 1))])
def test_rows_are_split_over_a_processs_own_devices(
    data, space, local, total, expected):
  c = config()
  c.mesh.data, c.mesh.space = data, space
  mesh = inference.local_mesh(c, jax.devices()[:local], total)
  assert (mesh.shape["data"], mesh.shape["space"]) == expected


def test_mirror_images_stay_on_the_device_of_their_windows(model, state):
  mesh = sharding.create_mesh(8, 1)
  forward = inference.compiled_forward(
      model, sliding_window.Protocol.from_config(config(flip=True)), mesh, 33)
  variables = {"params": state.params, "batch_stats": state.batch_stats}
  windows = jax.ShapeDtypeStruct((16, 33, 33, 3), jnp.float32)
  text = forward.lower(variables, windows).compile().as_text()
  for moved in ("all-gather", "all-to-all", "collective-permute"):
    assert moved not in text, moved


def test_an_unknown_kind_of_window_is_refused(model):
  with pytest.raises(ConfigError, match="config.eval.window='tiles'.*'whole'"):
    evaluate.Evaluator(model, config(window="tiles"))


# ---- What is written.


CONFUSION = np.array([[30, 10, 0, 0], [5, 15, 0, 0], [0, 0, 40, 0],
                      [0, 0, 0, 0]])


@pytest.mark.parametrize(("absent", "miou", "accuracy"), [
    ("skip", (30 / 45 + 15 / 30 + 1) / 3, (0.75 + 0.75 + 1) / 3),
    ("zero", (30 / 45 + 15 / 30 + 1) / 4, (0.75 + 0.75 + 1) / 4)])
def test_scores_treat_absent_classes_as_configured(absent, miou, accuracy):
  scores = evaluate.score(CONFUSION, config(absent_classes=absent))
  assert scores.miou == pytest.approx(miou)
  assert scores.mean_accuracy == pytest.approx(accuracy)
  assert scores.pixel_accuracy == pytest.approx(85 / 100)


def written(tmp_path, scores, kept=()):
  how = sliding_window.Protocol((0.75, 1.0), True, 33, 2 / 3, 60)
  evaluate.write_results(tmp_path, scores, TAXONOMY, how, 12, 345, kept,
                         "camvid", "test")

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  return json.loads((tmp_path / "eval.json").read_text(),
                    parse_constant=refuse)


def test_the_result_as_json(tmp_path):
  assert written(tmp_path, metrics.scores(CONFUSION)) == {
      "dataset": "camvid", "split": "test",
      "miou": pytest.approx(13 / 18), "mean_accuracy": pytest.approx(2.5 / 3),
      "pixel_accuracy": pytest.approx(0.85),
      "final_score": pytest.approx((13 / 18 + 0.85) / 2),
      "per_class_iou": {"one": pytest.approx(2 / 3), "two": 0.5, "three": 1.0,
                        "four": None},
      "per_class_accuracy": {"one": 0.75, "two": 0.75, "three": 1.0,
                             "four": None},
      "num_images": 12, "step": 345,
      "protocol": {"scales": [0.75, 1.0], "flip": True, "window": 33,
                   "base_size": 60, "stride_fraction": 2 / 3,
                   "base_side": "long", "average": "probabilities",
                   "absent_classes": "skip"}}
  assert not (tmp_path / "contact_sheet.png").exists()


def test_where_all_is_ignored_the_result_is_still_json(tmp_path):
  result = written(tmp_path, metrics.scores(np.zeros((4, 4))))
  assert result["miou"] is result["mean_accuracy"] is None
  assert result["pixel_accuracy"] is result["final_score"] is None
  assert result["per_class_iou"] == dict.fromkeys(TAXONOMY.class_names)
  assert result["per_class_accuracy"] == result["per_class_iou"]


def test_the_matrix_as_a_table(tmp_path):
  names = ("one", 'a "b", c', "dot;", "Straße")
  evaluate.write_confusion(tmp_path, CONFUSION, names)
  with open(tmp_path / "confusion.csv", encoding="utf-8", newline="") as file:
    (corner, *columns), *rows = csv.reader(file)
  assert corner == "truth \\ prediction" and tuple(columns) == names
  assert tuple(row[0] for row in rows) == names
  np.testing.assert_array_equal(
      np.array([row[1:] for row in rows], int), CONFUSION)


def test_the_contact_sheet_is_a_picture_with_the_image_in_it(tmp_path):
  record = SPLIT[0]
  written(tmp_path, metrics.scores(CONFUSION),
          [(record["image"], record["label"], record["label"])])
  sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))[..., ::-1]
  fit = cv2.matchTemplate(sheet.astype(np.float32),
                          record["image"].astype(np.float32), cv2.TM_SQDIFF)
  y, x = np.unravel_index(fit.argmin(), fit.shape)
  height, width = record["label"].shape
  np.testing.assert_array_equal(
      sheet[y:y + height, x:x + width], record["image"])


# ---- Several processes.

_SUMS = """
import sys
import jax
import numpy as np
from psp_jax import cityscapes_scores, evaluate

port, process = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", 2, int(process))
pixels = np.array([[2**40 + 1, 7, -1], [2**32, 2**31, 2**53]]) + int(process)
weights = np.array([1 / 3, 1e-9, 2.0**53])[int(process):]
counts = cityscapes_scores.Counts()
counts.confusion[33, 5] = 2**33 + int(process)
counts.class_hits[26] = 0.1 + int(process)
total = counts.summed(evaluate.sum_over_processes)
print(evaluate.sum_over_processes(pixels.T).tolist(),
      evaluate.sum_over_processes(weights[:2]).tolist(),
      total.confusion[33, 5], total.confusion.sum(), total.class_hits[26],
      total.class_hits.sum(), sep="; ")
"""


def test_sums_over_two_processes_are_exact():
  """All 64 bits of integers and floats, and the array's shape."""
  port = free_port()
  running = [subprocess.Popen(
      [sys.executable, "-c", _SUMS, str(port), str(i)], cwd=ROOT,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
      for i in range(2)]
  try:
    done = [process.communicate(timeout=120) for process in running]
  finally:
    for process in running:
      process.kill()
  pixels = [[2**41 + 3, 2**33 + 1], [15, 2**32 + 1], [-1, 2**54 + 1]]
  weights = [1 / 3 + 1e-9, 1e-9 + 2.0**53]
  expected = "; ".join(map(str, (pixels, weights, 2**34 + 1, 2**34 + 1,
                                 0.1 + 1.1, 0.1 + 1.1)))
  for (out, err), process in zip(done, running, strict=True):
    assert process.returncode == 0, err
    assert out.splitlines()[-1] == expected


def test_one_process_sums_nothing():
  array = np.array([[2**40 + 1, -3]])
  np.testing.assert_array_equal(evaluate.sum_over_processes(array), array)
