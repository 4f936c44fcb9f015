"""Redrawn positions, values that cannot work, and pictures of any size."""

import dataclasses

import cv2
import numpy as np
import pytest
from scipy import stats

from psp_jax import default_config, train
from psp_jax.data import augment
from psp_jax.errors import ConfigError

GREY = (124, 116, 104)


def config(**changes):
  c = default_config.get_config()
  c.data.augment.update(dict(
      scale=(1.0, 1.0), rotate_probability=0.0, blur_probability=0.0,
      mirror_probability=0.0) | changes)
  return c


# ---- cat_max_ratio.


def is_mixed(ids, ratio):
  """mmsegmentation's condition, stated anew."""
  classes, counts = np.unique(ids[ids != 255], return_counts=True)
  return len(classes) > 1 and counts.max() / counts.sum() < ratio


class Counting:
  """A generator that counts the positions drawn from it, two a position."""

  def __init__(self, seed):
    self._rng = np.random.default_rng(seed)
    self.integers_drawn = 0

  def integers(self, *args, **kwargs):
    self.integers_drawn += 1
    return self._rng.integers(*args, **kwargs)

  def __getattr__(self, name):
    return getattr(self._rng, name)

  @property
  def positions(self):
    return self.integers_drawn // 2


def mosaic(rng, height=120, width=150):
  """Large regions: some crops of 40 hold one class, some several, some none."""
  ids = rng.choice(np.array([2, 2, 2, 7, 9, 255], np.uint8), (4, 5))
  return np.kron(ids, np.ones((height // 4, width // 5), np.uint8))


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.95])
def test_the_first_position_that_is_mixed_is_taken(ratio):
  """Redrawn by hand from the same generator, cut by hand from the label."""
  redraws = []
  for seed in range(120):
    label = mosaic(np.random.default_rng(seed))
    c = config(cat_max_ratio=ratio)
    rng, by_hand = Counting(seed), np.random.default_rng(seed)
    drawn = augment.draw_for(rng, label, 40, c)

    first = augment.draw(by_hand, *label.shape, 40, c)
    top, left, count = first.top, first.left, 0
    while count < 10 and not is_mixed(
        label[top:top + 40, left:left + 40], ratio):
      top, left = by_hand.integers(81), by_hand.integers(111)
      count += 1
    assert (drawn.top, drawn.left) == (top, left)
    assert rng.positions == 1 + count
    redraws.append(count)
  assert min(redraws) == 0 and len(set(redraws)) > 3


@pytest.mark.parametrize("value", [4, 255])
def test_a_label_of_one_class_or_none_is_redrawn_ten_times(value):
  rng = Counting(0)
  augment.draw_for(rng, np.full((90, 90), value, np.uint8), 40,
                   config(cat_max_ratio=0.75))
  assert rng.positions == 11


def test_the_crop_judged_is_the_crop_returned():
  """Scaled, turned and mirrored as well: fewer crops of one class come out."""
  few = {}
  for ratio in (1.0, 0.75):
    c = default_config.get_config()
    c.data.augment.cat_max_ratio = ratio
    few[ratio] = 0
    for seed in range(150):
      rng = np.random.default_rng(seed)
      label = mosaic(rng)
      drawn = augment.draw_for(rng, label, 40, c)
      _, ids = augment.apply(drawn, np.repeat(label[..., None], 3, 2), label,
                             40)
      np.testing.assert_array_equal(ids, augment.crop_label(drawn, label, 40))
      few[ratio] += not is_mixed(ids, 0.75)
  assert few[0.75] < 0.2 * few[1.0]


def test_off_it_draws_what_it_always_drew():
  label = mosaic(np.random.default_rng(0))
  c = default_config.get_config()
  for seed in range(30):
    a, b = np.random.default_rng(seed), np.random.default_rng(seed)
    assert augment.draw_for(a, label, 40, c) == augment.draw(
        b, *label.shape, 40, c)
    assert a.random() == b.random()  # Not one draw more.


def test_positions_accepted_are_uniform():
  """A label whose every crop is mixed: redrawing has nothing to prefer."""
  label = np.indices((50, 41)).sum(0).astype(np.uint8) % 3
  c = config(cat_max_ratio=0.75)
  rng = np.random.default_rng(0)
  tops = [augment.draw_for(rng, label, 40, c).top for _ in range(2200)]
  assert stats.chisquare(np.bincount(tops, minlength=11)).pvalue > 0.001


def test_equal_generators_redraw_equal():
  label = mosaic(np.random.default_rng(1))
  c = config(cat_max_ratio=0.4, photometric_distortion=True)
  a, b, other = ([augment.draw_for(rng, label, 40, c) for _ in range(20)]
                 for rng in map(np.random.default_rng, (5, 5, 6)))
  assert a == b != other


# ---- Values.


@pytest.mark.parametrize(("field", "value"), [
    ("scale", (2.0, 0.5)), ("scale", (0.0, 1.0)), ("scale", (-1.0, 1.0)),
    ("scale", (1.0,)), ("scale", (0.5, 1.0, 2.0)), ("scale", ("a", "b")),
    ("scale", (0.5, float("inf"))), ("scale", (float("nan"), 1.0)),
    ("rotate_degrees", -1.0), ("rotate_degrees", 181.0),
    ("rotate_degrees", float("nan")),
    ("rotate_probability", 1.1), ("rotate_probability", -0.1),
    ("blur_probability", 2.0), ("mirror_probability", float("nan")),
    ("cat_max_ratio", 0.0), ("cat_max_ratio", 1.01),
    ("cat_max_ratio", float("nan"))])
def test_values_that_cannot_work_are_named(field, value):
  c = default_config.get_config()
  c.data.augment[field] = value
  with pytest.raises(ConfigError) as error:
    augment.check(c)
  assert f"config.data.augment.{field}={value!r}: must be" in str(error.value)


def test_values_at_the_ends_work():
  augment.check(default_config.get_config())
  augment.check(config(scale=(1, 1), rotate_degrees=180.0, cat_max_ratio=0.01,
                       rotate_probability=1.0, blur_probability=0.0))


@pytest.mark.parametrize(("field", "value"), [
    ("data.augment.scale", (2.0, 0.5)), ("data.augment.cat_max_ratio", 2.0),
    ("data.crop_size", 0)])
def test_a_run_refuses_them_before_anything_is_written(
    field, value, tiny_config, tmp_path):
  tiny_config.update_from_flattened_dict({field: value})
  tiny_config.data.manual_dir = "/nowhere"  # Not even looked at.
  with pytest.raises(ConfigError, match=f"config.{field}="):
    train.train(tiny_config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


# ---- Sizes.


def brute_force(drawn, image, label, crop):
  """Each pixel of an unblurred crop by itself, in Python and float64.

  Also returns how near each is to a tie between two source pixels.
  """
  height, width = label.shape
  rows, columns = (max(1, round(n * drawn.scale)) for n in label.shape)
  out = np.empty((crop, crop, 3))
  ids = np.full((crop, crop), 255, int)
  tie = np.ones((crop, crop))
  out[:] = GREY
  angle = np.deg2rad(drawn.angle)
  for i in range(crop):
    for j in range(crop):
      # Of the padded canvas, of the canvas, mirrored back, turned back.
      y = i + drawn.top - max(crop - rows, 0) // 2
      x = j + drawn.left - max(crop - columns, 0) // 2
      if not (0 <= y < rows and 0 <= x < columns):
        continue
      x = columns - 1 - x if drawn.mirror else x
      dy, dx = y - rows / 2, x - columns / 2
      x = columns / 2 + np.cos(angle) * dx - np.sin(angle) * dy
      y = rows / 2 + np.sin(angle) * dx + np.cos(angle) * dy
      y, x = ((v + 0.5) / drawn.scale - 0.5 for v in (y, x))
      if not drawn.angle:  # The edge goes on outwards.
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)

      def at(v, u):
        inside = 0 <= v < height and 0 <= u < width
        return image[v, u].astype(float) if inside else np.array(GREY, float)

      v, u = int(np.floor(y)), int(np.floor(x))
      b, a = y - v, x - u
      out[i, j] = ((1 - b) * ((1 - a) * at(v, u) + a * at(v, u + 1))
                   + b * ((1 - a) * at(v + 1, u) + a * at(v + 1, u + 1)))
      tie[i, j] = min(abs(b - 0.5), abs(a - 0.5))
      v, u = int(np.floor(y + 0.5)), int(np.floor(x + 0.5))
      ids[i, j] = label[v, u] if 0 <= v < height and 0 <= u < width else 255
  return out, ids, tie


SIZES = [(1, 1), (1, 500), (500, 1), (2, 3), (3, 20_000), (20_000, 2),
         (2, 40_000), (33_000, 3), (60, 60)]


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_any_size_is_what_pixel_by_pixel_gives(size):
  rng = np.random.default_rng(sum(size))
  image = cv2.GaussianBlur(  # Smooth: a coordinate's last bit is no grey level.
      rng.integers(0, 256, (*size, 3)).astype(np.uint8), (0, 0), 2)
  label = rng.integers(0, 150, size).astype(np.uint8)
  for crop in (1, 24):
    for angle in (0.0, 7.0, -4.0):
      for mirror in (False, True):
        scale = rng.uniform(0.5, 2)
        rows, columns = augment.canvas_size(*size, scale)
        drawn = augment.Augmentation(
            scale, angle, False, mirror,
            int(rng.integers(max(rows - crop, 0) + 1)),
            int(rng.integers(max(columns - crop, 0) + 1)))
        result, ids = augment.apply(drawn, image, label, crop)
        expected, expected_ids, tie = brute_force(drawn, image, label, crop)
        # OpenCV before 5 rounds coordinates to 1/32 of a pixel.
        assert np.abs(result - expected).max() <= 4, drawn
        clear = tie > 0.02
        np.testing.assert_array_equal(ids[clear], expected_ids[clear])


@pytest.mark.parametrize(("size", "crop", "square"), [
    ((150, 170), (60, 100), 100), ((150, 170), (100, 60), 100),
    ((60, 170), (100, 60), 100),  # Padded above and below,
    ((170, 60), (40, 100), 100)])  # and left and right.
def test_oblong_crops_are_parts_of_square_ones(size, crop, square):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
  label = rng.integers(0, 20, size).astype(np.uint8)
  for i in range(8):
    drawn = augment.Augmentation(
        1.0, 5.0 * (i % 2), i > 3, i % 4 > 1,
        int(rng.integers(max(size[0] - square, 0) + 1)),
        int(rng.integers(max(size[1] - square, 0) + 1)))
    result, ids = augment.apply(drawn, image, label, crop)
    whole, whole_ids = augment.apply(drawn, image, label, square)
    part = np.s_[:crop[0], :crop[1]]
    np.testing.assert_array_equal(ids, whole_ids[part])
    # Where the view ends, its interpolation may round otherwise.
    assert np.abs(result.astype(int) - whole[part]).max() <= 1


def test_oblong_crops_reach_every_place():
  c = default_config.get_config()
  c.data.augment.scale = (1.0, 1.0)
  c.data.crop_size, c.data.crop_width = 10, 30
  assert augment.crop_shape(c) == (10, 30)
  rng = np.random.default_rng(0)
  drawn = [augment.draw(rng, 14, 31, augment.crop_shape(c), c)
           for _ in range(200)]
  assert {d.top for d in drawn} == {0, 1, 2, 3, 4}
  assert {d.left for d in drawn} == {0, 1}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_nothing_drawn_for_any_size_fails(size):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
  c = default_config.get_config()
  c.data.augment.photometric_distortion = True
  c.data.augment.cat_max_ratio = 0.75
  for label in (np.full(size, 255, np.uint8), image[..., 0].copy()):
    for crop in (1, 2, 47, 100):
      for _ in range(6):
        drawn = augment.draw_for(rng, label, crop, c)
        result, ids = augment.apply(drawn, image, label, crop)
        assert result.shape == (crop, crop, 3) and ids.shape == (crop, crop)
        assert result.dtype == ids.dtype == np.uint8
        assert set(np.unique(ids)) <= {*np.unique(label), 255}


def test_the_part_that_is_cut_out_of_a_large_picture_is_enough(monkeypatch):
  """Small pictures, cut as large ones are: the same but for roundings."""
  rng = np.random.default_rng(0)
  image = cv2.GaussianBlur(
      rng.integers(0, 256, (150, 170, 3)).astype(np.uint8), (0, 0), 2)
  label = (image[..., 0] // 16).astype(np.uint8)
  c = default_config.get_config()
  for _ in range(60):
    drawn = augment.draw(rng, *label.shape, 40, c)
    whole = augment.apply(drawn, image, label, 40)
    with monkeypatch.context() as patched:
      patched.setattr(augment, "_SIDE_LIMIT", 1)
      cut = augment.apply(drawn, image, label, 40)
    assert np.abs(whole[0].astype(int) - cut[0]).max() <= 1
    assert (whole[1] == cut[1]).mean() > 0.995


def test_no_side_reaches_opencv_where_it_fails(monkeypatch):
  """OpenCV 5 takes any; those before it refuse 32,767 and more."""
  seen = []

  def watched(function):
    def call(source, *args, **kwargs):
      seen.append(max(source.shape[:2]))
      return function(source, *args, **kwargs)
    return call

  for name in ("warpAffine", "resize"):
    monkeypatch.setattr(cv2, name, watched(getattr(cv2, name)))
  image = np.zeros((3, 50_000, 3), np.uint8)
  c = default_config.get_config()
  rng = np.random.default_rng(0)
  for _ in range(20):
    drawn = augment.draw(rng, 3, 50_000, 65, c)
    drawn = dataclasses.replace(drawn, left=int(rng.integers(20_000)))
    augment.apply(drawn, image, image[..., 0], 65)
  assert len(seen) == 40 and max(seen) < 400
