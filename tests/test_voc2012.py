"""VOC 2012 and SBD in their own layout, against Pillow and SciPy."""

import re

import numpy as np
import pytest
import scipy.io
from PIL import Image

from psp_jax import default_config, train
from psp_jax.data import datasets, voc2012
from psp_jax.errors import ConfigError, DataError

# SBD has images of VOC's train (a) and val (d), and its own.
TRAIN, VAL, TEST = ["2007_a", "2007_b", "2008_c"], ["2007_d"], ["2008_t"]
SBD_TRAIN, SBD_VAL = ["2007_a", "2008_e", "2009_f"], ["2007_d", "2010_g"]


def write_voc(root):
  """VOCdevkit, as its two archives unpack."""
  rng = np.random.default_rng(0)
  voc = root / "VOCdevkit" / "VOC2012"
  for folder in ("JPEGImages", "SegmentationClass", "SegmentationObject",
                 "ImageSets/Segmentation", "Annotations"):
    (voc / folder).mkdir(parents=True)
  # Of the official palette, from the development kit's rule.
  palette = []
  for i in range(256):
    colour = [0, 0, 0]
    for bit in range(8):
      for channel in range(3):
        colour[channel] |= ((i >> (3 * bit + channel)) & 1) << (7 - bit)
    palette += colour
  for name in TRAIN + VAL + TEST + ["2008_e", "2010_g", "2011_unlabelled"]:
    pixels = rng.integers(0, 256, (30, 41, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(voc / "JPEGImages" / f"{name}.jpg")
  for name in TRAIN + VAL:
    ids = rng.choice(np.array([*range(21), 255], np.uint8), (30, 41))
    mask = Image.fromarray(ids)
    mask.putpalette(palette)
    mask.save(voc / "SegmentationClass" / f"{name}.png")
  lists = voc / "ImageSets" / "Segmentation"
  for split, names in (("train", TRAIN), ("val", VAL), ("test", TEST),
                       ("trainval", TRAIN + VAL)):
    (lists / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
  return voc


def write_sbd(root):
  rng = np.random.default_rng(1)
  sbd = root / "benchmark_RELEASE" / "dataset"
  for folder in ("img", "cls", "inst"):
    (sbd / folder).mkdir(parents=True)
  for name in {*SBD_TRAIN, *SBD_VAL}:
    pixels = rng.integers(0, 256, (30, 41, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(sbd / "img" / f"{name}.jpg")
    ids = rng.integers(0, 21, (30, 41)).astype(np.uint8)
    boundaries = np.empty((20, 1), object)
    boundaries[:] = [[np.zeros((0, 0))]] * 20
    scipy.io.savemat(sbd / "cls" / f"{name}.mat", {"GTcls": {
        "Boundaries": boundaries, "Segmentation": ids,
        "CategoriesPresent": np.unique(ids[ids > 0])}}, do_compression=True)
  (sbd / "train.txt").write_text("\n".join(SBD_TRAIN) + "\n")
  (sbd / "val.txt").write_text("\n".join(SBD_VAL) + "\n")
  return sbd


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("voc")
  write_voc(root)
  write_sbd(root)
  return root


def config(tmp_path, root, partial=True):
  c = default_config.get_config()
  c.data.name = "voc2012"
  c.data.manual_dir = str(root)
  c.data.data_dir = str(tmp_path / "prepared")
  c.data.allow_partial = partial
  c.model.num_classes = 21
  return c


def expected_mask(root, name):
  """By Pillow and SciPy, in other ways than the builder's."""
  png = root / "VOCdevkit/VOC2012/SegmentationClass" / f"{name}.png"
  if png.exists():
    with Image.open(png) as image:
      assert image.mode == "P"
      return np.array(image)
  mat = scipy.io.loadmat(
      root / "benchmark_RELEASE/dataset/cls" / f"{name}.mat",
      struct_as_record=False, squeeze_me=True)
  return mat["GTcls"].Segmentation


def names_of(split):
  return [split[i]["name"] for i in range(len(split))]


@pytest.mark.parametrize("split, names", [
    ("train", TRAIN), ("val", VAL), ("trainval", TRAIN + VAL),
    ("sbd", ["2008_e", "2009_f", "2010_g"]),
    ("train_aug", TRAIN + ["2008_e", "2009_f", "2010_g"]),
    ("train_aug+val", TRAIN + ["2008_e", "2009_f", "2010_g"] + VAL)])
def test_every_split_pixel_by_pixel(tmp_path_factory, root, split, names):
  base = tmp_path_factory.getbasetemp() / "voc_shared"
  records = datasets.open_split(config(base, root), split)
  assert sorted(names_of(records)) == sorted(names)
  assert records.labelled and records.taxonomy.num_classes == 21
  voc = root / "VOCdevkit/VOC2012/JPEGImages"
  for i in range(len(records)):
    record = records[i]
    np.testing.assert_array_equal(
        record["label"], expected_mask(root, record["name"]))
    path = voc / f"{record['name']}.jpg"
    if not path.exists():
      path = root / "benchmark_RELEASE/dataset/img" / path.name
    with Image.open(path) as image:
      difference = np.abs(np.array(image).astype(int) - record["image"])
    assert difference.max() <= 3  # Two decoders of one JPEG.
    assert records.encoded(i)["image"] == path.read_bytes()


def test_the_border_stays_255_and_sbd_has_none(tmp_path, root):
  c = config(tmp_path, root)
  own, sbd = (datasets.open_split(c, s) for s in ("train", "sbd"))
  assert all((own[i]["label"] == 255).any() for i in range(3))
  assert not any((sbd[i]["label"] == 255).any() for i in range(3))


def test_where_both_have_a_mask_vocs_own_is_taken(tmp_path, root):
  records = datasets.open_split(config(tmp_path, root), "train_aug")
  index = names_of(records).index("2007_a")
  mat = scipy.io.loadmat(root / "benchmark_RELEASE/dataset/cls/2007_a.mat")
  assert (records[index]["label"] != mat["GTcls"]["Segmentation"][0, 0]).any()


def test_test_images_have_no_masks_and_train_nothing(tmp_path, root):
  c = config(tmp_path, root)
  records = datasets.open_split(c, "test")
  assert names_of(records) == TEST and not records.labelled
  assert (records[0]["label"] == 255).all()
  assert records[0]["label"].shape == records[0]["image"].shape[:2]
  c.data.train_split = "train+test"
  with pytest.raises(ConfigError, match="train_split='train.test'.*no masks"):
    train.train(c, tmp_path / "run")
  c.data.train_split, c.eval.split = "train", "test"
  with pytest.raises(ConfigError, match="eval.write_predictions=True"):
    train.train(c, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("inner", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_the_folder_may_be_named_further_in(tmp_path, root, inner):
  c = config(tmp_path, root / inner)
  assert len(datasets.open_split(c, "val")) == 1


def test_without_sbd_train_aug_is_not_there(tmp_path):
  write_voc(tmp_path)
  c = config(tmp_path, tmp_path)
  assert len(datasets.open_split(c, "trainval")) == 4
  with pytest.raises(ConfigError) as error:
    datasets.open_split(c, "train_aug")
  assert "no split 'train_aug' (train+sbd)" in str(error.value)
  assert "'trainval'" in str(error.value)


def test_real_sizes_are_asserted(tmp_path, root):
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, root, partial=False))
  text = str(error.value)
  for words in ("train: 3 of 1,464", "val: 1 of 1,449", "sbd: 3 of 9,118",
                "test: 1 of 1,456"):
    assert words in text
  assert "allow_partial" in text
  sizes = voc2012.Voc2012.SPLIT_SIZES
  assert sizes["train"] + sizes["sbd"] == 10_582  # train_aug.
  assert sizes["train"] + sizes["val"] == 2_913  # trainval.


def test_what_was_prepared_in_part_is_not_taken_for_the_whole(tmp_path, root):
  datasets.prepare(config(tmp_path, root))
  with pytest.raises(DataError, match="(?s)part of the dataset.*3 of 1,464"):
    datasets.prepare(config(tmp_path, root, partial=False))


def test_every_missing_and_bad_file_is_named(tmp_path):
  voc, sbd = write_voc(tmp_path), write_sbd(tmp_path)
  missing = [voc / "JPEGImages/2007_b.jpg", voc / "JPEGImages/2008_t.jpg",
             voc / "SegmentationClass/2007_d.png", sbd / "cls/2009_f.mat"]
  for path in missing:
    path.unlink()
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, tmp_path))
  for path in missing:
    assert f"{path}: no such file" in str(error.value)
  for path in missing:
    path.write_bytes(b"")
  (sbd / "cls/2008_e.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(300))
  scipy.io.savemat(sbd / "cls/2010_g.mat", {"other": 1})
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, tmp_path))
  for path in [*missing, sbd / "cls/2008_e.mat", sbd / "cls/2010_g.mat"]:
    assert re.search(rf"{re.escape(str(path))}: (is empty|not one of SBD)",
                     str(error.value))


def test_another_folder_is_refused_with_the_layout(tmp_path):
  (tmp_path / "other").mkdir()
  with pytest.raises(DataError, match="holds VOCdevkit.*benchmark_RELEASE"):
    datasets.prepare(config(tmp_path, tmp_path / "other"))


def test_names_are_vocs():
  names = voc2012.TAXONOMY.class_names
  assert len(names) == 21 and names[0] == "background"
  assert names[1:] == tuple(sorted(names[1:]))  # In VOC's own order.
  assert {"aeroplane", "diningtable", "motorbike", "pottedplant", "sofa",
          "tvmonitor"} <= set(names)
