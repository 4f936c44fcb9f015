"""COCO in its published layout: which pixels its instances become."""

import json
import sys

import cv2
import numpy as np
import pytest
from pictures import jpeg, picture

from psp_jax import default_config
from psp_jax.data import coco_voc, datasets, voc2012
from psp_jax.errors import DataError

# https://cocodataset.org: the 80 names by their ids, which have gaps.
CATEGORIES = dict(zip(
    [i for i in range(1, 91)
     if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)],
    """person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic
    light,fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,
    cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,
    frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,
    skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,
    bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,
    chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,
    keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,
    vase,scissors,teddy bear,hair drier,toothbrush""".split(","), strict=True))
CATEGORIES = {i: " ".join(name.split()) for i, name in CATEGORIES.items()}
NUMBER = {name: i for i, name in CATEGORIES.items()}
# VOC's ids of COCO's names; everything else is background.
VOC = {"airplane": 1, "bicycle": 2, "bird": 3, "boat": 4, "bottle": 5,
       "bus": 6, "car": 7, "cat": 8, "chair": 9, "cow": 10,
       "dining table": 11, "dog": 12, "horse": 13, "motorcycle": 14,
       "person": 15, "potted plant": 16, "sheep": 17, "couch": 18,
       "train": 19, "tv": 20}
HEIGHT, WIDTH = 60, 90


def rectangle(left, top, right, bottom):
  """A polygon of the pixels left to right - 1, top to bottom - 1."""
  return [left, top, right, top, right, bottom, left, bottom]


def filled(left, top, right, bottom):
  inside = np.zeros((HEIGHT, WIDTH), bool)
  inside[top:bottom, left:right] = True
  return inside


def runs(inside):
  """Uncompressed: lengths of 0s and 1s by turns, down the columns."""
  flat = inside.ravel(order="F").astype(int)
  ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
  return {"counts": np.diff([0, *ends]).tolist(), "size": list(inside.shape)}


def compressed(inside):
  mask = pytest.importorskip(
      "pycocotools.mask", reason="needs pycocotools: pip install -e '.[coco]'")
  encoded = mask.encode(np.asfortranarray(inside.astype(np.uint8)))
  return {"counts": encoded["counts"].decode(), "size": encoded["size"]}


def annotated(name, shape, iscrowd=0, area=2_000.0):
  return {"segmentation": shape, "iscrowd": iscrowd, "area": area,
          "bbox": [0, 0, 1, 1], "category_id": NUMBER[name]}


BIG = [rectangle(5, 5, 50, 40)]


def make_coco(root, train, val=(), year="2017", below=""):
  """COCO's folders and JSON files; train and val: annotations by image."""
  (root / "annotations").mkdir(parents=True)
  for split, images in (("train", train), ("val", val)):
    part = split + year
    folder = root / below / part
    folder.mkdir(parents=True)
    listed, annotations = [], []
    for i, annotated_ in enumerate(images):
      number = 9 + 16 * i
      prefix = f"COCO_{part}_" if year == "2014" else ""
      name = f"{prefix}{number:012}.jpg"
      (folder / name).write_bytes(jpeg(picture(HEIGHT, WIDTH)))
      listed.append({
          "license": 3, "file_name": name, "height": HEIGHT, "width": WIDTH,
          "coco_url": f"http://images.cocodataset.org/{part}/{name}",
          "date_captured": "2013-11-14 17:02:52", "id": number,
          "flickr_url": "http://farm7.staticflickr.com/1.jpg"})
      annotations += [a | {"image_id": number,
                           "id": 900_000 + 100 * i + j}
                      for j, a in enumerate(annotated_)]
    # As in COCO, in an order of its own.
    annotations.sort(key=lambda a: a["id"] * 7919 % 104_729)
    json_path(root, part).write_text(json.dumps({
        "info": {"description": f"COCO {year} Dataset", "version": "1.0",
                 "url": "http://cocodataset.org", "year": int(year),
                 "contributor": "COCO Consortium",
                 "date_created": "2017/09/01"},
        "licenses": [{"id": 3, "name": "Attribution-NonCommercial-NoDerivs "
                      "License", "url": "http://creativecommons.org/"}],
        "images": listed, "annotations": annotations,
        "categories": [{"supercategory": "any", "id": i, "name": name}
                       for i, name in CATEGORIES.items()]}))
  return root


def json_path(root, part="train2017"):
  return root / "annotations" / f"instances_{part}.json"


