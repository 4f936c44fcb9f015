"""What augmentation draws is distributed as what semseg draws.

`semseg_draw` states the drawing of util/transform.py there again, from the
public description alone.
"""

import random

import cv2
import numpy as np
import pytest
from scipy import stats

from psp_jax import default_config
from psp_jax.data import augment

CROP = 65
LEAST_P = 0.001  # A chance of 1 in 100 for the ten comparisons together.


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


def semseg_draw(rng, height, width, crop):
  """What util/transform.py draws from Python's generator, in its order."""
  scale = 0.5 + (2.0 - 0.5) * rng.random()
  rows, columns = cv2.resize(
      np.empty((height, width), np.uint8), None, fx=scale, fy=scale).shape
  angle = 0.0
  if rng.random() < 0.5:
    angle = -10 + (10 - -10) * rng.random()
  blur, mirror = rng.random() < 0.5, rng.random() < 0.5
  # Crop pads first, so that what remains is never negative.
  top = rng.randint(0, max(rows, crop) - crop)
  left = rng.randint(0, max(columns, crop) - crop)
  return augment.Augmentation(scale, angle, blur, mirror, top, left)


@pytest.fixture(scope="module")
def two_samples():
  """Ours and semseg's draws for one image, with what is left to move in."""
  rng = random.Random(0)
  height, width = 60, 90
  drawn = draws(12_000), [semseg_draw(rng, height, width, CROP)
                        for _ in range(12_000)]

  def columns(sample):
    rows = np.array([(d.scale, d.angle, d.blur, d.mirror, d.top, d.left)
                     for d in sample], float)
    scale, angle, blur, mirror, top, left = rows.T
    room = [np.maximum(np.round(n * scale) - CROP, 0) for n in (height, width)]
    return dict(scale=scale, angle=angle, blur=blur, mirror=mirror, top=top,
                left=left, rotate=angle != 0, room=np.array(room))

  return tuple(map(columns, drawn))


def same_distribution(ours, semsegs):
  assert min(len(ours), len(semsegs)) > 1000
  return stats.ks_2samp(ours, semsegs).pvalue > LEAST_P


def test_scale_angle_and_offsets_are_distributed_as_semsegs(two_samples):
  ours, semsegs = two_samples
  for name in ("scale", "top", "left"):
    assert same_distribution(ours[name], semsegs[name]), name
  assert same_distribution(*(s["angle"][s["rotate"]] for s in two_samples))
  # Relative to the room there is; and by how much it is, for the two depend.
  for axis, name in enumerate(("top", "left")):
    for low, high in ((1, 20), (20, 200)):
      relative = []
      for s in two_samples:
        room = s["room"][axis]
        chosen = (room >= low) & (room < high)
        relative.append(s[name][chosen] / room[chosen])
      assert same_distribution(*relative), (name, low)


def test_each_happens_as_often_as_semsegs(two_samples):
  names = ("rotate", "blur", "mirror")
  counts = [np.bincount(np.array([s[n] for n in names], int).T @ (1, 2, 4),
                        minlength=8) for s in two_samples]
  assert stats.chi2_contingency(counts).pvalue > LEAST_P


def test_scale_and_angle_depend_on_nothing_else(two_samples):
  names = ("scale", "angle", "blur", "mirror")
  ranks = stats.spearmanr(np.array([two_samples[0][n] for n in names]).T)[0]
  assert np.abs(ranks - np.eye(4)).max() < 4 / np.sqrt(12_000)


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
