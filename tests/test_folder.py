"""A dataset of one's own: any kind of mask is read right, or refused."""

import shutil

import numpy as np
import pytest
from pictures import (
  grey_png,
  jpeg,
  palette_png,
  picture,
  pil,
  png,
)

from psp_jax import default_config
from psp_jax.data import datasets, folder
from psp_jax.errors import ConfigError, DataError

CSV = """id,name,colour
0,road,#804080
1,grass,#00ff00
2,sky,"70 130 180"
3,ignore,#000000
"""
COLOURS = np.array([(128, 64, 128), (0, 255, 0), (70, 130, 180), (0, 0, 0)],
                   np.uint8)
CLASS_OF = np.array([0, 1, 2, 255])


def ids(seed=0, height=30, width=40, count=4):
  rng = np.random.default_rng(seed)
  return rng.integers(0, count, (height, width)).astype(np.uint8)


def write(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data.encode() if isinstance(data, str) else data)


def make(root, masks=None, csv=CSV):
  """{name: mask bytes} for train, or some; one pair in val."""
  masks = masks or {"a": png(ids(1)), "deep/er/b": png(ids(2))}
  for name, data in masks.items():
    suffix = ".png" if data[:4] == b"\x89PNG" else (
        ".webp" if data[:4] == b"RIFF" else ".tif")
    write(root / "images/train" / f"{name}.jpg", jpeg())
    write(root / "masks/train" / f"{name}{suffix}", data)
  write(root / "images/val/v.png", png(picture()))
  write(root / "masks/val/v.png", png(ids(3)))
  write(root / "classes.csv", csv)
  return root


def config(tmp_path, root, **fields):
  c = default_config.get_config()
  c.data.name = "folder"
  c.data.manual_dir = str(root)
  c.data.data_dir = str(tmp_path / "prepared")
  c.data.update(fields)
  return c


def labels(c, split="train"):
  records = datasets.open_split(c, split)
  return {r["name"]: r["label"] for r in map(records.__getitem__,
                                             range(len(records)))}


# ---- What is read.


def test_every_kind_of_mask_gives_the_same_classes(tmp_path):
  stored = ids(5)
  rgba = np.dstack([COLOURS[stored], np.full(stored.shape, 255, np.uint8)])
  shuffled = np.array([2, 0, 3, 1])  # Of an editor's own palette.
  foreign = np.random.default_rng(0).integers(0, 256, (4, 3))
  masks = {
      "ids": png(stored), "2 bits": grey_png(stored, 2),
      "tiff": pil(stored, "TIFF"),
      "webp": pil(np.dstack([stored] * 3), "WEBP", lossless=True),
      "rgb": png(COLOURS[stored]), "rgba": pil(rgba, "PNG"),
      "rgb tiff": pil(COLOURS[stored], "TIFF"),
      "rgb webp": pil(COLOURS[stored], "WEBP", lossless=True),
      "palette, same order": palette_png(stored, COLOURS),
      "palette, other order": palette_png(
          np.argsort(shuffled).astype(np.uint8)[stored], COLOURS[shuffled]),
      "palette, other colours": palette_png(stored, foreign),
      "palette of 2 bits": palette_png(stored, COLOURS, 2)}
  read = labels(config(tmp_path, make(tmp_path / "mine", masks)))
  assert set(read) == set(masks)
  for name, label in read.items():
    np.testing.assert_array_equal(label, CLASS_OF[stored], name)


def test_images_of_every_kind_and_name(tmp_path):
  root = make(tmp_path / "mine")
  names = {"x 1.jpg": jpeg(), "Ünï çødé 北京.png": png(picture()),
           "w.webp": pil(picture(), "WEBP", lossless=True),
           "t.TIFF": pil(picture(), "TIFF"), "e/f g/h.JPEG": jpeg()}
  for i, (name, data) in enumerate(names.items()):
    write(root / "images/train" / name, data)
    write(root / f"masks/train/{name.rpartition('.')[0]}.png", png(ids(i)))
  c = config(tmp_path, root)
  read = labels(c)
  for i, name in enumerate(names):
    np.testing.assert_array_equal(
        read[name.rpartition(".")[0]], CLASS_OF[ids(i)])
  assert set(read) >= {"deep/er/b", "e/f g/h", "Ünï çødé 北京"}


def test_the_bytes_of_images_and_id_masks_are_kept(tmp_path):
  root = make(tmp_path / "mine")
  split = datasets.open_split(config(tmp_path, root), "train")
  for i in range(len(split)):
    record = split.encoded(i)
    name = record["name"].decode()
    assert record["image"] == (root / f"images/train/{name}.jpg").read_bytes()
    assert record["label"] == (root / f"masks/train/{name}.png").read_bytes()