def config(root, data_dir):
  c = default_config.get_config()
  c.data.name = "coco_voc"
  c.data.manual_dir = str(root)
  c.data.data_dir = str(data_dir)
  c.data.allow_partial = True
  return c


def prepared(root, tmp_path, split="train"):
  """{name: record} of what `root` holds."""
  records = datasets.open_split(config(root, tmp_path / "out"), split)
  return {records[i]["name"]: records[i] for i in range(len(records))}


@pytest.fixture
def coco():
  return pytest.importorskip(
      "pycocotools.coco", reason="needs pycocotools: pip install -e '.[coco]'")


@pytest.fixture
def only(coco, tmp_path):
  """annotations of one image -> its label, through files and records."""
  counts = iter(range(99))

  def read(*annotations):
    place = tmp_path / str(next(counts))
    root = make_coco(place / "in", [annotations], [[annotated("cat", BIG)]])
    [record] = prepared(root, place).values()
    assert record["image"].shape == (HEIGHT, WIDTH, 3)
    return record["label"]
  return read


# ---- Which pixels.


def test_all_eighty_categories_become_vocs_or_background(coco, tmp_path):
  assert len(CATEGORIES) == 80 and NUMBER["toothbrush"] == 90
  assert len(VOC) == 20 and set(VOC) <= set(NUMBER)
  root = make_coco(tmp_path / "in", [
      # The cow says that the picture counts.
      [annotated("cow", [rectangle(0, 50, 90, 60)]), annotated(name, BIG)]
      for name in CATEGORIES.values()], [[annotated("cat", BIG)]])
  records = prepared(root, tmp_path)
  assert len(records) == 80
  for i, name in enumerate(CATEGORIES.values()):
    label = records[f"{9 + 16 * i:012}"]["label"]
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[50:] = 10
    expected[5:40, 5:50] = VOC.get(name, 0)
    np.testing.assert_array_equal(label, expected, err_msg=name)


def test_the_classes_are_those_of_voc():
  names = coco_voc.CocoVoc.TAXONOMY.class_names
  assert coco_voc.CocoVoc.TAXONOMY is voc2012.TAXONOMY
  voc = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa",
         "potted plant": "pottedplant", "dining table": "diningtable",
         "tv": "tvmonitor"}
  for name, i in VOC.items():
    assert names[i] == voc.get(name, name)


def test_an_instance_of_several_polygons(only):
  label = only(annotated("dog", [rectangle(2, 3, 20, 30),
                                 rectangle(15, 20, 40, 45),
                                 rectangle(70, 0, 90, 60)]))
  expected = 12 * (filled(2, 3, 20, 30) | filled(15, 20, 40, 45)
                   | filled(70, 0, 90, 60))
  np.testing.assert_array_equal(label, expected)


def test_polygons_are_filled_as_they_are_elsewhere(only):
  """A star that is not convex, beside OpenCV; edges are a matter of taste."""
  angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
  radii = np.where(np.arange(10) % 2, 12.3, 28.7)
  corners = np.stack([45 + radii * np.cos(angles),
                      30 + radii * np.sin(angles)], -1)
  label = only(annotated("horse", [corners.round(2).ravel().tolist()]))
  # Pixel (0, 0) covers 0 to 1 in COCO, -1/2 to 1/2 in OpenCV.
  fixed = ((corners - 0.5) * 256).round().astype(np.int32)
  canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
  cv2.fillPoly(canvas, [fixed], 13, shift=8)
  edge = np.zeros_like(canvas)
  cv2.polylines(edge, [fixed], True, 1, 2, shift=8)
  assert set(np.unique(label)) == {0, 13} and (edge == 0).mean() > 0.8
  assert ((label == 13) & (edge == 0)).sum() > 400
  np.testing.assert_array_equal(label[edge == 0], canvas[edge == 0])


@pytest.mark.parametrize("encode", [runs, compressed])
def test_runs_that_are_no_crowd(only, encode):
  rng = np.random.default_rng(0)
  inside = np.kron(rng.random((12, 18)) < 0.4, np.ones((5, 5))) > 0
  label = only(annotated("bird", encode(inside)))
  np.testing.assert_array_equal(label, 3 * inside)


A, B, C, D = ((5, 5, 50, 40), (30, 20, 80, 55), (40, 0, 60, 60),
              (0, 30, 90, 50))


@pytest.mark.parametrize("encode", [
    runs, compressed, lambda inside: [rectangle(*D)]],
    ids=["runs", "compressed", "polygon"])
