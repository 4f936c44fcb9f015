"""Colours of ids, and where the pictures lie on the contact sheet."""

import cv2
import numpy as np
import pytest

from psp_jax import visualize
from psp_jax.data import taxonomy

PALETTE = np.array([(10, 20, 30), (200, 0, 0), (0, 200, 0), (1, 2, 250)],
                   np.uint8)
CLASSES = taxonomy.Taxonomy(("one", "two", "three", "four"), PALETTE,
                            taxonomy.make_label_map(0, 4))


def test_each_id_has_its_colour_and_ignored_is_black():
  label = np.array([[0, 1, 2], [3, 255, 4], [254, 0, 3]], np.uint8)
  black = (0, 0, 0)
  expected = [[PALETTE[0], PALETTE[1], PALETTE[2]],
              [PALETTE[3], black, black], [black, PALETTE[0], PALETTE[3]]]
  colours = visualize.colorize(label, PALETTE)
  assert colours.dtype == np.uint8
  np.testing.assert_array_equal(colours, np.array(expected))


def row(rng, height, width):
  return (rng.integers(0, 255, (height, width, 3)).astype(np.uint8),
          *rng.choice(np.array([0, 1, 2, 3, 255], np.uint8),
                      (2, height, width)))


def painted(label):
  out = np.zeros((*label.shape, 3), np.uint8)
  for i, colour in enumerate(PALETTE):
    out[label == i] = colour
  return out


def place(sheet, picture):
  """(top, left) of the one place where `picture` is found on `sheet`."""
  fits = np.argwhere(cv2.matchTemplate(
      sheet.astype(np.float32), picture.astype(np.float32),
      cv2.TM_SQDIFF) < 0.5 * picture.size)
  fits = [(y, x) for y, x in fits if np.array_equal(
      sheet[y:y + picture.shape[0], x:x + picture.shape[1]], picture)]
  assert len(fits) == 1
  return tuple(map(int, fits[0]))


SIZES = [[(20, 30)], [(20, 30), (25, 18), (9, 41)], [(64, 200), (64, 200)]]


@pytest.mark.parametrize("sizes", SIZES)
def test_pictures_stand_in_rows_and_columns_and_do_not_touch(sizes):
  rng = np.random.default_rng(0)
  rows = [row(rng, *size) for size in sizes]
  sheet = visualize.contact_sheet(rows, CLASSES)
  assert sheet.dtype == np.uint8
  pictures = [(image, painted(truth), painted(guess))
              for image, truth, guess in rows]
  places = np.array([[place(sheet, p) for p in line] for line in pictures])
  assert (places[:, :, 0] == places[:, :1, 0]).all()  # One row, one top.
  assert (places[:, :, 1] == places[:1, :, 1]).all()  # One column, one left.
  height, width = np.max(sizes, axis=0)
  assert (np.diff(places[:, 0, 0]) > height).all()
  assert (np.diff(places[0, :, 1]) > width).all()

  left_white = np.ones(sheet.shape[:2], bool)
  for line, tops_lefts in zip(pictures, places, strict=True):
    for picture, (top, left) in zip(line, tops_lefts, strict=True):
      left_white[top:top + picture.shape[0],
                 left:left + picture.shape[1]] = False
  first, last = places[0, 0, 0], places[-1, 0, 0] + height
  between = left_white[first:last]
  assert (sheet[first:last][between] == 255).all()
  # Something is written above, and something drawn below.
  assert (sheet[:first] < 128).any() and (sheet[last:] < 128).any()


@pytest.mark.parametrize("width", [20, 60, 300])
def test_the_legend_shows_every_class(width):
  rng = np.random.default_rng(1)
  count = 12
  palette = np.arange(1, 3 * count + 1, dtype=np.uint8).reshape(count, 3) * 6
  many = taxonomy.Taxonomy(tuple("abcdefghijkl"), palette,
                           taxonomy.make_label_map(0, count))
  pictures = row(rng, 15, width)
  sheet = visualize.contact_sheet([pictures], many)
  below = sheet[place(sheet, pictures[0])[0] + 15:]
  at = []
  for colour in palette:
    shown = np.argwhere((below == colour).all(-1))
    assert len(shown) >= 100
    at.append(tuple(shown.min(0)))
  assert at == sorted(at)  # In reading order.


def test_a_written_sheet_reads_back(tmp_path):
  rgb = np.random.default_rng(2).integers(0, 256, (9, 13, 3)).astype(np.uint8)
  visualize.write_png(tmp_path / "sheet.png", rgb)
  np.testing.assert_array_equal(
      cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1], rgb)


def test_a_place_that_cannot_be_written_to_is_an_error(tmp_path):
  with pytest.raises(OSError):
    visualize.write_png(tmp_path / "no" / "such" / "folder.png",
                        np.zeros((3, 3, 3), np.uint8))


def test_where_a_class_is_black_ignored_is_not():
  palette = taxonomy.voc_palette(21)
  colours = visualize.colorize(np.array([[0, 1, 255]], np.uint8), palette)
  assert colours.tolist() == [[[0, 0, 0], [128, 0, 0], [224, 224, 192]]]


def test_an_overlay_is_half_and_half_and_leaves_what_is_ignored():
  rng = np.random.default_rng(0)
  image, label, _ = row(rng, 20, 30)
  mixed = visualize.overlay(image, label, PALETTE)
  expected = (image.astype(float) + painted(label)) / 2
  expected[label == 255] = image[label == 255]
  assert mixed.dtype == np.uint8
  assert np.abs(mixed - expected).max() <= 0.5


def test_large_pictures_are_shrunk_on_the_sheet_of_masks():
  rng = np.random.default_rng(0)
  small, large = row(rng, 20, 30)[:2], row(rng, 300, 1200)[:2]
  sheet = visualize.mask_sheet([small, large], CLASSES, max_width=100)
  # Three columns of at most 100 and the gaps, a header and a legend.
  assert sheet.shape[1] == 3 * (100 + 4)
  place(sheet, small[0])
  place(sheet, painted(small[1]))
  place(sheet, painted(cv2.resize(large[1], (100, 25),
                                  interpolation=cv2.INTER_NEAREST)))
  tall = visualize.mask_sheet([row(rng, 1000, 10)[:2]], CLASSES, 100)
  assert tall.shape[0] < 200 + 6 * 22  # Header, and a legend of 4 rows.
