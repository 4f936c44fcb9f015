"""Photometric distortion is mmsegmentation's.

`mmseg_chain` states its stages again, in float32 on BGR as there, from the
public description alone; `colorsys` says what saturation and hue mean.
"""

import colorsys
import dataclasses

import cv2
import numpy as np
import pytest
from scipy import stats

from psp_jax import default_config
from psp_jax.data import augment, photometric
from psp_jax.data.photometric import Distortion

GREY = (124, 116, 104)  # What padding is filled with.


def mmseg_chain(d, rgb):
  image = rgb[..., ::-1]

  def convert(array, alpha=1, beta=0):
    array = array.astype(np.float32) * alpha + beta
    return np.clip(array, 0, 255).astype(np.uint8)

  def in_hsv(image, change):
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2HSV)
    change(hsv)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)

  def saturate(hsv):
    hsv[..., 1] = convert(hsv[..., 1], alpha=d.saturation)

  def turn(hsv):
    hsv[..., 0] = (hsv[..., 0].astype(int) + d.hue) % 180

  if d.brightness is not None:
    image = convert(image, beta=d.brightness)
  if d.contrast is not None and d.contrast_first:
    image = convert(image, alpha=d.contrast)
  if d.saturation is not None:
    image = in_hsv(image, saturate)
  if d.hue is not None:
    image = in_hsv(image, turn)
  if d.contrast is not None and not d.contrast_first:
    image = convert(image, alpha=d.contrast)
  return image[..., ::-1]


def colours(rng, *shape):
  return rng.integers(0, 256, (*shape, 3)).astype(np.uint8)


@pytest.mark.parametrize("seed", range(40))
def test_it_is_mmsegmentations_to_the_last_bit(seed):
  rng = np.random.default_rng(seed)
  image = colours(rng, 37, 41)
  before = image.copy()
  drawn = photometric.draw(rng)
  np.testing.assert_array_equal(photometric.apply(drawn, image),
                                mmseg_chain(drawn, image))
  np.testing.assert_array_equal(image, before)


def test_fractions_are_cut_off_and_the_rest_clipped():
  image = np.array([[[0, 101, 255]]], np.uint8)

  def result(**stage):
    return photometric.apply(Distortion(**stage), image).ravel().tolist()

  assert result(brightness=31.7) == [31, 132, 255]
  assert result(brightness=-31.7) == [0, 69, 223]
  assert result(contrast=0.5) == [0, 50, 127]
  assert result(contrast=1.5) == [0, 151, 255]
  assert result() == [0, 101, 255]


def test_contrast_comes_in_the_place_drawn():
  image = np.array([[[250, 60, 30]]], np.uint8)
  first, last = (photometric.apply(
      Distortion(contrast=1.5, contrast_first=f, saturation=0.5), image)
      for f in (True, False))
  # First, red is clipped at 255 and gives its saturation; last, at the end.
  assert first[0, 0, 0] == last[0, 0, 0] == 255
  assert last[0, 0, 1] > first[0, 0, 1] + 20


@pytest.mark.parametrize("hue", [-18, -5, 0, 9, 17])
@pytest.mark.parametrize("saturation", [0.5, 1.0])
def test_hue_and_saturation_are_what_colorsys_calls_so(hue, saturation):
  # Vivid colours: the hue of a nearly grey one is all rounding.
  rng = np.random.default_rng(0)
  image = np.array([[colorsys.hsv_to_rgb(*hsv) for hsv in rng.uniform(
      (0, 0.5, 0.6), (1, 1, 1), (300, 3))]])
  image = (image * 255).round().astype(np.uint8)
  result = photometric.apply(
      Distortion(saturation=saturation, hue=hue), image)
  for before, after in zip(image[0] / 255, result[0], strict=True):
    h, s, v = colorsys.rgb_to_hsv(*before)
    expected = colorsys.hsv_to_rgb((h + hue / 180) % 1, s * saturation, v)
    assert np.abs(np.array(expected) * 255 - after).max() < 9