def test_classes_are_in_the_order_of_their_ids(tmp_path):
  csv = "id, name\n30, late\n7, early\n255, x\n"
  with pytest.raises(DataError, match="line 4: id '255'.*0 to 254"):
    datasets.taxonomy(config(tmp_path, make(tmp_path / "bad", csv=csv)))
  stored = np.array([[7, 30, 255]], np.uint8)
  root = make(tmp_path / "mine", csv=csv.replace("255, x\n", ""))
  for split in ("train/a", "train/deep/er/b", "val/v"):
    write(root / f"masks/{split}.png", png(stored.repeat(30, 0).repeat(40, 1)[
        :, ::3]))
  c = config(tmp_path, root)
  taxonomy = datasets.taxonomy(c)
  assert taxonomy.class_names == ("early", "late")
  assert taxonomy.stored_ids.tolist() == [7, 30]
  assert len(np.unique(taxonomy.palette, axis=0)) == 2
  np.testing.assert_array_equal(
      labels(c)["a"][0], np.array([0, 1, 255]).repeat(40)[::3])


def test_reduce_zero_label_ignores_0_and_moves_ids_down(tmp_path):
  csv = "id,name\n" + "".join(f"{i},n{i}\n" for i in (1, 2, 3))
  root = make(tmp_path / "mine", csv=csv)
  with pytest.raises(DataError, match=r"label values \[0\] are out of range"):
    datasets.prepare(config(tmp_path, root))
  c = config(tmp_path, root, reduce_zero_label=True)
  np.testing.assert_array_equal(
      labels(c)["a"], np.where(ids(1) == 0, 255, ids(1).astype(int) - 1))
  # Whether 0 is listed or not.
  write(root / "classes.csv", csv + "0,background\n")
  assert datasets.taxonomy(c).class_names == ("n1", "n2", "n3")
  c.data.name = "camvid"
  with pytest.raises(ConfigError, match="camvid's ids mean is built in"):
    datasets.taxonomy(c)


def test_further_folders_are_splits_with_or_without_masks(tmp_path):
  root = make(tmp_path / "mine")
  write(root / "images/test/t.jpg", jpeg())
  write(root / "images/extra/e.jpg", jpeg())
  write(root / "masks/extra/e.png", png(ids()))
  c = config(tmp_path, root)
  test, extra = (datasets.open_split(c, s) for s in ("test", "extra"))
  assert not test.labelled and (test[0]["label"] == 255).all()
  assert extra.labelled
  np.testing.assert_array_equal(extra[0]["label"], CLASS_OF[ids()])
  assert len(datasets.open_split(c, "train+extra")) == 3


# ---- Prepared once, and anew when something changed.


def test_once_prepared_the_folder_is_not_needed(tmp_path):
  root = make(tmp_path / "mine")
  c = config(tmp_path, root)
  before = labels(c)
  shutil.rmtree(root)
  c.data.manual_dir = ""
  assert datasets.taxonomy(c).class_names == ("road", "grass", "sky")
  np.testing.assert_array_equal(datasets.taxonomy(c).palette, COLOURS[:3])
  after = labels(c)
  for name, label in before.items():
    np.testing.assert_array_equal(label, after[name])


def test_two_prepared_folders_are_not_mistaken_for_one_another(tmp_path):
  for seed, name in enumerate(("one", "two")):
    root = make(tmp_path / name, {"a": png(ids(seed))})
    c = config(tmp_path, root)
    np.testing.assert_array_equal(labels(c)["a"], CLASS_OF[ids(seed)])
  with pytest.raises(ConfigError, match="prepared from several folders.*name"):
    datasets.prepare(config(tmp_path, ""))


def test_a_mask_painted_over_is_prepared_anew(tmp_path):
  """Also where its size in bytes stays."""
  flat = np.zeros((30, 40), np.uint8)
  raw = {value: pil(flat + value, "PNG", compress_level=0)
         for value in (0, 1)}
  root = make(tmp_path / "mine", {"a": raw[0], "b": raw[0]})
  c = config(tmp_path, root)
  assert (labels(c)["a"] == 0).all()
  path = root / "masks/train/a.png"
  size = path.stat().st_size
  path.write_bytes(raw[1])
  assert path.stat().st_size == size
  assert (labels(c)["a"] == 1).all()


def test_a_colour_that_moves_in_classes_csv_moves_in_the_masks(tmp_path):
  stored = ids(4)
  root = make(tmp_path / "mine", {"a": png(COLOURS[stored])})
  c = config(tmp_path, root)
  np.testing.assert_array_equal(labels(c)["a"], CLASS_OF[stored])
  swapped = CSV.replace("0,road", "x,road").replace("1,grass", "0,grass")
  write(root / "classes.csv", swapped.replace("x,road", "1,road"))
  np.testing.assert_array_equal(
      labels(c)["a"], np.array([1, 0, 2, 255])[stored])


# ---- What is refused.


@pytest.mark.parametrize("missing", [
    "images/train", "images/val", "masks/train", "masks/val"])
def test_a_missing_split_folder_is_named_with_the_layout(tmp_path, missing):
  root = make(tmp_path / "mine")
  shutil.rmtree(root / missing)
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, root))
  assert f"{root / missing}: no such folder" in str(error.value)
  assert "images/train, images/val, masks/train" in str(error.value)


