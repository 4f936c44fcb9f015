"""Cityscapes' scores beside the official script's, on the very same files."""

import copy
import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from psp_jax import cityscapes_scores
from psp_jax.data import cityscapes_labels, taxonomy
from psp_jax.errors import DataError

ROOT = pathlib.Path(__file__).parent.parent
ID = {label.name: label.id for label in cityscapes_labels.LABELS}
FRAMES = [f"{city}_{sequence:06}_{frame:06}" for city, sequence, frame in (
    ("bonn", 0, 19), ("bonn", 1, 19), ("bonn", 12, 294), ("ulm", 0, 19),
    ("ulm", 3, 190), ("ulm", 3, 19), ("ulm", 99, 999999))]


@pytest.fixture
def official():
  return pytest.importorskip(
      "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
      reason="needs the official scorer: pip install -e '.[parity]'")


def make_frame(rng, stuff, things, guesses):
  """(prediction, truth, instanceIds), 128x256.

  Cells of stuff, boxes of things over them: single objects of all sizes,
  groups without a number, parts hidden. A tenth of the prediction is drawn
  from `guesses`; larger parts of it are one class.
  """
  truth = np.kron(rng.choice(stuff, (4, 8)), np.ones((32, 32), int))
  instances = truth.copy()
  for number in range(14):
    label = rng.choice(things)
    top, left = rng.integers(0, 110), rng.integers(0, 230)
    height, width = rng.integers(3, 60, 2)
    box = np.s_[top:top + height, left:left + width]
    truth[box] = label
    instances[box] = label if number % 5 == 4 else label * 1000 + number
  prediction = truth.copy()
  wrong = rng.random(truth.shape) < 0.1
  prediction[wrong] = rng.choice(guesses, wrong.sum())
  for guess in rng.choice(guesses, 5):
    top, left = rng.integers(0, 110), rng.integers(0, 230)
    prediction[top:top + 30, left:left + 40] = guess
  return prediction, truth, instances


def write(folder, frame, prediction, truth, instances, palette=False):
  """The three PNGs, in the official folders and under the official names."""
  city = frame.split("_")[0]
  for kind in ("guess", f"gtFine/val/{city}"):
    (folder / kind).mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(prediction.astype(np.uint8))
  if palette:
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(taxonomy.voc_palette(256).tobytes())
  image.save(folder / "guess" / f"{frame}_pred.png")
  prefix = folder / "gtFine/val" / city / f"{frame}_gtFine_"
  Image.fromarray(truth.astype(np.uint8)).save(f"{prefix}labelIds.png")
  Image.fromarray(instances.astype(np.uint16)).save(f"{prefix}instanceIds.png")


STREET = ("static", "out of roi", "road", "sidewalk", "parking", "building",
          "fence", "bridge", "pole", "polegroup", "vegetation", "sky")
OBJECTS = ("person", "rider", "car", "truck", "caravan", "motorcycle",
           "bicycle")
# A scene has (stuff, things, guesses). Nowhere in the first: terrain, bus;
# predicted, never true: train, trailer. The second has no human and no sky.
SCENES = {
    "street": (STREET, OBJECTS,
               (*STREET, *OBJECTS, "train", "trailer", "unlabeled", "wall")),
    "no human": (("road", "building", "ground"), ("car", "caravan"),
                 ("road", "car", "truck", "trailer", "tunnel", "terrain")),
}


@pytest.fixture(params=SCENES)
def dataset(tmp_path, request):
  """Seven made frames of two cities; one prediction is a palette PNG."""
  folder = tmp_path / "run[1]"
  rng = np.random.default_rng(5)
  drawn_from = [[ID[n] for n in names] for names in SCENES[request.param]]
  for i, frame in enumerate(FRAMES):
    write(folder, frame, *make_frame(rng, *drawn_from), palette=i == 2)
  (folder / "guess" / f"overlay_{FRAMES[0]}.png").write_bytes(b"")
  return folder