@pytest.mark.parametrize("first", [True, False])
def test_a_crowd_is_ignored_where_there_is_no_instance(only, encode, first):
  """Whichever comes first, and whichever class the crowd is of."""
  people = annotated("person", [rectangle(*A)])
  for name in ("person", "cat"):
    crowd = annotated(name, encode(filled(*D)), iscrowd=1)
    label = only(*((crowd, people) if first else (people, crowd)))
    expected = np.zeros((HEIGHT, WIDTH), int)
    expected[filled(*D)] = 255
    expected[filled(*A)] = 15
    np.testing.assert_array_equal(label, expected)


def test_a_crowd_of_what_voc_does_not_know_is_background(only):
  label = only(annotated("dog", [rectangle(*A)]),
               annotated("banana", runs(filled(*D)), iscrowd=1))
  np.testing.assert_array_equal(label, 12 * filled(*A))


@pytest.mark.parametrize("names", [
    ("cat", "dog", "sofa"), ("cat", "dog", "cat"), ("cat", "cat", "dog"),
    ("dog", "cat", "cat"), ("cat", "cat", "cat")])
def test_overlaps_of_two_classes_are_ignored(only, names):
  names = ["couch" if name == "sofa" else name for name in names]
  boxes = [filled(*box) for box in (A, B, C)]
  label = only(*(annotated(name, [rectangle(*box)])
                 for name, box in zip(names, (A, B, C), strict=True)))
  expected = np.zeros((HEIGHT, WIDTH), int)
  for y, x in np.ndindex(expected.shape):
    here = {VOC[name] for name, box in zip(names, boxes, strict=True)
            if box[y, x]}
    expected[y, x] = {0: 0, 1: max(here, default=0)}.get(len(here), 255)
  assert (boxes[0] & boxes[1] & boxes[2]).any()
  np.testing.assert_array_equal(label, expected)


def restated(masks, classes, crowds):
  """The rule of coco_voc's docstring, a pixel at a time."""
  label = np.zeros(masks[0].shape, int)
  for y, x in np.ndindex(label.shape):
    here = [i for i, mask in enumerate(masks) if mask[y, x]]
    found = {classes[i] for i in here if not crowds[i]}
    if len(found) == 1:
      label[y, x] = found.pop()
    elif here:
      label[y, x] = 255
  return label


def test_any_mixture_in_any_order_beside_pycocotools_own(coco, tmp_path):
  """COCO.annToMask of each annotation, put together by the rule."""
  rng = np.random.default_rng(7)
  names = ["person", "dog", "tv", "truck"]
  images = []
  for _ in range(6):
    mine = []
    for _ in range(rng.integers(3, 9)):
      name, kind = rng.choice(names), rng.integers(4)
      left, top = rng.integers(0, 60), rng.integers(0, 40)
      spread = rng.uniform(8, 40, (int(rng.integers(1, 4)), 5, 2))
      polygons = [(p + (left, top)).clip(0, (WIDTH, HEIGHT)).round(2).ravel()
                  .tolist() for p in spread]
      inside = rng.random((HEIGHT, WIDTH)) < 0.2
      shape = [polygons, polygons, runs(inside), compressed(inside)][kind]
      mine.append(annotated(name, shape, iscrowd=int(kind > 1)))
    images.append([*mine, annotated("dog", [rectangle(*A)])])
  shuffled = [[image[i] for i in rng.permutation(len(image))]
              for image in images]
  val = [[annotated("cat", BIG)]]
  root = make_coco(tmp_path / "in", images, val)
  records = prepared(root, tmp_path)
  again = prepared(make_coco(tmp_path / "again/in", shuffled, val),
                   tmp_path / "again")
  theirs = coco.COCO(str(json_path(root)))
  seen = set()
  for number in theirs.getImgIds():
    mine = [a for a in theirs.loadAnns(theirs.getAnnIds([number]))
            if CATEGORIES[a["category_id"]] in VOC]
    expected = restated(
        [theirs.annToMask(a) for a in mine],
        [VOC[CATEGORIES[a["category_id"]]] for a in mine],
        [a["iscrowd"] for a in mine])
    name = f"{number:012}"
    np.testing.assert_array_equal(records[name]["label"], expected)
    np.testing.assert_array_equal(again[name]["label"], expected)
    seen |= set(np.unique(expected))
  assert seen == {0, 12, 15, 20, 255}


# ---- Which images.


