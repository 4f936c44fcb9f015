"""Augmentation in one resample does what semseg's chain of cv2 passes does.

`semseg_chain` states that chain again (tool/train.py and util/transform.py
there), from the public description alone.
"""

import random

import cv2
import numpy as np
import pytest
import scipy.stats

from psp_jax import default_config
from psp_jax.data import augment

MEAN = np.array([0.485, 0.456, 0.406]) * 255
GREY = (124, 116, 104)  # The mean, rounded.
CROP = 65


def semseg_chain(drawn, image, label, crop):
  """semseg's six passes, in float32.

  Returns:
    The image, the label, where the two show the picture (not what fills it
    up), and the crop's slices. All is still uncropped: what lies near a border
    is to be told from the whole.
  """
  image = image.astype(np.float32)
  real = np.ones_like(label)
  scaling = dict(dsize=None, fx=drawn.scale, fy=drawn.scale)
  image = cv2.resize(image, interpolation=cv2.INTER_LINEAR, **scaling)
  label = cv2.resize(label, interpolation=cv2.INTER_NEAREST, **scaling)
  real = cv2.resize(real, interpolation=cv2.INTER_NEAREST, **scaling)
  height, width = label.shape
  if drawn.angle:
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), drawn.angle, 1)
    args = dict(M=turn, dsize=(width, height), borderMode=cv2.BORDER_CONSTANT)
    image = cv2.warpAffine(
        image, flags=cv2.INTER_LINEAR, borderValue=MEAN.tolist(), **args)
    label = cv2.warpAffine(
        label, flags=cv2.INTER_NEAREST, borderValue=255, **args)
    real = cv2.warpAffine(real, flags=cv2.INTER_NEAREST, borderValue=0, **args)
  if drawn.blur:
    image = cv2.GaussianBlur(image, (5, 5), 0)
  if drawn.mirror:
    image, label, real = image[:, ::-1], label[:, ::-1], real[:, ::-1]
  down, right = max(crop - height, 0), max(crop - width, 0)
  edges = (down // 2, down - down // 2, right // 2, right - right // 2)

  def pad(array, value):
    return cv2.copyMakeBorder(np.ascontiguousarray(array), *edges,
                              cv2.BORDER_CONSTANT, value=value)

  cut = np.s_[drawn.top:drawn.top + crop, drawn.left:drawn.left + crop]
  return pad(image, MEAN.tolist()), pad(label, 255), pad(real, 0), cut


def smooth_pair(rng, height, width):
  """A smooth image and a label of a few large regions, some of it 255."""
  def field(channels):
    coarse = rng.uniform(0, 255, (5, 6, channels)).astype(np.float32)
    fine = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return fine.reshape(height, width, channels)

  image = np.clip(field(3), 0, 255).astype(np.uint8)
  ids = np.array([3, 40, 149, 255], np.uint8)
  return image, ids[field(4).argmax(-1)]


def random_draw(rng, height, width, crop, **fixed):
  drawn = dict(scale=rng.uniform(0.5, 2), angle=rng.uniform(-10, 10),
               blur=rng.random() < 0.5, mirror=rng.random() < 0.5) | fixed
  rows, columns = (round(n * drawn["scale"]) for n in (height, width))
  return augment.Augmentation(
      **drawn, top=int(rng.integers(max(rows - crop, 0) + 1)),
      left=int(rng.integers(max(columns - crop, 0) + 1)))


def far_from_borders(label, distance):
  """Where the square of 2 distance + 1 pixels about a pixel is of one value."""
  kernel = np.ones((2 * distance + 1,) * 2, np.uint8)
  around = dict(borderType=cv2.BORDER_REPLICATE)
  return (cv2.dilate(label, kernel, **around)
          == cv2.erode(label, kernel, **around))


def cases(crop=CROP, count=40):
  """(rng, image, label, draw) of all kinds; every other one is not turned."""
  for seed in range(count):
    rng = np.random.default_rng(seed)
    size = rng.integers(crop * 3 // 5, crop * 2, 2)
    fixed = {"angle": 0.0} if seed % 2 else {}
    yield (rng, *smooth_pair(rng, *size),
           random_draw(rng, *size, crop, **fixed))


def test_the_image_is_semsegs_to_a_grey_level():
  for _, image, label, drawn in cases():
    expected, _, real, cut = semseg_chain(drawn, image, label, CROP)
    result, _ = augment.apply(drawn, image, label, CROP)
    error = np.abs(result - expected[cut]).mean(-1)
    assert error.mean() < 1, drawn
    # Inside the picture no pixel is far off. At the rim of a turned one the
    # two blend with the mean over different widths.
    inner = cv2.erode(real, np.ones((11, 11), np.uint8),
                      borderType=cv2.BORDER_CONSTANT, borderValue=0)[cut] == 1
    assert error[inner].max(initial=0) < 8, drawn


def test_the_label_is_semsegs_but_for_a_pixel_at_class_borders():
  for _, image, label, drawn in cases():
    _, expected, _, cut = semseg_chain(drawn, image, label, CROP)
    _, result = augment.apply(drawn, image, label, CROP)
    same = result == expected[cut]
    # semseg rounds to a pixel twice, which can add up to more than one.
    assert same[far_from_borders(expected, 1)[cut]].mean() > 0.999, drawn
    assert same[far_from_borders(expected, 2)[cut]].all(), drawn


def test_labels_of_large_regions_agree():
  crop = 257
  agreement = []
  for _, image, label, drawn in cases(crop, 20):
    _, expected, _, cut = semseg_chain(drawn, image, label, crop)
    _, result = augment.apply(drawn, image, label, crop)
    agreement.append((result == expected[cut]).mean())
  assert min(agreement) > 0.98


def test_only_labels_that_were_there_come_out():
  for rng, image, label, drawn in cases():
    # Fine stripes: an interpolated label would be everywhere.
    label = rng.choice(np.array([0, 7, 100, 200], np.uint8), label.shape)
    _, result = augment.apply(drawn, image, label, CROP)
    assert result.dtype == np.uint8
    assert set(np.unique(result)) <= {0, 7, 100, 200, 255}


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("blur", [False, True])
def test_padding_is_exactly_the_mean_and_255_and_centred(blur, mirror):
  image = np.full((20, 31, 3), 9, np.uint8)
  label = np.full((20, 31), 5, np.uint8)
  drawn = augment.Augmentation(1.5, 0.0, blur, mirror, 0, 0)
  result, ids = augment.apply(drawn, image, label, CROP)
  # 20 x 31 becomes 30 x 46 (46.5 rounds to even): 35 and 19 are missing, of
  # which the smaller half goes first.
  real = np.zeros((CROP, CROP), bool)
  real[17:47, 9:55] = True
  assert (result[real] == 9).all() and (ids[real] == 5).all()
  assert (result[~real] == GREY).all() and (ids[~real] == 255).all()


@pytest.mark.parametrize("angle", [-10.0, -3.0, 6.0, 10.0])
@pytest.mark.parametrize(("height", "width"), [(50, 60), (40, 90), (80, 70)])
def test_a_turned_picture_is_clipped_and_filled_as_semsegs(
    height, width, angle):
  image = np.full((height, width, 3), 9, np.uint8)
  label = np.full((height, width), 5, np.uint8)
  drawn = augment.Augmentation(1.0, angle, False, False, 0, 0)
  expected, ids, _, cut = semseg_chain(drawn, image, label, CROP)
  expected, ids = expected[cut], ids[cut]
  result, result_ids = augment.apply(drawn, image, label, CROP)
  outside = np.abs(expected - MEAN).max(-1) < 0.01
  assert outside.sum() > 20
  assert (result[outside] == GREY).all()
  assert (result_ids[outside] == 255).all()
  # Scale 1: both turn the same pixels about the same point.
  np.testing.assert_array_equal(result_ids, ids)


def test_sizes_types_and_inputs_left_alone():
  rng = np.random.default_rng(0)
  image, label = smooth_pair(rng, 70, 52)
  before = image.copy(), label.copy()
  for crop in (17, 65, 200):
    drawn = augment.Augmentation(1.2, 5.0, True, True, 0, 0)
    result, ids = augment.apply(drawn, image, label, crop)
    assert result.shape == (crop, crop, 3) and ids.shape == (crop, crop)
    assert result.dtype == ids.dtype == np.uint8
  np.testing.assert_array_equal(image, before[0])
  np.testing.assert_array_equal(label, before[1])


def test_nothing_drawn_changes_nothing():
  image, label = smooth_pair(np.random.default_rng(1), CROP, CROP)
  nothing = augment.Augmentation(1.0, 0.0, False, False, 0, 0)
  result, ids = augment.apply(nothing, image, label, CROP)
  np.testing.assert_array_equal(result, image)
  np.testing.assert_array_equal(ids, label)


def test_the_crop_starts_at_the_offsets_drawn():
  image, label = smooth_pair(np.random.default_rng(2), 90, 100)
  drawn = augment.Augmentation(1.0, 0.0, False, False, 25, 35)
  result, ids = augment.apply(drawn, image, label, CROP)
  np.testing.assert_array_equal(result, image[25:, 35:])
  np.testing.assert_array_equal(ids, label[25:, 35:])
  mirrored = augment.Augmentation(1.0, 0.0, False, True, 25, 35)
  result, ids = augment.apply(mirrored, image, label, CROP)
  np.testing.assert_array_equal(result, image[25:, ::-1][:, 35:])
  np.testing.assert_array_equal(ids, label[25:, ::-1][:, 35:])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("blur", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("angle", [0.0, -9.0, 4.0])
def test_an_edge_painted_into_the_image_stays_on_the_labels_edge(
    angle, mirror, blur, transposed):
  """Position of the edge in each row, from the image and from the label."""
  for scale in (0.5, 0.63, 0.87, 1.0, 1.31, 1.7, 2.0):
    label = np.zeros((140, 140), np.uint8)
    label[:, 71:] = 1
    label = label.T.copy() if transposed else label
    image = np.repeat(label[..., None] * 255, 3, -1).astype(np.uint8)
    middle = max(round(140 * scale) - CROP, 0) // 2
    drawn = augment.Augmentation(scale, angle, blur, mirror, middle, middle)
    crop, ids = augment.apply(drawn, image, label, 65)
    inner = np.s_[12:-12]
    grey, ids = crop[..., 0].astype(float), ids.astype(float)
    if transposed:
      grey, ids = grey.T, ids.T
    distance = grey[inner, inner].sum(1) / 255 - ids[inner, inner].sum(1)
    assert np.abs(distance).max() <= 0.52, scale  # 0.02 for 8-bit rounding.


# ---- What is drawn.


def config(**changes):
  c = default_config.get_config()
  c.data.augment.update(changes)
  return c


def draws(count, height=60, width=90, crop=CROP, seed=0, **changes):
  c = config(**changes)
  rng = np.random.default_rng(seed)
  return [augment.draw(rng, height, width, crop, c) for _ in range(count)]


@pytest.mark.parametrize("scale", [0.5, 0.501, 0.73, 1.0, 1.25, 1.999])
def test_the_canvas_is_as_large_as_cv2_makes_it(scale):
  for size in range(3, 120):
    shape = (size, 122 - size)
    scaled = cv2.resize(np.zeros(shape, np.uint8), None, fx=scale, fy=scale)
    assert augment.canvas_size(*shape, scale) == scaled.shape


def uniform_distance(values, low, high):
  """Kolmogorov's distance from the uniform distribution."""
  values = (np.sort(values) - low) / (high - low)
  return np.abs(values - (np.arange(len(values)) + 0.5) / len(values)).max()


def test_scale_and_angle_are_uniform_over_their_ranges():
  drawn = draws(3000, rotate_probability=1.0)
  for values, low, high in (([d.scale for d in drawn], 0.5, 2.0),
                            ([d.angle for d in drawn], -10.0, 10.0)):
    assert low <= min(values) and max(values) <= high
    assert uniform_distance(values, low, high) < 0.035  # p = 0.001


@pytest.mark.parametrize(
    ("field", "name"),
    [("angle", "rotate"), ("blur", "blur"), ("mirror", "mirror")])
@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_each_happens_as_often_as_configured(field, name, probability):
  count = 2000
  drawn = draws(count, **{f"{name}_probability": probability})
  share = np.mean([bool(getattr(d, field)) for d in drawn])
  if probability in (0.0, 1.0):
    assert share == probability
  else:
    assert abs(share - probability) < 4 * np.sqrt(0.16 / count)


def test_rotation_blur_and_mirror_are_independent():
  flags = np.array([(d.angle != 0, d.blur, d.mirror) for d in draws(4000)])
  combination = flags @ (1, 2, 4)
  counts = np.bincount(combination, minlength=8)
  assert np.abs(counts / 4000 - 1 / 8).max() < 4 * np.sqrt(7 / 64 / 4000)


def test_offsets_are_uniform_and_reach_both_ends():
  drawn = draws(2000, height=68, width=CROP + 1, scale=(1.0, 1.0))
  tops = np.bincount([d.top for d in drawn])
  lefts = np.bincount([d.left for d in drawn])
  assert len(tops) == 4 and len(lefts) == 2
  assert np.abs(tops / 2000 - 1 / 4).max() < 0.04
  assert np.abs(lefts / 2000 - 1 / 2).max() < 0.045


def test_a_picture_smaller_than_the_crop_has_no_offset():
  assert {(d.top, d.left) for d in draws(50, height=20, width=30)} == {(0, 0)}


def test_offsets_follow_the_scaled_size():
  for d in draws(500):
    assert d.top <= max(round(60 * d.scale) - CROP, 0)
    assert d.left <= max(round(90 * d.scale) - CROP, 0)
  assert max(d.left for d in draws(500)) > 90 - CROP


def test_equal_generators_draw_equal():
  assert draws(20, seed=5) == draws(20, seed=5)
  assert draws(20, seed=5) != draws(20, seed=6)


def semsegs_draw(height, width, crop):
  """(scale, angle, blur, mirror, top, left) as util/transform.py draws them.

  With Python's `random`, and offsets from the size that cv2 gives the image.
  """
  image = np.zeros((height, width), np.uint8)
  scale = 0.5 + (2.0 - 0.5) * random.random()
  image = cv2.resize(image, None, fx=scale, fy=scale)
  angle = -10 + (10 + 10) * random.random() if random.random() < 0.5 else 0.0
  blur, mirror = random.random() < 0.5, random.random() < 0.5
  rows, columns = (max(n, crop) for n in image.shape)
  return (scale, angle, blur, mirror, random.randint(0, rows - crop),
          random.randint(0, columns - crop))


@pytest.mark.parametrize(("height", "width"), [(60, 90), (130, 70)])
def test_the_distribution_is_semsegs(height, width):
  """Two-sample Kolmogorov-Smirnov, each field and what offsets depend on."""
  random.seed(0)
  count = 2000
  theirs = np.array([semsegs_draw(height, width, CROP) for _ in range(count)],
                    float)
  ours = np.array([(d.scale, d.angle, d.blur, d.mirror, d.top, d.left)
                   for d in draws(count, height=height, width=width)], float)
  for a, b in zip(ours.T, theirs.T, strict=True):
    assert scipy.stats.ks_2samp(a, b).pvalue > 1e-3
  # Offsets together with the scale that bounds them: a joint distribution.
  for column in (4, 5):
    assert scipy.stats.ks_2samp(
        ours[:, column] / ours[:, 0], theirs[:, column] / theirs[:, 0]
    ).pvalue > 1e-3
    large = [x[x[:, 0] > 1.5, column] for x in (ours, theirs)]
    assert scipy.stats.ks_2samp(*large).pvalue > 1e-3


def test_real_masks_keep_their_labels(shared):
  folder = shared / "data/ade20k_sample/ADEChallengeData2016"
  masks = sorted(folder.glob("annotations/validation/*.png"))
  assert len(masks) == 3
  rng = np.random.default_rng(0)
  for path in masks:
    label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    image = cv2.imread(str(
        folder / "images/validation" / f"{path.stem}.jpg"))
    seen = set()
    for _ in range(10):
      _, result = augment.apply(
          random_draw(rng, *label.shape, 473), image, label, 473)
      seen |= set(np.unique(result).tolist())
    assert seen - {255} <= set(np.unique(label).tolist())
    assert len(seen) > 5
