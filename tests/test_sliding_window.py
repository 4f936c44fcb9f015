"""The protocol on the device is semseg's, or mmsegmentation's, in numpy.

semseg_protocol.py says their programs again. The network is a stand-in whose
answer depends on a pixel's colours, its neighbour and its place in the window.
"""

import math
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from semseg_protocol import (
  MEAN,
  STD,
  mmseg_probabilities,
  semseg_probabilities,
  softmax,
)

from psp_jax import default_config, sliding_window
from psp_jax.errors import ConfigError

CLASSES = 5
WINDOW = 33
WEIGHTS = np.random.default_rng(7).normal(size=(2, 3, CLASSES)) * 1.5


def logits_of(images, xp):
  """(N, h, w, 3) normalised to (N, h, w, classes), not symmetric in any way."""
  height, width = images.shape[1:3]
  y = xp.arange(height)[:, None, None]
  x = xp.arange(width)[None, :, None]
  k = xp.arange(CLASSES)
  place = xp.sin(0.21 * y * (k + 1) + 0.13 * x * (CLASSES - k) + k)
  return (images @ WEIGHTS[0] + xp.roll(images, 1, axis=2) @ WEIGHTS[1]
          + 2 * place)


def apply(variables, images, train):
  assert not train and images.dtype == jnp.float32
  return logits_of(images, jnp) * variables["sharpness"]


MODEL = types.SimpleNamespace(apply=apply)
VARIABLES = {"sharpness": jnp.float32(1.0)}
FORWARD = {(flip, average): jax.jit(
    sliding_window.make_forward(MODEL, flip, average))
           for flip in (False, True) for average in ("probabilities", "logits")}


def network(image):
  return logits_of(image[None], np)[0]


def pictures(count, height, width):
  rng = np.random.default_rng(height * 1000 + width)
  coarse = rng.integers(0, 256, (count, 9, 11, 3)).astype(np.uint8)
  return np.stack([cv2.resize(c, (width, height)) for c in coarse])


def probabilities(images, protocol, window_batch=3, shapes=None):
  """At the images' size; the shapes of the network's input go to `shapes`."""
  def forward(variables, windows):
    if shapes is not None:
      shapes.append(windows.shape)
    return FORWARD[protocol.flip, protocol.average](variables, windows)

  out = sliding_window.probabilities(
      forward, VARIABLES, images, CLASSES, protocol, window_batch)
  group, height, width = images.shape[:3]
  assert out.shape[0] == group and out.shape[-1] == CLASSES
  assert out.shape[1] >= height and out.shape[2] >= width
  return np.asarray(out)[:, :height, :width]


def protocol(scales=(1.0,), base_size=0, window=WINDOW, flip=True, **fields):
  return sliding_window.Protocol(
      scales, flip, window, 2 / 3, base_size, **fields)


def assert_close(result, expected):
  np.testing.assert_allclose(result, expected, atol=1e-4)
  assert (result.argmax(-1) == expected.argmax(-1)).mean() >= 0.999


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "scales", "base_size"), [
        (21, 30, (1.0,), 0),  # Smaller than the window: padded both ways.
        (20, 80, (1.0,), 0),  # Padded in height, slid in width.
        (33, 33, (1.0,), 0),  # The window itself.
        (70, 50, (1.0,), 0),  # Upright.
        (40, 91, (1.0,), 0),
        (55, 55, (1.0,), 0),  # The last window fits without a shift.
        (45, 62, (0.75, 1.0, 1.5), 0),
        (90, 47, (0.75, 1.0, 1.5), 60),
        (25, 31, (0.5, 1.75), 64)])