def test_every_score_equals_the_official_scripts(
    official, dataset, monkeypatch):
  monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # Gone in 2.4.
  args = copy.copy(official.args)
  args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, True
  args.predictionPath, args.predictionWalk = str(dataset / "guess"), None
  truths = sorted(map(str, dataset.glob("gtFine/val/*/*_labelIds.png")))
  assert len(truths) == len(FRAMES)
  expected = official.evaluateImgLists(
      [official.getPrediction(args, truth) for truth in truths], truths, args)

  out = cityscapes_scores.score_folders(
      dataset / "guess", dataset / "gtFine" / "val")
  assert len(out) == 8
  for key, value in out.items():
    if isinstance(value, dict):
      assert list(value) == list(expected[key])
      value, expected[key] = (list(d.values()) for d in (value, expected[key]))
    np.testing.assert_allclose(value, expected[key], rtol=1e-12, err_msg=key)
    assert np.isfinite(value).any(), key


def test_the_labels_are_the_official_ones(official):
  assert [tuple(label) for label in cityscapes_labels.LABELS] == [
      (o.name, o.id, o.trainId, o.category, o.hasInstances, o.ignoreInEval,
       o.color) for o in official.labels]
  assert cityscapes_labels.AVERAGE_INSTANCE_SIZES == official.args.avgClassSize


def test_the_nineteen_classes():
  t = cityscapes_labels.TAXONOMY
  assert t.class_names == (
      "road", "sidewalk", "building", "wall", "fence", "pole",
      "traffic light", "traffic sign", "vegetation", "terrain", "sky",
      "person", "rider", "car", "truck", "bus", "train", "motorcycle",
      "bicycle")
  stored = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31,
            32, 33]
  assert t.label_map[stored].tolist() == list(range(19))
  rest = np.delete(t.label_map, stored)
  assert (rest[:15] == 255).all() and rest[-1] == 255
  assert (rest[15:-1] == -1).all()
  assert t.palette.shape == (19, 3) and t.palette.dtype == np.uint8
  assert t.palette[[0, 10, 18]].tolist() == [
      [128, 64, 128], [70, 130, 180], [119, 11, 32]]


@pytest.mark.filterwarnings("error")
def test_a_worked_example():
  """A car of 4 pixels, 1 missed; one of 2, both taken for a truck."""
  car, truck, road, void = (
      ID[n] for n in ("car", "truck", "road", "unlabeled"))
  truth = np.array([[car] * 6 + [road] * 3 + [void]])
  instances = np.array([[car * 1000 + 1] * 4 + [car * 1000 + 2] * 2 + [0] * 4])
  guess = np.array([[car, car, car, road, truck, truck, road, road, car, car]])
  counts = cityscapes_scores.Counts()
  counts.add(guess, truth, instances)
  out = cityscapes_scores.scores(counts)
  # 3 of 6 cars found and a road too many; the car on void does not count.
  assert out["classScores"]["car"] == pytest.approx(3 / 7)
  assert out["classScores"]["road"] == pytest.approx(2 / 4)
  assert out["classScores"]["truck"] == 0
  assert math.isnan(out["classScores"]["unlabeled"])
  assert math.isnan(out["classScores"]["bus"])
  assert out["averageScoreClasses"] == pytest.approx((3 / 7 + 1 / 2 + 0) / 3)
  # A pixel of the first car weighs a quarter of an average car, of the
  # second a half.
  average = 12794.0202738185
  assert out["classInstScores"]["car"] == pytest.approx(
      3 / 4 * average / (2 * average + 1))
  assert out["classInstScores"]["truck"] == 0
  assert math.isnan(out["classInstScores"]["road"])
  assert out["categoryScores"]["vehicle"] == pytest.approx(5 / 7)
  assert out["categoryInstScores"]["vehicle"] == pytest.approx(
      (3 / 4 + 1) * average / (2 * average + 1))
  assert math.isnan(out["categoryScores"]["void"])
  assert math.isnan(out["categoryInstScores"]["human"])
  assert out["averageScoreCategories"] == pytest.approx((5 / 7 + 1 / 2) / 2)


