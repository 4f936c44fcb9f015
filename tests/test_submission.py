"""Prediction files, read back by Pillow and byte by byte."""

import struct

import numpy as np
import pytest
from PIL import Image

from psp_jax import console, metrics, submission
from psp_jax.data import (
  ade20k,
  camvid,
  cityscapes_labels,
  decode,
  scenes,
  taxonomy,
  voc2012,
)

VOC = voc2012.TAXONOMY
# First stored ids as the datasets say; their order is their class id's.
STORED = {
    "ade20k": (ade20k.TAXONOMY, range(1, 151)),
    "camvid": (camvid.TAXONOMY, range(11)),
    "scenes": (scenes.TAXONOMY, range(12)),
    "voc": (VOC, range(21)),
    "cityscapes": (cityscapes_labels.TAXONOMY, (
        7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32,
        33))}


def guess(classes, height=37, width=41):
  """Every class occurs."""
  ids = np.arange(height * width) * 7 % classes
  return ids.reshape(height, width).astype(np.uint8)


@pytest.fixture(params=STORED)
def written(tmp_path, request):
  t, stored = STORED[request.param]
  prediction = guess(t.num_classes)
  submission.write(tmp_path / "predictions", t, "a name", prediction)
  return (tmp_path / "predictions" / "a name.png", t, list(stored), prediction)


def test_the_files_hold_the_datasets_own_ids(written):
  path, t, stored, prediction = written
  assert t.stored_ids.tolist() == stored and t.stored_ids.dtype == np.uint8
  with Image.open(path) as image:
    ids = np.array(image)
  assert ids.dtype == np.uint8
  np.testing.assert_array_equal(ids, np.array(stored)[prediction])
  np.testing.assert_array_equal(t.label_map[ids], prediction)


def test_they_are_of_8_bits_indexed_or_grey(written):
  path, t, stored, prediction = written
  header = path.read_bytes()[16:26]
  grey = t is cityscapes_labels.TAXONOMY
  assert struct.unpack(">IIBB", header) == (41, 37, 8, 0 if grey else 3)
  with Image.open(path) as image:
    assert image.mode == ("L" if grey else "P")
    if not grey:
      np.testing.assert_array_equal(
          np.array(image.convert("RGB")), t.palette[prediction])
  # Indexed or grey, a mask of ours is read as ids.
  np.testing.assert_array_equal(
      t.label_map[decode.decode_mask(path.read_bytes(), "x")], prediction)


@pytest.mark.parametrize(("index", "colour"), [
    (0, (0, 0, 0)), (1, (128, 0, 0)), (15, (192, 128, 128)),
    (20, (0, 64, 128)), (255, (224, 224, 192))])
def test_the_palette_of_a_voc_file_is_the_official_one(
    tmp_path, index, colour):
  submission.write(tmp_path, VOC, "2007_000033", guess(21))
  with Image.open(tmp_path / "2007_000033.png") as image:
    assert tuple(image.getpalette()[3 * index:3 * index + 3]) == colour


def test_a_value_that_two_labels_share_is_the_first():
  merged = np.full(256, -1, np.int16)
  merged[[3, 5, 9]] = 1, 0, 1
  t = taxonomy.Taxonomy(("a", "b"), np.zeros((2, 3), np.uint8), merged)
  assert t.stored_ids.tolist() == [5, 3]


@pytest.mark.parametrize(("name", "file"), [
    ("ulm/ulm_000000_000019", "ulm/ulm_000000_000019.png"),
    ("Zürich 3.jpg", "Zürich 3.jpg.png"),
    ("../../up", "%2E%2E/%2E%2E/up.png"),
    ("/etc/passwd", "%/etc/passwd.png"),
    ("a/./..", "a/%2E/%2E%2E.png"),
    ("a//b", "a/%/b.png"),
    ("a\\b:c*\n\0%", "a%5Cb%3Ac%2A%0A%00%25.png"),
    ("", "%.png")])
def test_names_lead_nowhere_but_down(tmp_path, name, file):
  folder = tmp_path / "deep" / "predictions"
  submission.write(folder, VOC, name, guess(21))
  files = [p for p in tmp_path.rglob("*") if p.is_file()]
  assert files == [folder / file]


def test_the_table_of_voc_has_a_row_a_class():
  confusion = np.diag(np.arange(21))
  confusion[20, 1] = 20
  rows = console.score_table(
      metrics.scores(confusion), VOC.class_names).splitlines()
  assert len(rows) == 1 + 21
  assert rows[1].split() == ["background", "absent", "absent"]
  assert rows[2].split() == ["aeroplane", "4.76", "100.00"]
  assert rows[21].split() == ["tvmonitor", "50.00", "50.00"]