def test_probabilities_are_semsegs(height, width, scales, base_size, flip):
  images = pictures(1, height, width)
  result = probabilities(images, protocol(scales, base_size, flip=flip))
  expected = semseg_probabilities(
      network, images[0], scales, base_size or max(height, width), WINDOW, flip)
  assert_close(result[0], expected)
  np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "scales", "base_size", "sizes"), [
    (30, 47, (1.0,), 47, [(30, 47)]),
    # The long side is rounded first (30.5 to even), then the other follows it.
    (61, 40, (0.5,), 61, [(30, 20)]),
    (37, 53, (0.75, 1.0, 1.5), 50, [(27, 38), (35, 50), (52, 75)])])
def test_a_whole_image_is_one_window_without_padding(
    height, width, scales, base_size, sizes):
  images = pictures(1, height, width)
  shapes = []
  result = probabilities(
      images, protocol(scales, base_size, window=None, flip=False), 1, shapes)
  assert shapes == [(1, *size, 3) for size in sizes]
  assert_close(result[0], semseg_probabilities(
      network, images[0], scales, base_size, None, False))


def test_at_its_own_size_the_whole_image_is_the_networks_answer():
  images = pictures(2, 26, 39)
  expected = softmax(logits_of((images - MEAN) / STD, np))
  result = probabilities(images, protocol(window=None, flip=False))
  assert_close(result, expected)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("height", "width", "scales", "base_size"), [
    (21, 30, (1.0,), 0),  # Smaller than the window: taken whole.
    (20, 80, (1.0,), 0),  # Windows of 20 x 33; the last does not fit.
    (70, 50, (1.0,), 0),
    (55, 55, (1.0,), 0),  # All fit: the mirrored grid is the same.
    (45, 62, (0.75, 1.0, 1.5), 0),
    (47, 90, (0.75, 1.0, 1.5), 60),
    (90, 47, (0.5, 1.75), 33)])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_averages_of_logits_are_mmsegmentations(
    window, height, width, scales, base_size, flip):
  images = pictures(1, height, width)
  how = protocol(scales, base_size, window, flip, average="logits",
                 base_side="short")
  result = probabilities(images, how)
  assert_close(result[0], mmseg_probabilities(
      network, images[0], scales, base_size or min(height, width), window,
      flip))


def test_logits_are_not_probabilities():
  """Else the tests above could not tell which were averaged."""
  images = pictures(1, 45, 62)
  for window, flip, scale in ((WINDOW, False, 1.0), (WINDOW, True, 1.0),
                              (None, False, 1.5), (None, True, 1.5)):
    both = [probabilities(images, protocol((scale,), 0, window, flip,
                                           average=average))
            for average in ("probabilities", "logits")]
    assert np.abs(both[0] - both[1]).max() > 0.01


@pytest.mark.parametrize("average, window, limit", [
    ("probabilities", WINDOW, 0), ("logits", WINDOW, 0), ("logits", None, 0),
    ("probabilities", WINDOW, 64)])  # 64: rows so, columns otherwise.
def test_long_axes_are_resized_without_matrices(
    monkeypatch, average, window, limit):
  images = pictures(2, 45, 112)
  how = protocol((0.75, 1.5), 0, window, average=average)
  expected = probabilities(images, how)
  monkeypatch.setattr(sliding_window, "_MATRIX_LIMIT", limit)
  np.testing.assert_allclose(probabilities(images, how), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (20, 20_000), (20_000, 3)])
def test_extreme_sizes_are_scored(size):
  """A matrix of 20,000 x 20,000 would not fit a laptop's memory."""
  images = np.random.default_rng(0).integers(
      0, 256, (1, *size, 3)).astype(np.uint8)
  result = probabilities(images, protocol((1.0,)), window_batch=300)
  assert result.shape == (1, *size, CLASSES)
  np.testing.assert_allclose(result.sum(-1), 1, atol=1e-5)
  assert_close(result[0], semseg_probabilities(
      network, images[0], (1.0,), max(size), WINDOW, True))


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_a_group_is_its_images_one_by_one(window, average):
  images = pictures(2, 45, 62)
  assert np.abs(images[0].astype(int) - images[1]).mean() > 10
  how = protocol((0.75, 1.0), window=window, average=average)
  together = probabilities(images, how, window_batch=4)
  for image, result in zip(images, together, strict=True):
    alone = probabilities(image[None], how, window_batch=4)[0]
    np.testing.assert_allclose(result, alone, atol=1e-6)


