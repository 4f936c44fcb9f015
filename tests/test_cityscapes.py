"""Cityscapes in its published layout: what is read, told and scored.

Masks are drawn from the same rectangles as polygons.json describes; the
official scripts draw, convert and score them too.
"""

import json
import math
import pathlib
import subprocess
import sys
import zlib

import numpy as np
import pytest
from pictures import jpeg
from PIL import Image

from psp_jax import (
  checkpoint,
  cityscapes_scores,
  default_config,
  submission,
  train,
  train_step,
)
from psp_jax.data import cityscapes, cityscapes_labels, datasets
from psp_jax.errors import ConfigError, DataError
from psp_jax.models import create_model

ID = {label.name: label.id for label in cityscapes_labels.LABELS}
THINGS = {label.name for label in cityscapes_labels.LABELS
          if label.has_instances}
HEIGHT, WIDTH = 32, 64
ROOT = pathlib.Path(__file__).parent.parent
CORRUPT = "troisdorf_000000_000073"
FRAMES = {
    "train": ["aachen_000000_000019", "aachen_000001_000019",
              "zurich_000121_000019"],
    "val": ["frankfurt_000000_000294", "frankfurt_000001_000294",
            "lindau_000000_000019", "munster_000173_000019"],
    "test": ["berlin_000000_000019", "munich_000397_000019"],
    "train_extra": ["augsburg_000000_000000", CORRUPT,
                    "troisdorf_000000_000074"],
}


def nested(frame):
  return f"{frame.split('_')[0]}/{frame}"


