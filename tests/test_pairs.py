"""Who belongs to whom on disk, and how what is missing is named."""

import os
import pathlib

import pytest
from pictures import jpeg, mask, picture, png

from psp_jax.data import pairs
from psp_jax.errors import DataError


@pytest.fixture
def folders(tmp_path):
  (tmp_path / "images").mkdir()
  (tmp_path / "masks").mkdir()
  return tmp_path


def add(folders, name="a.jpg"):
  """An image and its mask, a PNG of the same path."""
  image, stem = folders / "images" / name, name.rpartition(".")[0]
  image.parent.mkdir(parents=True, exist_ok=True)
  image.write_bytes(jpeg() if name.endswith("jpg") else png(picture()))
  label = folders / "masks" / f"{stem}.png"
  label.parent.mkdir(parents=True, exist_ok=True)
  label.write_bytes(png(mask()))


def found(folders, *args):
  problems = []
  listed = pairs.pair_folders(
      folders / "images", folders / "masks", problems, *args)
  return listed, problems


def test_pairs_are_of_equal_stem_and_sorted(folders):
  for name in ("c.png", "a.jpg", "b.jpeg"):
    add(folders, name)
  for name in ("Thumbs.db", "notes.txt", ".DS_Store", "._a.jpg"):
    (folders / "images" / name).write_bytes(b"no image")
  (folders / "masks" / ".a.png").write_bytes(b"no mask")
  others = []
  listed, problems = found(folders, (".png",), others)
  assert problems == []
  assert [p.name for p in listed] == ["a", "b", "c"]
  assert [p.image.name for p in listed] == ["a.jpg", "b.jpeg", "c.png"]
  assert [p.mask.name for p in listed] == ["a.png", "b.png", "c.png"]
  assert all(p.image.parent.name == "images" for p in listed)
  assert all(p.mask.parent.name == "masks" for p in listed)
  assert listed[0].image_bytes() == jpeg()
  assert listed[0].mask_bytes() == png(mask())
  assert listed[0].instances_bytes() == b""
  # What a photographer may have meant is told, hidden files are not.
  assert [p.name for p in others] == ["Thumbs.db", "notes.txt"]


def test_folders_within_are_part_of_the_name(folders):
  names = ["monday/a.jpg", "monday/late shift/a.jpg", "Zürich 北京/ø ü.png",
           "a.jpg"]
  for name in names:
    add(folders, name)
  listed, problems = found(folders)
  assert problems == []
  assert [p.name for p in listed] == sorted(
      name.rpartition(".")[0] for name in names)
  assert {p.image.relative_to(folders / "images").as_posix()
          for p in listed} == set(names)
  assert all(p.mask.relative_to(folders / "masks").with_suffix("").as_posix()
             == p.name for p in listed)


def test_linked_folders_are_followed(folders, tmp_path_factory):
  elsewhere = tmp_path_factory.mktemp("elsewhere")
  (elsewhere / "images").mkdir()
  (elsewhere / "masks").mkdir()
  add(elsewhere)
  for kind in ("images", "masks"):
    (folders / kind / "link").symlink_to(elsewhere / kind)
  assert [p.name for p in found(folders)[0]] == ["link/a"]


def test_suffixes_in_capitals_count(folders):
  add(folders, "a.JPG")
  assert [p.name for p in found(folders)[0]] == ["a"]


@pytest.mark.parametrize("missing", ["images", "masks"])
def test_a_missing_folder_is_named(folders, missing):
  add(folders)
  (folders / missing).rename(folders / "elsewhere")
  with pytest.raises(DataError, match="no such folder.*manual_dir") as error:
    found(folders)
  assert str(folders / missing) in str(error.value)


def test_a_folder_without_images_is_named(folders):
  (folders / "images" / "notes.txt").write_bytes(b"")
  with pytest.raises(DataError, match="holds no .jpg.*manual_dir") as error:
    found(folders)
  assert str(folders / "images") in str(error.value)


def test_every_image_without_mask_and_mask_without_image_is_named(folders):
  for name in ("a.jpg", "b.jpg", "c.jpg"):
    add(folders, name)
  for name in ("a.png", "c.png"):
    (folders / "masks" / name).unlink()
  (folders / "masks" / "B.png").write_bytes(png(mask()))
  listed, problems = found(folders)
  assert [p.name for p in listed] == ["b"]
  images, masks = folders / "images", folders / "masks"
  assert problems == [
      f"{images / 'a.jpg'}: has no mask {masks / 'a'}.png",
      f"{images / 'c.jpg'}: has no mask {masks / 'c'}.png",
      f"{masks / 'B.png'}: has no image {images / 'B'}.*; add it, or remove "
      "the mask"]


def test_two_images_of_one_name_would_share_a_mask(folders):
  add(folders, "a.jpg")
  add(folders, "a.png")
  listed, problems = found(folders)
  assert len(listed) == 1 and len(problems) == 1
  assert "a.jpg: a.png beside it would share its mask" in problems[0]


def test_a_name_that_is_not_utf_8_is_named(folders):
  add(folders)
  path = os.fsencode(folders / "images") + b"/b\xff.jpg"
  pathlib.Path(os.fsdecode(path)).write_bytes(jpeg())
  _, problems = found(folders)
  assert len(problems) == 1 and "not UTF-8" in problems[0]
  problems[0].encode()  # Can be printed.


@pytest.mark.parametrize("closed", ["images", "images/sub", "masks"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, closed, as_nobody):
  for name in ("a.jpg", "sub/b.jpg"):
    add(tmp_path, name)
  (tmp_path / closed).chmod(0)
  with as_nobody(), pytest.raises(DataError, match="Permission den") as error:
    found(tmp_path)
  assert str(tmp_path / closed) in str(error.value)


def test_a_file_that_vanished_is_named(folders):
  add(folders)
  [pair], _ = found(folders)
  pair.image.unlink()
  with pytest.raises(DataError, match="cannot be read .No such file") as error:
    pair.image_bytes()
  assert str(pair.image) in str(error.value)


def test_a_split_without_masks(folders):
  add(folders)
  [pair] = pairs.unpaired_folder(folders / "images", [])
  assert pair.name == "a" and pair.mask is None
  assert pair.mask_bytes() == b"" and pair.image_bytes() == jpeg()


@pytest.mark.parametrize("candidates, expected", [
    (("x", "y"), "one/y"), (("y", "x"), "one/y"), (("z", "x"), "two/z"),
    (("nowhere",), None), ((".",), "one")])
def test_the_first_folder_that_is_there(tmp_path, candidates, expected):
  for name in ("one/y", "two/y", "two/z"):
    (tmp_path / name).mkdir(parents=True)
  roots = [tmp_path / "one", tmp_path / "two"]
  assert pairs.first_folder(roots, *candidates) == (
      expected and tmp_path / expected)


def test_one_problem_is_the_message():
  pairs.raise_all([])
  with pytest.raises(DataError, match="^x is wrong$"):
    pairs.raise_all(["x is wrong"])


def test_of_very_many_the_first_are_listed_and_the_rest_counted():
  with pytest.raises(DataError) as error:
    pairs.raise_all([f"file {i:02}" for i in range(25)])
  text = str(error.value)
  assert text.startswith("25 problems:") and "... and 5 more" in text
  assert "psp_jax.prepare --check" in text
  assert all(f"file {i:02}" in text for i in range(20))
  assert "file 20" not in text