@pytest.mark.parametrize("window_batch", [1, 4, 5, 12, 50])
def test_any_number_of_windows_at_a_time_gives_the_same(window_batch):
  images = pictures(2, 45, 62)  # 2 images of 2 x 3 windows.
  shapes = []
  result = probabilities(images, protocol(flip=False), window_batch, shapes)
  for image, one in zip(images, result, strict=True):
    assert_close(one, semseg_probabilities(
        network, image, (1,), 62, WINDOW, False))
  assert shapes == [(window_batch, WINDOW, WINDOW, 3)] * math.ceil(
      12 / window_batch)


def test_images_of_like_sizes_share_their_programs(caplog):
  how = protocol((0.75, 1.0), base_size=60)

  def compilations(height, width):
    caplog.clear()
    with jax.log_compiles():
      probabilities(pictures(1, height, width), how)
    return [r for r in caplog.records if "Compiling" in r.getMessage()]

  assert compilations(150, 131)
  for height, width in ((150, 132), (190, 129), (140, 191)):
    assert not compilations(height, width)


# ---- The geometry, by hand.


def plan(height, width, window, base_size=0, scale=1.0, **fields):
  return sliding_window.plan(
      height, width, scale,
      protocol(window=window, base_size=base_size, **fields))


def test_a_landscape_of_ade20k():
  # 683 x 512 at base 512: 512 x round(383.8); 89 rows short of the window.
  p = plan(512, 683, 473, 512)
  assert p.scaled == (384, 512)
  assert p.canvas == (473, 512)
  assert p.pad == (44, 0)
  assert p.window == (473, 473)
  assert p.offsets == ((0, 0), (0, 39))  # ceil(39 / 316) + 1 = 2 columns.


def test_a_portrait_of_ade20k():
  p = plan(683, 512, 473, 512)
  assert p.scaled == (512, 384) and p.pad == (0, 44)
  assert p.offsets == ((0, 0), (39, 0))


def test_cityscapes_at_713_is_two_by_four_windows():
  p = plan(1024, 2048, 713, 2048)
  assert p.scaled == p.canvas == (1024, 2048) and p.pad == (0, 0)
  assert p.offsets == tuple(
      (top, left) for top in (0, 311) for left in (0, 476, 952, 1335))


def test_cityscapes_at_the_largest_scale():
  p = plan(1024, 2048, 713, 2048, scale=1.75)
  assert p.canvas == (1792, 3584)
  assert p.offsets == tuple(
      (top, left) for top in (0, 476, 952, 1079)
      for left in (0, 476, 952, 1428, 1904, 2380, 2856, 2871))


@pytest.mark.parametrize(("window", "stride"), [(473, 316), (713, 476)])
@pytest.mark.parametrize("more", [0, 1])
def test_strides_that_fit_and_one_pixel_more(window, stride, more):
  size = window + 2 * stride + more
  starts = [0, stride, 2 * stride] + [2 * stride + 1] * more
  p = plan(window, size, window)
  assert p.offsets == tuple((0, start) for start in starts)


def test_every_pixel_of_the_canvas_is_in_a_window():
  rng = np.random.default_rng(0)
  for height, width in rng.integers(10, 300, (60, 2)):
    window = int(rng.integers(9, 90))
    scale = float(rng.uniform(0.5, 2))
    p = plan(int(height), int(width), window, scale=scale)
    seen = np.zeros(p.canvas, int)
    for top, left in p.offsets:
      assert 0 <= top <= p.canvas[0] - window
      assert 0 <= left <= p.canvas[1] - window
      seen[top:top + window, left:left + window] += 1
    assert seen.min() >= 1
    assert len(set(p.offsets)) == len(p.offsets)
    rows, columns = p.canvas
    assert rows == max(window, p.scaled[0])
    assert columns == max(window, p.scaled[1])