def command(*args):
  return subprocess.run(
      [sys.executable, "-m", "psp_jax.cityscapes_scores", *map(str, args)],
      cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("dataset", ["street"], indirect=True)
def test_the_command_prints_tables_and_writes_json(dataset):
  truth = dataset / "gtFine" / "val"
  done = command(dataset / "guess", truth, f"--json={dataset / 'out.json'}")
  assert done.returncode == 0, done.stderr

  def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")

  written = json.loads((dataset / "out.json").read_text(),
                       parse_constant=refuse)
  scored = cityscapes_scores.score_folders(dataset / "guess", truth)
  assert written["classScores"]["bus"] is None
  assert written["classScores"]["car"] == scored["classScores"]["car"]
  assert written.keys() == scored.keys()
  rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines() if line]
  assert [row[0] for row in rows] == [
      "class", *cityscapes_labels.TAXONOMY.class_names, "mean",
      "category", "flat", "construction", "object", "nature", "sky", "human",
      "vehicle", "mean"]
  iou, instance_iou = (f"{100 * scored[f'class{kind}Scores']['car']:.2f}"
                       for kind in ("", "Inst"))
  assert ["car", iou, instance_iou] in rows and ["bus", "-", "-"] in rows
  assert rows[-1][1] == f"{100 * scored['averageScoreCategories']:.2f}"


@pytest.mark.parametrize("dataset", ["street"], indirect=True)
def test_all_that_is_wrong_is_told_at_once(dataset):
  guess, truth = dataset / "guess", dataset / "gtFine" / "val"
  of = [guess / f"{frame}_pred.png" for frame in FRAMES]
  ids = [truth / f"{f.split('_')[0]}/{f}_gtFine_labelIds.png" for f in FRAMES]
  of[0].unlink()
  of[1].write_bytes(of[1].read_bytes()[:300])  # Cut short.
  Image.fromarray(np.full((64, 256), 7, np.uint8)).save(of[2])
  Image.fromarray(np.full((128, 256), 255, np.uint8)).save(of[3])
  Image.fromarray(np.zeros((128, 256, 3), np.uint8)).save(of[4])
  (guess / "again").mkdir()
  again = guess / "again" / f"{FRAMES[5]}.png"
  Image.new("1", (256, 128)).save(again)
  Image.fromarray(np.full((128, 256), 7001, np.uint16)).save(
      str(ids[5]).replace("labelIds", "instanceIds"))
  pathlib.Path(str(ids[6]).replace("labelIds", "instanceIds")).unlink()
  Image.fromarray(np.full((128, 256), 34, np.uint8)).save(ids[6])
  done = command(guess, truth)
  assert done.returncode == 2 and not done.stdout
  lines = done.stderr.splitlines()
  assert lines[0] == "error: 10 problem(s):" and len(lines) == 11
  for words in ([ids[0], "0 predictions"], [of[1], "not a readable PNG"],
                [ids[2], "256x128, 256x64"], [of[3], "[255]", "0 to 33"],
                [of[4], "mode RGB", "one channel"],
                [ids[5], "2 predictions", "must be one"],
                [again, "mode 1;"],
                [FRAMES[5] + "_gtFine_instanceIds.png", "[7001]"],
                [ids[6], "[34]"],
                [FRAMES[6] + "_gtFine_instanceIds.png", "No such file"]):
    assert any(all(str(word) in line for word in words) for line in lines), (
        words, done.stderr)


def test_folders_that_cannot_be(tmp_path):
  with pytest.raises(DataError, match="nowhere: no such folder"):
    cityscapes_scores.score_folders(tmp_path / "nowhere", tmp_path)
  with pytest.raises(DataError, match="holds no .*labelIds.*gtFine/val"):
    cityscapes_scores.score_folders(tmp_path, tmp_path)


@pytest.mark.parametrize("args, words", [
    (["only one"], "GROUND_TRUTH_DIR"),
    (["/no/folder", "/no/truth"], "error: /no/folder: no such folder")])
def test_mistakes_on_the_command_line(args, words):
  done = command(*args)
  assert done.returncode == 2 and words in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("dataset", ["no human"], indirect=True)
def test_a_json_file_that_cannot_be_written(dataset):
  done = command(dataset / "guess", dataset / "gtFine",
                 f"--json={dataset / 'missing' / 'out.json'}")
  assert done.returncode == 2 and "mean" in done.stdout
  assert "out.json: cannot be written (No such file" in done.stderr