def test_images_count_above_a_thousand_pixels(coco, tmp_path):
  """Of VOC's classes, together, without crowds."""
  kept = [
      [annotated("cat", BIG, area=1000.5)],
      [annotated("cat", BIG, area=600), annotated("dog", BIG, area=600)],
      [annotated("cat", BIG, area=2000), annotated("dog", BIG, 1, area=5000)]]
  dropped = [
      [], [annotated("cat", BIG, area=1000)],
      [annotated("cat", BIG, area=900), annotated("truck", BIG, area=9000)],
      [annotated("cat", BIG, area=900), annotated("cat", runs(filled(*A)), 1,
                                                  area=9000)]]
  root = make_coco(tmp_path / "in", [*kept, *dropped],
                   [[annotated("cat", BIG)]])
  for i in range(3, 7):  # Nobody asks for these.
    (root / f"train2017/{9 + 16 * i:012}.jpg").unlink()
  assert sorted(prepared(root, tmp_path)) == [
      "000000000009", "000000000025", "000000000041"]


@pytest.mark.parametrize("year, below, prefix", [
    ("2017", "", ""), ("2017", "images", ""),
    ("2014", "", "COCO_train2014_"), ("2014", "images", "COCO_train2014_")])
def test_both_years_and_both_layouts_are_found(
    coco, tmp_path, year, below, prefix):
  root = make_coco(tmp_path / "in", [[annotated("cat", BIG)]] * 2,
                   [[annotated("tv", BIG)]], year, below)
  c = config(root, tmp_path / "out")
  records = datasets.open_split(c, "train")
  assert sorted(records[i]["name"] for i in range(2)) == [
      f"{prefix}000000000009", f"{prefix}000000000025"]
  assert records.labelled and not records.has_instances
  [record] = [datasets.open_split(c, "val")[i] for i in range(1)]
  np.testing.assert_array_equal(
      record["label"], 20 * filled(5, 5, 50, 40))
  stored = datasets.open_split(c, "train").encoded(0)
  path = root / below / f"train{year}" / f"{stored['name'].decode()}.jpg"
  assert stored["image"] == path.read_bytes()


def test_val_alone_will_do(coco, tmp_path):
  root = make_coco(tmp_path / "in", [[]], [[annotated("cat", BIG)]])
  json_path(root).unlink()
  (root / "train2017/000000000009.jpg").unlink()
  (root / "train2017").rmdir()
  assert len(prepared(root, tmp_path, "val")) == 1


# ---- What is told.


def complaint(root, tmp_path, **changes):
  c = config(root, tmp_path / "out")
  c.data.update(changes)
  with pytest.raises(DataError) as error:
    datasets.prepare(c)
  assert not list((tmp_path / "out").rglob("dataset_info.json"))
  return str(error.value)


@pytest.fixture
def good(coco, tmp_path):
  return make_coco(tmp_path / "in", [[annotated("cat", BIG)]] * 3,
                   [[annotated("cat", BIG)]])


def test_images_that_are_listed_but_missing_are_named(good, tmp_path):
  gone = [good / "train2017/000000000009.jpg",
          good / "train2017/000000000041.jpg",
          good / "val2017/000000000009.jpg"]
  for path in gone:
    path.unlink()
  lines = complaint(good, tmp_path).splitlines()
  assert lines[0] == "3 problems:"
  for path, line in zip(gone, lines[1:], strict=True):
    part = path.parent.name
    assert line == (f"  {path}: no such file; {json_path(good, part)} lists "
                    "it")


def test_an_image_of_another_size_than_listed_is_named(good, tmp_path):
  path = good / "train2017/000000000025.jpg"
  path.write_bytes(jpeg(picture(30, 40)))
  assert complaint(good, tmp_path) == (
      f"{path} is 40x30 but its mask {json_path(good)} is 90x60")