def test_a_sliver_keeps_a_pixel():
  assert plan(2000, 1, 33, base_size=40).scaled == (40, 1)
  assert plan(1, 2000, 33, base_size=40).scaled == (1, 40)


@pytest.mark.parametrize(("height", "width", "scaled"), [
    (512, 683, (512, 683)), (683, 512, (683, 512)), (300, 500, (512, 853)),
    (700, 700, (512, 512)), (1001, 2000, (512, 1023))])
def test_the_short_side_is_512(height, width, scaled):
  # mmsegmentation's (2048, 512) for images up to four times as long as high.
  p = plan(height, width, 473, 512, base_side="short")
  assert p.scaled == scaled
  p = plan(height, width, 473, base_side="short", scale=0.5)
  assert p.scaled == ((height + 1) // 2, (width + 1) // 2)


def test_logits_are_averaged_without_padding():
  p = plan(300, 1000, 769, average="logits")
  assert p.canvas == p.scaled == (300, 1000) and p.pad == (0, 0)
  assert p.window == (300, 769) and p.offsets == ((0, 0), (0, 231))
  # Cityscapes at 769 with stride 513, as published.
  p = plan(1024, 2048, 769, average="logits")
  assert p.offsets == tuple(
      (top, left) for top in (0, 255) for left in (0, 513, 1026, 1279))


@pytest.mark.parametrize(("source", "target"), [
    (1, 1), (1, 7), (7, 1), (10, 10), (10, 20), (20, 10), (13, 50), (50, 13),
    (60, 473), (473, 60), (99, 100), (100, 99), (2, 5), (5, 2)])
def test_resizing_is_cv2s_along_one_axis(source, target):
  values = np.random.default_rng(source).normal(size=(source, 3)).astype(
      np.float32)
  matrix = sliding_window.half_pixel_matrix(source, target)
  assert matrix.shape == (target, source) and matrix.dtype == np.float32
  expected = cv2.resize(values[:, None], (1, target),
                        interpolation=cv2.INTER_LINEAR)[:, 0]
  # cv2 computes positions in float32.
  np.testing.assert_allclose(matrix @ values, expected, atol=1e-4)


# ---- From the config.


def test_the_config_says_how():
  c = default_config.get_config()
  c.eval.scales = (0.5, 1.0)
  how = sliding_window.Protocol.from_config(c)
  assert how == sliding_window.Protocol((0.5, 1.0), True, 473, 2 / 3, 512)
  assert how.as_json() == {
      "scales": [0.5, 1.0], "flip": True, "window": 473, "base_size": 512,
      "stride_fraction": 2 / 3, "base_side": "long",
      "average": "probabilities", "absent_classes": "skip"}
  c.eval.update({"window_size": 321, "flip": False, "base_side": "short",
                 "average": "logits", "absent_classes": "zero"})
  how = sliding_window.Protocol.from_config(c)
  assert how.window == 321 and not how.flip
  assert {"base_side": "short", "average": "logits",
          "absent_classes": "zero"}.items() <= how.as_json().items()
  c.eval.window = "whole"
  how = sliding_window.Protocol.from_config(c)
  assert how.window is None and how.as_json()["window"] == "whole"


@pytest.mark.parametrize(("field", "choices"), [
    ("window", "'sliding', 'whole'"), ("base_side", "'long', 'short'"),
    ("average", "'probabilities', 'logits'"),
    ("absent_classes", "'skip', 'zero'")])
def test_what_does_not_exist_is_refused(field, choices):
  c = default_config.get_config()
  c.eval[field] = "other"
  with pytest.raises(ConfigError, match=f"eval.{field}='other'.*{choices}"):
    sliding_window.Protocol.from_config(c)
