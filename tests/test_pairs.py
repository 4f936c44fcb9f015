"""Image and mask files: what is paired, what is refused and how it is named."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from psp_jax.data import pairs
from psp_jax.errors import DataError

# Stored 0-10 are classes, 11 and 255 are ignored; nothing else may occur.
LABEL_MAP = np.full(256, -1, np.int16)
LABEL_MAP[:11] = range(11)
LABEL_MAP[[11, 255]] = 255


def picture(height=30, width=40):
  """Smooth RGB, so that JPEG keeps it; every channel is different."""
  y, x = np.mgrid[:height, :width]
  return np.stack([40 + 4 * x, 200 - 4 * y, 90 + 2 * y - x], -1).astype(
      np.uint8)


def jpeg(rgb=None):
  rgb = picture() if rgb is None else rgb
  return cv2.imencode(".jpg", rgb[..., ::-1],
                      [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


def png(array):
  if array.ndim == 3:
    array = np.ascontiguousarray(array[..., ::-1])
  return cv2.imencode(".png", array)[1].tobytes()


def mask(height=30, width=40):
  return (np.arange(height * width).reshape(height, width) % 12).astype(
      np.uint8)


def turned_by_exif():
  """TIFF header and one tag: orientation 6, to be shown a quarter turned."""
  return (b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0))


def with_exif(data):
  """By hand: cv2 writes no such tag."""
  if data[:2] == b"\xff\xd8":
    body = b"Exif\x00\x00" + turned_by_exif()
    return (data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
            + data[2:])
  body = b"eXIf" + turned_by_exif()
  chunk = (struct.pack(">I", len(body) - 4) + body
           + struct.pack(">I", zlib.crc32(body)))
  return data[:33] + chunk + data[33:]  # After the header chunk.


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


def found(folders):
  return pairs.list_pairs(folders / "images", folders / "masks")


def complaint(folders):
  with pytest.raises(DataError) as error:
    pairs.check_pairs(found(folders), LABEL_MAP)
  return str(error.value)


# ---- Decoding.


def test_an_image_is_rgb():
  red = np.zeros((30, 40, 3), np.uint8)
  red[..., 0] = 255
  assert pairs.decode_image(png(red), "x")[3, 4].tolist() == [255, 0, 0]
  r, g, b = pairs.decode_image(jpeg(red), "x")[3, 4].tolist()
  assert r > 250 and g < 5 and b < 5


def test_png_pixels_are_exact_and_jpeg_pixels_nearly():
  np.testing.assert_array_equal(
      pairs.decode_image(png(picture()), "x"), picture())
  decoded = pairs.decode_image(jpeg(), "x").astype(int)
  assert np.abs(decoded - picture()).mean() < 3


@pytest.mark.parametrize("value", [0, 100, 255])
def test_a_grey_image_becomes_three_channels(value):
  grey = np.full((7, 9), value, np.uint8)
  decoded = pairs.decode_image(png(grey), "x")
  assert decoded.shape == (7, 9, 3) and (decoded == value).all()


def test_an_image_with_transparency_loses_it():
  rgba = np.dstack([picture(), np.full((30, 40), 128, np.uint8)])
  data = cv2.imencode(".png", cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))[1]
  decoded = pairs.decode_image(data.tobytes(), "x")
  np.testing.assert_array_equal(decoded, picture())


def test_a_masks_ids_are_exact():
  ids = np.arange(256, dtype=np.uint8).reshape(8, 32)
  decoded = pairs.decode_mask(png(ids), "x")
  assert decoded.dtype == np.uint8
  np.testing.assert_array_equal(decoded, ids)


@pytest.mark.parametrize("encode", [jpeg, png])
def test_exif_orientation_turns_neither_image_nor_mask(encode):
  data = with_exif(encode(picture()))
  # cv2 itself would turn it: the tag is in the file and is understood.
  plain = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
  assert plain.shape == (40, 30, 3)
  np.testing.assert_array_equal(
      pairs.decode_image(data, "x"), pairs.decode_image(encode(picture()), "x"))
  np.testing.assert_array_equal(
      pairs.decode_mask(with_exif(png(mask())), "x"), mask())


def test_a_photograph_with_exif_orientation_fits_its_mask(folders):
  add(folders, image=with_exif(jpeg()))
  pairs.check_pairs(found(folders), LABEL_MAP)


# ---- Pairing.


def test_pairs_are_of_equal_stem_and_sorted(folders):
  for name in ("c.png", "a.jpg", "b.jpeg"):
    add(folders, name)
  (folders / "images" / "Thumbs.db").write_bytes(b"not an image")
  (folders / "images" / "notes.txt").write_bytes(b"nor this")
  (folders / "masks" / "without_image.png").write_bytes(png(mask()))
  listed = found(folders)
  assert [p.name for p in listed] == ["a", "b", "c"]
  assert [p.image.name for p in listed] == ["a.jpg", "b.jpeg", "c.png"]
  assert [p.mask.name for p in listed] == ["a.png", "b.png", "c.png"]
  assert all(p.image.parent.name == "images" for p in listed)
  assert all(p.mask.parent.name == "masks" for p in listed)


def test_suffixes_in_capitals_count(folders):
  add(folders, "a.JPG", image=jpeg())
  assert [p.name for p in found(folders)] == ["a"]


@pytest.mark.parametrize("missing", ["images", "masks"])
def test_a_missing_folder_is_named(folders, missing):
  add(folders)
  (folders / missing).rename(folders / "elsewhere")
  with pytest.raises(DataError, match="manual_dir") as error:
    found(folders)
  assert str(folders / missing) in str(error.value)


def test_a_folder_without_images_is_named(folders):
  (folders / "images" / "notes.txt").write_bytes(b"")
  with pytest.raises(DataError, match="manual_dir") as error:
    found(folders)
  assert str(folders / "images") in str(error.value)


def test_every_image_without_a_mask_is_named(folders):
  for name in ("a.jpg", "b.jpg", "c.jpg"):
    add(folders, name)
  for name in ("a.png", "c.png"):
    (folders / "masks" / name).unlink()
  with pytest.raises(DataError) as error:
    found(folders)
  for name in ("a", "c"):
    assert str(folders / "images" / f"{name}.jpg") in str(error.value)
    assert str(folders / "masks" / f"{name}.png") in str(error.value)
  assert "b.jpg" not in str(error.value)


# ---- Checking.


def test_good_pairs_pass(folders):
  for name in ("a.jpg", "b.png"):
    add(folders, name)
  add(folders, "c.png", label=png(np.full((30, 40), 255, np.uint8)))
  pairs.check_pairs(found(folders), LABEL_MAP)


def test_a_mask_of_another_size_is_named_with_both_sizes(folders):
  add(folders, label=png(mask(25, 40)))
  text = complaint(folders)
  assert str(folders / "images" / "a.jpg") in text
  assert str(folders / "masks" / "a.png") in text
  assert "40x30" in text and "40x25" in text  # Width x height.


def test_values_out_of_range_are_named_with_those_allowed(folders):
  bad = mask()
  bad[0, 0], bad[5, 5], bad[6, 6] = 12, 200, 12
  add(folders, label=png(bad))
  text = complaint(folders)
  assert str(folders / "masks" / "a.png") in text
  assert "[12, 200]" in text and "0-11, 255" in text


@pytest.mark.parametrize("data", [
    b"", b"these are words, not pixels\n" * 50, jpeg()[:-200],
    jpeg()[:len(jpeg()) // 2], jpeg()[:2], jpeg()[:-20] + bytes(5000),
    png(picture())[:-40], png(picture())[:60], b"\x89PNG\r\n\x1a\n"],
    ids=["empty", "text", "jpeg end", "jpeg half", "jpeg mark",
         "jpeg end, zeros", "png end", "png half", "png mark"])
def test_an_unreadable_image_is_named(folders, data):
  add(folders, image=data)
  text = complaint(folders)
  assert str(folders / "images" / "a.jpg") in text
  assert "masks" not in text


@pytest.mark.parametrize("data", [
    b"", b"words", png(mask())[:-40], png(picture()),
    png(mask().astype(np.uint16)), png(np.dstack([picture(), mask()]))],
    ids=["empty", "text", "cut short", "RGB", "16 bits", "RGBA"])
def test_an_unusable_mask_is_named(folders, data):
  add(folders, label=data)
  text = complaint(folders)
  assert str(folders / "masks" / "a.png") in text
  assert "a.jpg" not in text


@pytest.mark.parametrize(("label", "words"), [
    (png(picture()), ("(30, 40, 3)", "uint8")),
    (png(mask().astype(np.uint16)), ("uint16", "8-bit"))])
def test_a_mask_of_the_wrong_kind_is_described(folders, label, words):
  add(folders, label=label)
  assert all(word in complaint(folders) for word in words)


def test_a_file_that_vanished_is_named(folders):
  add(folders)
  listed = found(folders)
  (folders / "images" / "a.jpg").unlink()
  with pytest.raises(DataError) as error:
    pairs.check_pairs(listed, LABEL_MAP)
  assert str(folders / "images" / "a.jpg") in str(error.value)


def test_all_that_is_wrong_is_in_one_message(folders):
  add(folders, "cut.jpg", image=jpeg()[:-100])
  add(folders, "fine.jpg")
  add(folders, "rgb.jpg", label=png(picture()))
  # Two faults of one pair.
  add(folders, "size.jpg", label=png(np.full((10, 10), 77, np.uint8)))
  add(folders, "text.jpg", image=b"words")
  text = complaint(folders)
  for name in ("images/cut.jpg", "masks/rgb.png", "images/size.jpg",
               "images/text.jpg"):
    assert str(folders / name) in text
  assert "[77]" in text and "5 bad files" in text
  assert "fine" not in text


def test_of_very_many_the_first_are_listed_and_the_rest_counted(folders):
  for i in range(25):
    add(folders, f"{i:02}.jpg", image=b"")
  text = complaint(folders)
  assert "25 bad files" in text and "5 more" in text
  assert all(f"{i:02}.jpg" in text for i in range(20))
  assert "20.jpg" not in text


def test_what_follows_a_jpegs_end_does_not_matter():
  image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
  jpeg = cv2.imencode(".jpg", image)[1].tobytes()
  appended = jpeg + b"\xff\xda movie" * 500
  np.testing.assert_array_equal(
      pairs.decode_image(appended, "a"), pairs.decode_image(jpeg, "b"))


def test_a_thumbnails_end_is_not_the_pictures():
  """Cut in the scan, refilled with zeros, a thumbnail's marker before it."""
  image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
  jpeg = cv2.imencode(".jpg", image)[1].tobytes()
  thumbnail = b"\xff\xd8 small \xff\xd9"
  segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
  whole = jpeg[:2] + segment + jpeg[2:]
  assert pairs.decode_image(whole, "whole").shape == (40, 50, 3)
  cut = whole[:len(whole) // 2] + bytes(len(whole) // 2)
  with pytest.raises(DataError, match="cut"):
    pairs.decode_image(cut, "cut")
