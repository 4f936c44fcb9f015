"""Every pair is read once, all that is wrong is said, what is there counted."""

import pathlib

import cv2
import numpy as np
import pytest
from pictures import (
  HTML,
  grey_png,
  jpeg,
  mask,
  palette_png,
  picture,
  pil,
  png,
  with_exif,
)

from psp_jax.data import check, pairs
from psp_jax.data.taxonomy import Taxonomy, make_label_map, voc_palette

# Stored 0-10 are classes, 11 and 255 are ignored; nothing else may occur.
CLASSES = Taxonomy(tuple("abcdefghijk"), voc_palette(12)[1:],
                   make_label_map(0, 11, ignored=(11,)))


@pytest.fixture
def folders(tmp_path):
  (tmp_path / "images").mkdir()
  (tmp_path / "masks").mkdir()
  return tmp_path


def add(folders, name="a.jpg", image=None, label=None):
  stem = name.rpartition(".")[0]
  default = jpeg() if name.endswith("jpg") else png(picture())
  (folders / "images" / name).write_bytes(default if image is None else image)
  (folders / "masks" / f"{stem}.png").write_bytes(
      png(mask()) if label is None else label)


def report(folders, taxonomy=CLASSES):
  problems = []
  found = pairs.pair_folders(folders / "images", folders / "masks", problems)
  assert not problems
  return check.examine("train", found, taxonomy)


def complaint(folders, taxonomy=CLASSES):
  [problem] = report(folders, taxonomy).problems
  return problem


def test_good_pairs_pass(folders):
  for name in ("a.jpg", "b.png"):
    add(folders, name)
  add(folders, "c.png", label=png(np.full((30, 40), 255, np.uint8)))
  r = report(folders)
  assert r.problems == [] and r.images == 3 and r.unlabelled == 0
  assert r.empty == ["c"] and r.notes == {}


def test_pixels_are_counted_as_numpy_counts_them(folders):
  rng = np.random.default_rng(0)
  pixels, images = np.zeros(12, int), np.zeros(11, int)
  sizes = {}
  for i in range(7):
    height, width = rng.integers(5, 20, 2)
    ids = rng.choice(np.array([0, 3, 4, 10, 11, 255][i % 3:], np.uint8),
                     (height, width))
    add(folders, f"{i}.png", png(picture(height, width)), png(ids))
    for value in range(11):
      pixels[value] += (ids == value).sum()
      images[value] += (ids == value).any()
    pixels[11] += (ids >= 11).sum()
    sizes[width, height] = sizes.get((width, height), 0) + 1
  r = report(folders)
  np.testing.assert_array_equal(r.pixels, pixels)
  np.testing.assert_array_equal(r.images_with, images)
  assert r.sizes == sizes
  text = check.format_report({"train": r}, CLASSES)
  assert "7 images" in text
  for value, name in ((3, "d"), (10, "k")):
    row = next(line for line in text.splitlines()
               if line.startswith(f"{name} "))
    assert row.split() == [name, f"{100 * pixels[value] / pixels.sum():.3f}",
                           str(images[value])]
  assert "never seen in train: b, c, f, g, h, i, j" in text
  data = check.as_json({"train": r}, CLASSES)["train"]
  assert data["classes"]["d"] == {"pixels": pixels[3], "images": images[3]}
  assert sum(data["sizes"].values()) == 7


def test_a_mask_of_another_size_is_named_with_both_sizes(folders):
  add(folders, label=png(mask(25, 40)))
  assert complaint(folders) == (
      f"{folders / 'images/a.jpg'} is 40x30 but its mask "
      f"{folders / 'masks/a.png'} is 40x25")


def test_values_out_of_range_are_named_with_those_allowed(folders):
  bad = mask()
  bad[0, 0], bad[5, 5], bad[6, 6] = 12, 200, 12
  add(folders, label=png(bad))
  assert complaint(folders) == (
      f"{folders / 'masks/a.png'}: label values [12, 200] are out of range "
      "(allowed: 0-11, 255)")