@pytest.mark.parametrize("change", [
    lambda text: text[:len(text) // 2], lambda text: "", lambda text: "[1, 2]",
    lambda text: "null", lambda text: '{"images": [], "annotations": []}',
    lambda text: text.replace('"category_id"', '"kind"'),
    lambda text: text.replace('"iscrowd"', '"crowd"'),
    lambda text: text.replace('"area": 2000.0', '"area": "large"'),
    lambda text: text.replace('"area": 2000.0', '"area": null'),
    lambda text: text.replace('"file_name"', '"file"'),
    lambda text: text.replace('"height": 60', '"height": []'),
    lambda text: text.replace('"category_id": 17', '"category_id": 12'),
    lambda text: text.replace('"images": [{', '"images": [7, {'),
    lambda text: text.replace('"annotations": [{', '"annotations": ["a", {'),
    lambda text: text.replace('"name": "cat"', '"name": ["cat"]'),
], ids=range(15))
@pytest.mark.parametrize("year", ["2017", "2014"])
def test_annotations_that_are_none_are_named(coco, tmp_path, change, year):
  root = make_coco(tmp_path / "in", [[annotated("cat", BIG)]] * 3,
                   [[annotated("cat", BIG)]], year)
  path = json_path(root, f"train{year}")
  before = path.read_text()
  assert change(before) != before
  path.write_text(change(before))
  text = complaint(root, tmp_path)
  assert text.startswith(f"{path}: not COCO's instance annotations (")
  assert f"unpack annotations_trainval{year}.zip again" in text


@pytest.mark.parametrize("shape", [
    None, [], [[]], [["a"] * 6], {"counts": [3, 4], "size": [HEIGHT, WIDTH]},
    {"counts": [HEIGHT * WIDTH + 1], "size": [HEIGHT, WIDTH]},
    {"counts": [HEIGHT * WIDTH], "size": [WIDTH, HEIGHT]},
    {"counts": "no such thing", "size": [HEIGHT, WIDTH]}, {"counts": [5400]}],
    ids=range(9))
def test_a_shape_that_is_none_is_named_by_its_annotation(
    coco, tmp_path, shape):
  root = make_coco(
      tmp_path / "in", [[annotated("cat", BIG)],
                        [annotated("cat", BIG), annotated("dog", shape)]],
      [[annotated("cat", BIG)]])
  text = complaint(root, tmp_path)
  assert text.startswith(f"{json_path(root)}: annotation 900101 has no usable "
                         "segmentation (")


def test_missing_annotations_say_what_to_unpack(good, tmp_path):
  for part in ("train2017", "val2017"):
    json_path(good, part).unlink()
  text = complaint(good, tmp_path)
  for part in ("train2017", "val2017"):
    assert (f"{json_path(good, part)}: no such file; {good / part} needs it; "
            "unpack annotations_trainval2017.zip" in text)


def test_another_folder_is_named(coco, tmp_path):
  (tmp_path / "in").mkdir()
  text = complaint(tmp_path / "in", tmp_path)
  assert text.startswith(f"{tmp_path / 'in'}: holds no train2017, val2017, ")
  assert "config.data.manual_dir" in text


def test_a_split_without_a_large_instance_is_named(coco, tmp_path):
  root = make_coco(tmp_path / "in", [[annotated("cat", BIG)]],
                   [[annotated("truck", BIG)]])
  text = complaint(root, tmp_path)
  assert text.startswith(f"{json_path(root, 'val2017')}: lists no image with "
                         "more than 1,000 pixels")


def test_without_pycocotools_it_says_once_how_to_get_it(
    good, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pycocotools", None)
  monkeypatch.delitem(sys.modules, "pycocotools.mask", raising=False)
  text = complaint(good, tmp_path)
  assert text == ("coco_voc needs pycocotools, which draws COCO's shapes: pip "
                  "install -e '.[coco]'")


def test_what_is_prepared_is_read_without_pycocotools(
    good, tmp_path, monkeypatch):
  assert len(prepared(good, tmp_path)) == 3
  monkeypatch.setitem(sys.modules, "pycocotools", None)
  assert len(prepared(good, tmp_path)) == 3


def test_a_part_is_refused_by_the_number_of_listed_images(good, tmp_path):
  lines = complaint(good, tmp_path, allow_partial=False).splitlines()
  assert len(lines) == 3
  assert lines[1].startswith(
      f"  {json_path(good)}: lists 3 of train2017's 118,287 images; ")
  assert lines[2].startswith(
      f"  {json_path(good, 'val2017')}: lists 1 of val2017's 5,000 images; ")
  assert lines[1].endswith("allow_partial (--allow_partial) where a part will "
                           "do")


def test_what_is_listed_is_counted_not_what_is_large(
    coco, tmp_path, monkeypatch):
  monkeypatch.setattr(coco_voc, "LISTED", {"train2017": 2, "val2017": 1})
  root = make_coco(tmp_path / "in", [[annotated("cat", BIG)], []],
                   [[annotated("cat", BIG)]])
  c = config(root, tmp_path / "out")
  c.data.allow_partial = False
  for _ in range(2):  # Also where it is prepared already.
    assert len(datasets.open_split(c, "train")) == 1


def test_a_part_that_was_allowed_once_is_not_taken_for_the_whole(
    good, tmp_path):
  assert len(prepared(good, tmp_path)) == 3
  c = config(good, tmp_path / "out")
  c.data.allow_partial = False
  with pytest.raises(DataError, match="lists 3 of train2017's 118,287"):
    datasets.prepare(c)