def test_stages_and_their_sizes_are_distributed_as_there():
  rng = np.random.default_rng(0)
  drawn = [photometric.draw(rng) for _ in range(8000)]
  happens = np.array([[d.brightness is not None, d.contrast is not None,
                       d.contrast_first, d.saturation is not None,
                       d.hue is not None] for d in drawn])
  # All 32 combinations alike: each half the time and none by another's leave.
  counts = np.bincount(happens @ (1, 2, 4, 8, 16), minlength=32)
  assert stats.chisquare(counts).pvalue > 0.001
  for name, low, high in (("brightness", -32, 32), ("contrast", 0.5, 1.5),
                          ("saturation", 0.5, 1.5)):
    values = [v for d in drawn if (v := getattr(d, name)) is not None]
    assert stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.001
  hues = np.array([d.hue for d in drawn if d.hue is not None])
  counts = np.bincount(hues + 18)
  assert len(counts) == 36 and stats.chisquare(counts).pvalue > 0.001


def test_equal_generators_draw_equal():
  a, b = (photometric.draw(np.random.default_rng(3)) for _ in range(2))
  assert a == b != photometric.draw(np.random.default_rng(4))


# ---- Within augmentation.

BRIGHTER = Distortion(brightness=20.0)


@pytest.mark.parametrize("angle", [0.0, 9.0, -5.0])
@pytest.mark.parametrize("size", [(30, 40), (90, 50)])
def test_padding_stays_the_mean_and_the_picture_does_not(angle, size):
  image = np.full((*size, 3), 60, np.uint8)
  label = np.full(size, 5, np.uint8)
  plain = augment.Augmentation(1.0, angle, False, True, 0, 0)
  distorted = dataclasses.replace(plain, distortion=BRIGHTER)
  (a, ids), (b, ids_b) = (augment.apply(d, image, label, 65)
                          for d in (plain, distorted))
  np.testing.assert_array_equal(ids, ids_b)
  padding = ids == 255
  assert 100 < padding.sum() < padding.size - 100
  # At the rim of a turned picture the two are blended.
  np.testing.assert_array_equal(a[padding], b[padding])
  np.testing.assert_array_equal(b[~padding], a[~padding] + 20)
  rim = cv2.dilate((~padding).astype(np.uint8), np.ones((3, 3))) == 1
  assert (b[~rim] == GREY).all() and (~rim).sum() > 100


def test_an_unturned_crop_is_distorted_after_scaling_and_before_the_blur():
  rng = np.random.default_rng(2)
  image, label = colours(rng, 50, 60), np.zeros((50, 60), np.uint8)
  drawn = augment.Augmentation(1.3, 0.0, False, True, 0, 3)
  for seed in range(20):
    d = photometric.draw(np.random.default_rng(seed))
    plain, _ = augment.apply(drawn, image, label, 40)
    full, _ = augment.apply(dataclasses.replace(drawn, distortion=d), image,
                            label, 40)
    np.testing.assert_array_equal(full, mmseg_chain(d, plain))

    blurred = dataclasses.replace(drawn, distortion=d, blur=True)
    result, _ = augment.apply(blurred, image, label, 40)
    inside = np.s_[2:-2, 2:-2]
    expected = cv2.GaussianBlur(full, (5, 5), 0)[inside].astype(int)
    # Seen with the blur's margin, a pixel may be rounded otherwise.
    error = np.abs(expected - result[inside])
    assert error.max() <= 3 and error.mean() < 0.1


def test_it_is_drawn_where_configured_and_changes_no_other_draw():
  c = default_config.get_config()
  label = np.zeros((60, 90), np.uint8)
  for seed in range(20):
    c.data.augment.photometric_distortion = False
    plain = augment.draw_for(np.random.default_rng(seed), label, 65, c)
    c.data.augment.photometric_distortion = True
    full = augment.draw_for(np.random.default_rng(seed), label, 65, c)
    assert plain.distortion is None and full.distortion is not None
    assert dataclasses.replace(full, distortion=None) == plain