def draw_objects(frame):
  """[(label as annotators wrote it, (left, top, right, bottom))].

  All 34 labels that are stored occur, licence plates that are not, single
  objects and groups, some of them partly hidden.
  """
  rng = np.random.default_rng(zlib.crc32(frame.encode()))
  stuff = [name for name in ID if name not in THINGS]
  things = sorted(THINGS - {"license plate"})
  rng.shuffle(stuff)
  cells = [(name, (i % 8 * 8, i // 8 * 8, i % 8 * 8 + 7, i // 8 * 8 + 7))
           for i, name in enumerate([*stuff, "road", "static", *stuff[:6]])]
  boxes = []
  for i, name in enumerate([*things, *things, "license plate", "car", "car"]):
    left, top = int(rng.integers(0, 54)), int(rng.integers(0, 24))
    group = "group" if i % 7 == 3 else ""
    boxes.append((name + group, (left, top, left + int(rng.integers(2, 9)),
                                 top + int(rng.integers(2, 7)))))
  # A class of objects that is mostly hidden still has a pixel of its own.
  last = [(name, (2 * i, 31, 2 * i + 1, 31)) for i, name in enumerate(things)]
  return cells + boxes + last


def paint(objects):
  """(labelIds, instanceIds); later objects hide earlier ones."""
  labels = np.zeros((HEIGHT, WIDTH), np.uint8)
  instances = np.zeros((HEIGHT, WIDTH), np.uint16)
  numbers = dict.fromkeys(THINGS, 0)
  for name, (left, top, right, bottom) in objects:
    # "polegroup" is a label of its own, "cargroup" is cars without a number.
    single = name if name in ID else name.removesuffix("group")
    if ID[single] < 0:
      continue
    box = np.s_[top:bottom + 1, left:right + 1]
    labels[box] = instances[box] = ID[single]
    if name in THINGS:
      instances[box] = 1000 * ID[single] + numbers[name]
      numbers[name] += 1
  return labels, instances


def save(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


def make_cityscapes(root, splits=tuple(FRAMES)):
  for split in splits:
    for frame in FRAMES[split]:
      objects = draw_objects(frame)
      labels, instances = paint(objects)
      colours = np.array([label.colour for label in cityscapes_labels.STORED],
                         np.uint8)[labels]
      noise = np.random.default_rng(labels.sum()).integers(0, 9, colours.shape)
      image = np.minimum(colours + noise, 255).astype(np.uint8)
      save(root / f"leftImg8bit/{split}/{nested(frame)}_leftImg8bit.png",
           np.zeros_like(image) if frame == CORRUPT else image)
      kinds = {"train": ["gtFine", "gtCoarse"], "val": ["gtFine", "gtCoarse"],
               "test": ["gtFine"], "train_extra": ["gtCoarse"]}[split]
      for kind in kinds:
        prefix = root / kind / split / f"{nested(frame)}_{kind}_"
        ids, singles = labels.copy(), instances
        if split == "test":  # As published: nothing but a frame.
          ids[:], singles = 3, np.full_like(instances, 3)
        elif split != "train_extra" and kind == "gtCoarse":
          ids[::2], singles = 0, np.zeros_like(instances)
        names = [f"{prefix}{name}.png" for name in (
            "labelIds", "instanceIds", "labelTrainIds", "color")]
        arrays = (ids, singles, np.full_like(ids, 77),
                  np.dstack([colours, np.full_like(labels, 255)]))
        for name, array in zip(names, arrays, strict=True):
          save(root / name, array)
        polygons = [{"label": name, "polygon": [[a, b], [c, b], [c, d], [a, d]]}
                    for name, (a, b, c, d) in objects]
        (root / f"{prefix}polygons.json").write_text(json.dumps(
            {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": polygons}))
  (root / "README").write_text("The Cityscapes Dataset\n")
  return root


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return make_cityscapes(tmp_path_factory.mktemp("cityscapes"))


@pytest.fixture(scope="module")
def config(source, tmp_path_factory):
  return configured(source, tmp_path_factory.mktemp("prepared"))


def configured(root, data_dir):
  c = default_config.get_config()
  c.data.name = "cityscapes"
  c.data.manual_dir = str(root)
  c.data.data_dir = str(data_dir)
  c.data.allow_partial = True
  return c


def records_of(split):
  return [split[i] for i in range(len(split))]


def files_of(source, split, frame):
  """(image, labelIds, instanceIds)."""
  kind = "gtCoarse" if split == "train_extra" else "gtFine"
  prefix = f"{source}/{kind}/{split}/{nested(frame)}_{kind}"
  return (f"{source}/leftImg8bit/{split}/{nested(frame)}_leftImg8bit.png",
          f"{prefix}_labelIds.png", f"{prefix}_instanceIds.png")


# ---- What is read.


@pytest.mark.parametrize("split", ["train", "val", "train_extra"])
def test_every_pixel_is_the_official_train_id(source, config, split):
  official = pytest.importorskip(
      "cityscapesscripts.helpers.labels",
      reason="needs the official labels: pip install -e '.[parity]'")
  records = datasets.open_split(config, split)
  assert records.labelled
  seen = set()
  for record in records_of(records):
    image, labels, _ = files_of(source, split, record["name"].split("/")[1])
    stored = np.array(Image.open(labels))
    seen |= set(stored.flat)
    expected = [official.id2label[i].trainId for i in stored.flat]
    assert record["label"].dtype == np.uint8
    assert record["label"].ravel().tolist() == expected
    np.testing.assert_array_equal(record["image"], np.array(Image.open(image)))
  assert seen == set(range(34))


@pytest.mark.parametrize("split", FRAMES)
def test_each_frame_is_there_once_by_its_city_but_the_black_one(config, split):
  records = records_of(datasets.open_split(config, split))
  assert sorted(r["name"] for r in records) == sorted(
      nested(frame) for frame in FRAMES[split] if frame != CORRUPT)


def test_val_alone_has_instances_as_pillow_reads_them(source, config):
  for name in FRAMES:
    split = datasets.open_split(config, name)
    assert split.has_instances == (name == "val")
    for record in records_of(split):
      assert ("instances" in record) == (name == "val")
      if name == "val":
        path = files_of(source, name, record["name"].split("/")[1])[2]
        expected = np.array(Image.open(path))
        assert record["instances"].dtype == np.uint16
        assert expected.max() > 33_000 and (expected == 18).any()
        np.testing.assert_array_equal(record["instances"], expected)


def test_test_is_images_only_for_its_masks_are_dummies(source, config):
  split = datasets.open_split(config, "test")
  assert not split.labelled and len(split) == 2
  for i, record in enumerate(records_of(split)):
    assert (record["label"] == 255).all()
    assert record["label"].shape == (HEIGHT, WIDTH)
    assert split.encoded(i)["label"] == b""
    image = files_of(source, "test", record["name"].split("/")[1])[0]
    np.testing.assert_array_equal(record["image"], np.array(Image.open(image)))


def test_a_sum_of_splits_is_one_after_the_other(config):
  parts = [records_of(datasets.open_split(config, name))
           for name in ("train", "train_extra")]
  both = datasets.open_split(config, "train+train_extra")
  assert both.labelled and not both.has_instances
  assert [r["name"] for r in records_of(both)] == [
      r["name"] for part in parts for r in part]
  for got, expected in zip(records_of(both), sum(parts, []), strict=True):
    np.testing.assert_array_equal(got["image"], expected["image"])
    np.testing.assert_array_equal(got["label"], expected["label"])
  assert not datasets.open_split(config, "train+val").has_instances
  assert not datasets.open_split(config, "val+test").labelled


def test_the_files_bytes_are_kept(source, config):
  for name in FRAMES:
    split = datasets.open_split(config, name)
    for i in range(len(split)):
      stored = split.encoded(i)
      files = files_of(source, name, stored["name"].decode().split("/")[1])
      kept = {"train": 2, "val": 3, "test": 1, "train_extra": 2}[name]
      for key, path in zip(("image", "label", "instances")[:kept], files):
        with open(path, "rb") as file:
          assert stored[key] == file.read(), (name, key)


def test_a_folder_of_val_alone_will_do(tmp_path):
  c = configured(make_cityscapes(tmp_path / "in", ["val"]), tmp_path / "out")
  assert len(datasets.open_split(c, "val")) == 4
  with pytest.raises(ConfigError, match="no split 'train'; it has 'val'"):
    datasets.open_split(c, "train")


# ---- What is told.


def complaint(root, tmp_path):
  with pytest.raises(DataError) as error:
    datasets.prepare(configured(root, tmp_path / "out"))
  assert not list((tmp_path / "out").rglob("dataset_info.json"))
  return str(error.value)


def test_files_that_are_missing_or_too_many_are_named_together(tmp_path):
  root = make_cityscapes(tmp_path / "in")
  gone = [files_of(root, "train", FRAMES["train"][1])[1],
          files_of(root, "val", FRAMES["val"][0])[1],
          files_of(root, "val", FRAMES["val"][0])[2],
          files_of(root, "val", FRAMES["val"][2])[2],
          files_of(root, "train_extra", FRAMES["train_extra"][2])[1]]
  for path in gone:
    (root / path).unlink()
  # Nobody asks for these.
  (root / files_of(root, "train", FRAMES["train"][0])[2]).unlink()
  (root / files_of(root, "train_extra", CORRUPT)[1]).unlink()
  aachen = root / "leftImg8bit/train/aachen"
  strays = [aachen / "aachen_000000_000019_rightImg8bit.png",
            aachen / "aachen_000000_000019_leftImg8bit (1).png",
            aachen / "aachen_000002_000019_leftImg8bit.jpg",
            root / "leftImg8bit/test/berlin.png"]
  for path in strays:
    path.write_bytes(jpeg())
  (aachen / "Thumbs.db").write_bytes(b"")  # No image: no harm.
  (aachen / "._aachen_000000_000019_leftImg8bit.png").write_bytes(b"")
  text = complaint(root, tmp_path)
  assert text.startswith("9 problems:") and len(text.splitlines()) == 10
  for path in gone:
    [line] = [line for line in text.splitlines() if f"  {path}:" in line]
    kind = "gtCoarse" if "gtCoarse" in path else "gtFine"
    assert "no such file" in line and "_leftImg8bit.png needs it" in line
    assert f"unpack {kind}'s archive into {root}" in line
  for path in strays:
    assert f"  {path}: is no *_leftImg8bit.png; remove it" in text


def test_train_ids_are_no_substitute_for_label_ids(tmp_path):
  """They are made by a script, and hold less than scores need."""
  root = make_cityscapes(tmp_path / "in", ["train"])
  for path in root.glob("gtFine/train/*/*_labelIds.png"):
    path.unlink()
  text = complaint(root, tmp_path)
  assert text.startswith("3 problems:")
  for frame in FRAMES["train"]:
    assert f"{frame}_gtFine_labelIds.png: no such file" in text


def test_ids_and_sizes_that_cannot_be_are_named(tmp_path):
  root = make_cityscapes(tmp_path / "in", ["val"])
  labels = root / files_of(root, "val", FRAMES["val"][1])[1]
  save(labels, np.full((HEIGHT, WIDTH), 34, np.uint8))
  instances = root / files_of(root, "val", FRAMES["val"][2])[2]
  save(instances, np.zeros((HEIGHT, WIDTH + 1), np.uint16))
  text = complaint(root, tmp_path)
  assert f"{labels}: label values [34] are out of range (allowed: 0-33, " in (
      text)
  assert f"{instances} is {WIDTH + 1}x{HEIGHT} but" in text


@pytest.mark.parametrize("folder, words", [
    ("leftImg8bit/train", "holds no *_leftImg8bit.png; unpack"),
    ("gtFine/train", "holds no leftImg8bit/train, val or test; set "
     "config.data.manual_dir")])
def test_folders_without_images_are_named(tmp_path, folder, words):
  (tmp_path / "in" / folder).mkdir(parents=True)
  text = complaint(tmp_path / "in", tmp_path)
  assert words in text and str(tmp_path / "in") in text


def test_cities_sum_up_to_the_published_sizes():
  sizes = cityscapes.Cityscapes.SPLIT_SIZES
  assert sizes == {"train": 2975, "val": 500, "test": 1525,
                   "train_extra": 20_000 - 3}
  for split, cities in cityscapes.CITY_SIZES.items():
    assert sum(cities.values()) == sizes[split]
  names = [set(cities) for cities in cityscapes.CITY_SIZES.values()]
  assert [len(n) for n in names] == [18, 3, 6] and len(set.union(*names)) == 27


@pytest.fixture
def small_sizes(monkeypatch):
  """As if the fixture were the whole dataset."""
  monkeypatch.setattr(cityscapes.Cityscapes, "SPLIT_SIZES", {
      "train": 3, "val": 4, "test": 2, "train_extra": 2})
  monkeypatch.setattr(cityscapes, "CITY_SIZES", {
      "train": {"aachen": 2, "zurich": 1},
      "val": {"frankfurt": 2, "lindau": 1, "munster": 1},
      "test": {"berlin": 1, "munich": 1}})


def test_a_whole_dataset_needs_no_leave(tmp_path, small_sizes):
  c = configured(make_cityscapes(tmp_path / "in"), tmp_path / "out")
  c.data.allow_partial = False
  assert len(datasets.open_split(c, "train")) == 3


def test_a_part_is_refused_with_the_cities_that_lack_frames(
    tmp_path, small_sizes):
  root = make_cityscapes(tmp_path / "in")
  for split, frame in (("train", FRAMES["train"][0]),
                       ("val", FRAMES["val"][2]),
                       ("train_extra", FRAMES["train_extra"][0])):
    (root / files_of(root, split, frame)[0]).unlink()
  new = "val/paris/paris_000000_000000"
  for kind, name in (("leftImg8bit", "leftImg8bit"),
                     ("gtFine", "gtFine_labelIds"),
                     ("gtFine", "gtFine_instanceIds")):
    save(root / kind / f"{new}_{name}.png",
         np.zeros((HEIGHT, WIDTH), np.uint8))
  c = configured(root, tmp_path / "out")
  c.data.allow_partial = False
  with pytest.raises(DataError) as error:
    datasets.prepare(c)
  lines = str(error.value).splitlines()[1:]
  assert len(lines) == 3
  assert "train: 2 of 3 images, aachen has 1 of 2; complete it" in lines[0]
  assert "allow_partial (--allow_partial)" in lines[0]
  # As many as there should be, not the right ones.
  assert "val: 4 of 4 images, " in lines[1] and "paris has 1 of 0" in lines[1]
  assert "train_extra: 1 of 2 images" in lines[2]


def test_a_part_that_was_allowed_once_is_not_taken_for_the_whole(
    source, config):
  datasets.prepare(config)
  whole = configured(source, config.data.data_dir)
  whole.data.allow_partial = False
  with pytest.raises(DataError, match="train: 3 of 2,975 images"):
    datasets.prepare(whole)


def test_without_a_folder_it_says_where_to_register(tmp_path):
  with pytest.raises(DataError) as error:
    datasets.prepare(configured("", tmp_path))
  for words in ("register at cityscapes-dataset.com", "gtCoarse.zip",
                "leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip",
                "leftImg8bit_trainextra.zip", "--manual_dir=FOLDER"):
    assert words in str(error.value)


# ---- What is scored.


def test_the_official_scripts_draw_the_same_masks():
  """So the frames here are such as Cityscapes' own are."""
  annotation = pytest.importorskip(
      "cityscapesscripts.helpers.annotation",
      reason="needs the official scripts: pip install -e '.[parity]'")
  from cityscapesscripts.preparation import json2instanceImg, json2labelImg
  for frame in FRAMES["val"]:
    drawn = annotation.Annotation()
    objects = draw_objects(frame)
    drawn.fromJsonText(json.dumps({
        "imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": [
            {"label": name, "polygon": [[a, b], [c, b], [c, d], [a, d]]}
            for name, (a, b, c, d) in objects]}))
    labels, instances = paint(objects)
    np.testing.assert_array_equal(
        labels, json2labelImg.createLabelImage(drawn, "ids"))
    np.testing.assert_array_equal(
        instances, json2instanceImg.createInstanceImage(drawn, "ids"))


def test_the_truth_is_rebuilt_from_instances(source, config, monkeypatch):
  """All 34 labels: class ids alone would not tell a caravan from a wall."""
  counted = []
  monkeypatch.setattr(
      cityscapes_scores.Counts, "add",
      lambda self, prediction, truth, instances: counted.append(truth))
  for record in records_of(datasets.open_split(config, "val")):
    cityscapes_scores.Counts().add_record(record, record["label"] * 0)
    labels = files_of(source, "val", record["name"].split("/")[1])[1]
    np.testing.assert_array_equal(counted[-1], np.array(Image.open(labels)))
  assert len(counted) == 4
  assert {ID["polegroup"], ID["caravan"], ID["trailer"]} <= set(
      np.unique(counted))


def random_predictions(split):
  """Right in most places: every class is hit, every class is missed."""
  rng = np.random.default_rng(2)
  for record in records_of(split):
    truth = record["label"]
    guess = rng.integers(0, 19, truth.shape).astype(np.uint8)
    yield record, np.where((rng.random(truth.shape) < 0.6) & (truth != 255),
                           truth, guess)


def assert_same_scores(got, expected):
  """`got` is of a JSON file: NaN is null there."""
  assert list(got) == list(expected)
  for key, value in expected.items():
    pairs_ = (zip(got[key].items(), value.items(), strict=True)
              if isinstance(value, dict) else [((key, got[key]), (key, value))])
    for (name, ours), (other, theirs) in pairs_:
      assert name == other
      if math.isnan(theirs):
        assert ours is None, (key, name)
      else:
        assert ours == pytest.approx(theirs, rel=1e-12), (key, name)


def test_records_are_scored_as_the_written_files_are(source, config, tmp_path):
  split = datasets.open_split(config, "val")
  counts = cityscapes_scores.Counts()
  for record, prediction in random_predictions(split):
    counts.add_record(record, prediction)
    submission.write(tmp_path, split.taxonomy, record["name"], prediction)
  expected = cityscapes_scores.score_folders(tmp_path, source / "gtFine/val")
  got = cityscapes_scores.plain(cityscapes_scores.scores(counts))
  assert_same_scores(got, expected)
  for kind in ("class", "category"):
    values = list(expected[f"{kind}InstScores"].values())
    assert sum(0 < value < 1 for value in values) == {
        "class": 8, "category": 2}[kind]


def test_the_command_finds_what_is_written_for_the_server(
    source, config, tmp_path):
  split = datasets.open_split(config, "val")
  for record, prediction in random_predictions(split):
    submission.write(tmp_path / "predictions", split.taxonomy, record["name"],
                     prediction)
  found = tmp_path.rglob("*.png")
  assert sorted(path.relative_to(tmp_path).as_posix() for path in found) == [
      f"predictions/{nested(frame)}.png" for frame in FRAMES["val"]]
  done = subprocess.run(
      [sys.executable, "-m", "psp_jax.cityscapes_scores",
       tmp_path / "predictions", source / "gtFine/val"],
      cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr
  assert "bicycle" in done.stdout


def test_instances_of_no_label_are_named_not_counted(config):
  record = datasets.open_split(config, "val")[0]
  record["instances"][3, :5] = 34, 255, 34_000, 7_001, 65_535
  with pytest.raises(DataError) as error:
    cityscapes_scores.Counts().add_record(record, record["label"] * 0)
  assert str(error.value).startswith(
      f"{record['name']}: instanceIds [34, 255, 7001, 34000, 65535] are "
      "unknown")


@pytest.fixture
def run(tiny_config, config, tmp_path):
  """(config, workdir) whose checkpoint is of random weights."""
  c = tiny_config
  c.model.num_classes = 19
  for field in ("name", "manual_dir", "data_dir"):
    c.data[field] = config.data[field]
  c.eval.flip = False
  c.eval.write_predictions = True
  model = create_model(c)
  checkpoints = checkpoint.Checkpoints(tmp_path, 1)
  checkpoints.save(train_step.create_train_state(model, c))
  checkpoints.close()
  return c, tmp_path


def test_a_runs_scores_are_those_of_its_written_files(source, run, capsys):
  c, workdir = run
  train.evaluate_checkpoint(c, workdir)
  console = capsys.readouterr().out
  result = json.loads((workdir / "eval.json").read_text())
  expected = cityscapes_scores.score_folders(
      workdir / "predictions", source / "gtFine/val")
  assert_same_scores(result["cityscapes"], expected)
  assert 0 < expected["averageScoreInstClasses"] < 1
  assert 0 < expected["averageScoreInstCategories"] < 1
  for key in ("averageScoreClasses", "averageScoreInstClasses",
              "averageScoreCategories", "averageScoreInstCategories"):
    assert f"{key} {expected[key]:.2%}" in console
  # No label is predicted that is not one of the 19: the official IoU is the
  # ordinary one.
  for name, iou in result["per_class_iou"].items():
    assert result["cityscapes"]["classScores"][name] == pytest.approx(iou)


@pytest.mark.parametrize("split", ["train", "val+train", "test"])
def test_splits_without_instances_have_no_such_scores(run, capsys, split):
  c, workdir = run
  c.eval.split = split
  train.evaluate_checkpoint(c, workdir)
  assert "cityscapes" not in json.loads((workdir / "eval.json").read_text())
  assert "averageScore" not in capsys.readouterr().out