def test_without_a_folder_it_says_what_one_looks_like(tmp_path):
  with pytest.raises(DataError, match="manual_dir.*masks/val and classes.csv"):
    datasets.taxonomy(config(tmp_path, ""))


@pytest.mark.parametrize("csv, words", [
    (None, "no such file; the first line is \"id,name,colour\""),
    ("", "its first line is ''"), ("name,colour\nroad,#123456\n", "first line"),
    ("id,name\n", "lists no class"), ("id,name\n0,ignore\n", "lists no class"),
    ("id,name\nx,road\n", "line 2: id 'x'"),
    ("id,name\n0,\n", "line 2: id '0', name ''"),
    ("id,name\n300,road\n", "line 2: id '300'"),
    ("id,name\n-1,road\n", "line 2: id '-1'"),
    ("id,name\n0,a\n0,b\n", "line 3: id 0 is listed twice"),
    ("id,name\n0,a\n1,a\n", "names a twice"),
    ("id,name,colour\n0,a,blue\n", "line 2: colour 'blue'"),
    ("id,name,colour\n0,a,1 2\n", "line 2: colour '1 2'"),
    ("id,name,colour\n0,a,1 2 300\n", "line 2: colour '1 2 300'"),
    ("id,name,colour\n0,a,#010203\n1,b,1 2 3\n", "ids 0 and 1 (b) have the "),
    (b"id,name\n0,stra\xdfe\n", "not UTF-8")])
def test_a_bad_class_list_is_named_with_its_line(tmp_path, csv, words):
  root = make(tmp_path / "mine")
  if csv is None:
    (root / "classes.csv").unlink()
  else:
    write(root / "classes.csv", csv)
  with pytest.raises(DataError) as error:
    c = config(tmp_path, root)
    datasets.taxonomy(c)
    datasets.prepare(c)
  assert str(root / "classes.csv") in str(error.value)
  assert words in str(error.value)


@pytest.mark.parametrize("csv", [
    "\ufeffid;name;color\r\n0;Straße;#804080\r\n1;b;\"0, 255, 0\"\r\n",
    "ID , Name , Colour\n0,Straße,804080\n1,b,\"(0,255,0)\"\n",
    "name,id,colour,note\nStraße,0,128 64 128,x\nb,1,#00FF00,\n"])
def test_what_spreadsheets_write_is_read(tmp_path, csv):
  write(tmp_path / "classes.csv", csv)
  path = tmp_path / "classes.csv"
  taxonomy = folder.make_taxonomy(folder.read_classes(path), path)
  assert taxonomy.class_names == ("Straße", "b")
  assert taxonomy.palette.tolist() == [[128, 64, 128], [0, 255, 0]]


def test_colours_that_no_class_has_are_named_with_their_place(tmp_path):
  rgb = COLOURS[ids(1)].copy()
  rgb[7, 11] = (1, 2, 3)
  root = make(tmp_path / "mine", {"a": png(rgb), "b": png(ids())})
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, root))
  text = str(error.value)
  assert (f"{root / 'masks/train/a.png'}: colour #010203 at row 7, column 11"
          in text)
  assert "classes.csv" in text and "b.png" not in text


def test_colours_where_the_class_list_has_none_are_refused(tmp_path):
  root = make(tmp_path / "mine", {"a": png(COLOURS[ids(1)])},
              "id,name\n0,a\n1,b\n2,c\n3,d\n")
  with pytest.raises(DataError, match="a.png: 40x30 of RGB colours"):
    datasets.prepare(config(tmp_path, root))


def test_everything_that_is_wrong_is_in_one_message(tmp_path):
  root = make(tmp_path / "mine")
  write(root / "images/train/lonely.jpg", jpeg())
  write(root / "masks/val/orphan.png", png(ids()))
  write(root / "images/train/phone.heic", b"ftypheic")
  write(root / "images/train/twice.jpg", jpeg())
  write(root / "images/train/twice.png", png(picture()))
  write(root / "masks/train/twice.png", png(ids()))
  write(root / "masks/train/a.png", png(ids() + 9))
  write(root / "images/two words/x.jpg", jpeg())
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, root))
  for words in ("lonely.jpg: has no mask", "orphan.png: has no image",
                "phone.heic: not one of .jpg", "twice.png beside it",
                "a.png: label values [9, 10, 11, 12] are out of range",
                "images/two words: a split's name"):
    assert words in str(error.value), words
  assert not list((tmp_path / "prepared").rglob("dataset_info.json"))


def test_what_lies_beside_the_dataset_may_change(tmp_path, capsys):
  """Runs, and the prepared files themselves, in the folder of the photos."""
  root = make(tmp_path / "mine")
  c = config(root, root)
  datasets.prepare(c)
  write(root / "runs/one/eval.json", "{}")
  write(root / "notes.txt", "of a walk")
  datasets.prepare(c)
  assert capsys.readouterr().out.count("preparing folder") == 1
  write(root / "images/train/new.jpg", jpeg())
  write(root / "masks/train/new.png", png(ids()))
  assert "new" in labels(c)
