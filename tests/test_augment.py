"""Augmentation in one resample does what semseg's chain of cv2 passes does.

`semseg_chain` states that chain again (tool/train.py and util/transform.py
there), from the public description alone.
"""

import cv2
import numpy as np
import pytest

from psp_jax.data import ade20k, augment, camvid

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


def real_pairs(shared):
  """(image, label) of the ADE20K samples and of six CamVid photographs."""
  for root, images, masks, taxonomy, step in (
      (shared / "data/ade20k_sample/ADEChallengeData2016",
       "images/validation", "annotations/validation", ade20k.TAXONOMY, 1),
      (shared / "data/CamVid", "val", "valannot", camvid.TAXONOMY, 20)):
    for path in sorted((root / masks).iterdir())[::step]:
      image = next((root / images).glob(f"{path.stem}.*"))
      mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
      yield cv2.imread(str(image)), taxonomy.label_map[mask].astype(np.uint8)


def test_real_photographs_and_masks_are_semsegs(shared):
  """Thin poles and jagged borders, which the drawn regions above lack."""
  crop, rng, kinds = 233, np.random.default_rng(0), set()
  square = np.ones((7, 7), np.uint8)
  for image, label in real_pairs(shared):
    for fixed in ({"angle": 0.0}, {}, {"scale": 0.6}, {"blur": False}):
      drawn = random_draw(rng, *label.shape, crop, **fixed)
      expected, expected_ids, real, cut = semseg_chain(
          drawn, image, label, crop)
      result, ids = augment.apply(drawn, image, label, crop)

      assert set(np.unique(ids)) <= {*np.unique(label), 255}
      kinds |= set(np.unique(ids))
      far = far_from_borders(expected_ids, 2)[cut]
      # Shrunk, a line of a pixel is met by one of the two and not the other.
      assert (ids == expected_ids[cut])[far].mean() > 0.999, drawn
      inside = cv2.erode(real, square)[cut] == 1
      assert (ids == expected_ids[cut])[inside].mean() > 0.95, drawn
      outside = cv2.dilate(real, square)[cut] == 0
      assert (ids[outside] == 255).all() and (result[outside] == GREY).all()

      expected, result = expected[cut], result.astype(np.float32)
      if not drawn.angle:
        assert np.abs(result - expected)[inside].mean() < 0.3, drawn
        continue
      # semseg resamples twice what is turned, which dulls it: without the
      # finest detail the two are far closer than one pixel's shift would be.
      ours, theirs, shifted = (cv2.GaussianBlur(a, (9, 9), 1.5)[inside]
                               for a in (result, expected,
                                         np.roll(result, 1, axis=1)))
      error = np.abs(ours - theirs).mean()
      assert error < 0.5 * np.abs(shifted - theirs).mean(), drawn
      assert abs((ours - theirs).mean()) < 0.25, drawn
  assert len(kinds) > 20  # Else little is compared.


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


@pytest.mark.parametrize("mirror", [False, True])
def test_an_image_that_is_not_turned_is_what_cv2_resizes(mirror):
  """Pixel by pixel that of the whole canvas; warpAffine is less exact."""
  rng = np.random.default_rng(0)
  image, label = smooth_pair(rng, 120, 150)
  image = np.where(rng.random(image.shape) < 0.5, image, 255 - image)
  exact, resized = [], 0
  for _ in range(60):
    drawn = random_draw(rng, 120, 150, CROP, angle=0.0, blur=False,
                        mirror=mirror)
    canvas = cv2.resize(image, None, fx=drawn.scale, fy=drawn.scale)
    canvas = canvas[:, ::-1] if mirror else canvas
    down, right = (max(CROP - n, 0) for n in canvas.shape[:2])
    canvas = cv2.copyMakeBorder(
        np.ascontiguousarray(canvas), down // 2, down - down // 2, right // 2,
        right - right // 2, cv2.BORDER_CONSTANT, value=GREY)
    expected = canvas[drawn.top:drawn.top + CROP, drawn.left:drawn.left + CROP]
    result, _ = augment.apply(drawn, image, label, CROP)
    difference = np.abs(result.astype(int) - expected)
    frame = augment._Frame.of(drawn, label.shape, CROP)
    if augment._resized(image, frame.matrix, frame.size) is None:
      continue
    resized += 1
    exact.append((difference == 0).mean())
    assert difference.max() <= 4  # 255 levels by a 128th of a pixel, twice.
  assert resized > 40 and np.mean(exact) > 0.7