def test_label_150_of_150_classes_says_that_ids_may_count_from_1(folders):
  classes = Taxonomy(tuple(map(str, range(150))), voc_palette(151)[1:],
                     make_label_map(0, 150))
  ids = np.full((30, 40), 7, np.uint8)
  ids[3, 4] = 150
  add(folders, label=png(ids))
  text = complaint(folders, classes)
  assert "[150] are out of range (allowed: 0-149, 255)" in text
  assert "if ids count from 1" in text and "reduce_zero_label" in text


@pytest.mark.parametrize("data", [
    b"", b"these are words, not pixels\n" * 50, HTML, jpeg()[:-200],
    jpeg()[:len(jpeg()) // 2], jpeg()[:2], jpeg()[:-20] + bytes(5000),
    png(picture())[:-40], png(picture())[:60], b"\x89PNG\r\n\x1a\n"],
    ids=["empty", "text", "html", "jpeg end", "jpeg half", "jpeg mark",
         "jpeg end, zeros", "png end", "png half", "png mark"])
def test_an_unreadable_image_is_named(folders, data):
  add(folders, image=data)
  text = complaint(folders)
  assert text.startswith(f"{folders / 'images' / 'a.jpg'}: ")
  assert "/masks/" not in text


@pytest.mark.parametrize("data", [
    b"", b"words", HTML, png(mask())[:-40], png(picture()), jpeg(),
    png(mask().astype(np.uint16)), png(np.dstack([picture(), mask()]))],
    ids=["empty", "text", "html", "cut short", "RGB", "JPEG", "16 bits",
         "RGBA"])
def test_an_unusable_mask_is_named(folders, data):
  add(folders, label=data)
  text = complaint(folders)
  assert text.startswith(f"{folders / 'masks' / 'a.png'}: ")
  assert "a.jpg" not in text


def test_a_file_that_vanished_is_named(folders):
  add(folders)
  found = pairs.pair_folders(folders / "images", folders / "masks", [])
  (folders / "images" / "a.jpg").unlink()
  [text] = check.examine("train", found, CLASSES).problems
  assert str(folders / "images" / "a.jpg") in text


def test_all_that_is_wrong_is_said_in_one_pass(folders):
  add(folders, "cut.jpg", image=jpeg()[:-100])
  add(folders, "fine.jpg")
  add(folders, "rgb.jpg", label=png(picture()))
  # Two faults of one pair, and both files of another.
  add(folders, "size.jpg", label=png(np.full((10, 10), 77, np.uint8)))
  add(folders, "text.jpg", image=b"words", label=b"")
  r = report(folders)
  assert len(r.problems) == 6
  text = "\n".join(r.problems)
  for name in ("images/cut.jpg", "masks/rgb.png", "images/size.jpg",
               "images/text.jpg", "masks/text.png"):
    assert str(folders / name) in text
  assert "[77]" in text and "fine" not in text


def test_a_photograph_with_exif_orientation_fits_its_mask(folders):
  add(folders, image=with_exif(jpeg()))
  r = report(folders)
  assert r.problems == []
  assert [("EXIF" in note, names) for note, names in r.notes.items()] == [
      (True, ["a"])]


def test_a_mask_drawn_on_the_turned_photograph_says_so(folders):
  add(folders, image=with_exif(jpeg()), label=png(mask(40, 30)))
  text = complaint(folders)
  assert "is 40x30 but its mask" in text and "is 30x40" in text
  assert "EXIF" in text and "save the image turned" in text


def test_kinds_of_images_are_noted_and_counted(folders):
  add(folders, "grey1.png", png(mask()))
  add(folders, "grey2.png", png(mask()))
  add(folders, "clear.png", pil(picture(), "PNG", "RGBA"))
  add(folders, "deep.png", grey_png(mask().astype(np.uint16), 16))
  add(folders, "print.jpg", pil(picture(), "JPEG", "CMYK"))
  add(folders, "indexed.jpg", label=palette_png(mask(), np.zeros((12, 3))))
  r = report(folders)
  assert r.problems == []
  text = check.format_report({"val": r}, CLASSES)
  for line in ("2 images: grey", "1 images: transparency",
               "1 images: 16 bits", "1 images: CMYK"):
    assert line in text
  assert "(grey1, grey2)" in text


def test_masks_that_are_all_ignored_are_kept_but_not_all_of_them(folders):
  nothing = png(np.full((30, 40), 255, np.uint8))
  add(folders, "a.jpg", label=nothing)
  add(folders, "b.jpg", label=nothing)
  r = report(folders)
  assert r.empty == ["a", "b"]
  assert "not one of 2 masks has a pixel of a class" in r.problems[0]
  add(folders, "c.jpg")
  r = report(folders)
  assert r.problems == [] and r.empty == ["a", "b"]
  assert "2 masks without a valid pixel, kept (a, b)" in (
      check.format_report({"train": r}, CLASSES))


def test_images_without_masks_are_counted(folders):
  add(folders)
  found = [pairs.Pair("a", folders / "images/a.jpg")]
  r = check.examine("test", found, CLASSES)
  assert (r.images, r.unlabelled, r.pixels.sum()) == (1, 1, 0)
  assert "test: 1 images, without masks, 40x30" in check.format_report(
      {"test": r}, CLASSES)
  assert check.sheet_pairs(found, r) == []


def test_instances_must_be_of_the_masks_size(folders):
  add(folders)
  path = folders / "instances.png"
  pair = pairs.Pair("a", folders / "images/a.jpg", folders / "masks/a.png",
                    path)
  for data, words in ((grey_png(np.zeros((30, 40), np.uint16), 16), None),
                      (grey_png(np.zeros((30, 41), np.uint16), 16), "41x30"),
                      (grey_png(np.full((30, 40), 12003, np.uint16), 16),
                       "[12003] are instances of no label"),
                      (b"", "empty")):
    path.write_bytes(data)
    problems = check.examine("val", [pair], CLASSES).problems
    assert len(problems) == bool(words)
    assert not words or words in problems[0]


def test_the_sheet_shows_turned_photographs_first_then_spreads(folders):
  for i in range(20):
    add(folders, f"{i:02}.jpg", with_exif(jpeg()) if i == 7 else None)
  found = pairs.pair_folders(folders / "images", folders / "masks", [])
  shown = check.sheet_pairs(found, report(folders), 5)
  assert [p.name for p in shown] == ["07", "00", "05", "10", "14"]
  image, label = check.read_pair(shown[0], CLASSES)
  assert image.shape == (30, 40, 3)
  np.testing.assert_array_equal(label, np.where(mask() == 11, 255, mask()))


@pytest.mark.parametrize("allowed, text", [
    ({0, 1, 2, 255}, "0-2, 255"), ({5, 255}, "5, 255"),
    ({0, 2, 3, 255}, "0, 2-3, 255"), (set(range(256)), "0-255")])
def test_ranges_of_values(allowed, text):
  label_map = np.array([0 if v in allowed else -1 for v in range(256)])
  assert check.ranges(label_map) == text


def test_the_real_camvid_validation_split(shared):
  from psp_jax.data import camvid
  root = shared / "data/CamVid"
  found = pairs.pair_folders(root / "val", root / "valannot", [])
  r = check.examine("val", found, camvid.TAXONOMY)
  assert r.problems == [] and r.images == 101 and r.sizes == {(480, 360): 101}
  counts = np.zeros(256, int)
  for path in sorted(pathlib.Path(root / "valannot").glob("*.png")):
    counts += np.bincount(cv2.imread(str(path), -1).ravel(), minlength=256)
  np.testing.assert_array_equal(r.pixels[:-1], counts[:11])
  assert r.pixels[-1] == counts[11:].sum()
