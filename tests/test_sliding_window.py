"""The protocol on the device is semseg's tool/test.py, said again in numpy.

`semseg_probabilities` follows the public description of that program: cv2 for
resizing, loops for windows, float64 sums. The network is a stand-in whose
answer depends on a pixel's colours, its neighbour and its place in the window.
"""

import math
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psp_jax import default_config, sliding_window

MEAN = np.array([0.485, 0.456, 0.406]) * 255
STD = np.array([0.229, 0.224, 0.225]) * 255
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
FORWARD = {flip: jax.jit(sliding_window.make_forward(MODEL, flip))
           for flip in (False, True)}


def softmax(logits):
  e = np.exp(logits - logits.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def semseg_window(crop, flip):
  crop = (crop - MEAN) / STD
  straight = softmax(logits_of(crop[None], np))[0]
  if not flip:
    return straight
  mirrored = softmax(logits_of(crop[None, :, ::-1], np))[0]
  return (straight + mirrored[:, ::-1]) / 2


def semseg_probabilities(image, scales, base_size, window, flip):
  """(H, W, classes) of an RGB image; `window=None` is the whole image."""
  h, w = image.shape[:2]
  total = np.zeros((h, w, CLASSES))
  for scale in scales:
    long_size = round(scale * base_size)
    new_h = new_w = long_size
    if h > w:
      new_w = round(long_size / float(h) * w)
    else:
      new_h = round(long_size / float(w) * h)
    scaled = cv2.resize(image.astype(np.float32), (new_w, new_h),
                        interpolation=cv2.INTER_LINEAR)
    crop_h = window or new_h
    crop_w = window or new_w
    pad_h, pad_w = max(crop_h - new_h, 0), max(crop_w - new_w, 0)
    top, left = int(pad_h / 2), int(pad_w / 2)
    canvas = cv2.copyMakeBorder(
        scaled, top, pad_h - top, left, pad_w - left, cv2.BORDER_CONSTANT,
        value=MEAN.tolist())
    size_h, size_w = canvas.shape[:2]
    stride_h, stride_w = (int(np.ceil(c * 2 / 3)) for c in (crop_h, crop_w))
    grid_h = int(np.ceil((size_h - crop_h) / stride_h) + 1)
    grid_w = int(np.ceil((size_w - crop_w) / stride_w) + 1)
    summed = np.zeros((size_h, size_w, CLASSES))
    count = np.zeros((size_h, size_w, 1))
    for i in range(grid_h):
      for j in range(grid_w):
        end_h = min(i * stride_h + crop_h, size_h)
        end_w = min(j * stride_w + crop_w, size_w)
        at = np.s_[end_h - crop_h:end_h, end_w - crop_w:end_w]
        summed[at] += semseg_window(canvas[at], flip)
        count[at] += 1
    mean = (summed / count)[top:top + new_h, left:left + new_w]
    total += cv2.resize(mean, (w, h), interpolation=cv2.INTER_LINEAR)
  return total / len(scales)


def pictures(count, height, width):
  rng = np.random.default_rng(height * 1000 + width)
  coarse = rng.integers(0, 256, (count, 9, 11, 3)).astype(np.uint8)
  return np.stack([cv2.resize(c, (width, height)) for c in coarse])


def probabilities(images, protocol, window_batch=3, shapes=None):
  """At the images' size; the shapes of the network's input go to `shapes`."""
  def forward(variables, windows):
    if shapes is not None:
      shapes.append(windows.shape)
    return FORWARD[protocol.flip](variables, windows)

  out = sliding_window.probabilities(
      forward, VARIABLES, images, CLASSES, protocol, window_batch)
  group, height, width = images.shape[:3]
  assert out.shape[0] == group and out.shape[-1] == CLASSES
  assert out.shape[1] >= height and out.shape[2] >= width
  return np.asarray(out)[:, :height, :width]


def protocol(scales=(1.0,), base_size=0, window=WINDOW, flip=True):
  return sliding_window.Protocol(scales, flip, window, 2 / 3, base_size)


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
      images[0], scales, base_size or max(height, width), WINDOW, flip)
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
      images[0], scales, base_size, None, False))


def test_at_its_own_size_the_whole_image_is_the_networks_answer():
  images = pictures(2, 26, 39)
  expected = softmax(logits_of((images - MEAN) / STD, np))
  result = probabilities(images, protocol(window=None, flip=False))
  assert_close(result, expected)


@pytest.mark.parametrize("window", [WINDOW, None])
def test_a_group_is_its_images_one_by_one(window):
  images = pictures(2, 45, 62)
  assert np.abs(images[0].astype(int) - images[1]).mean() > 10
  how = protocol((0.75, 1.0), window=window)
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
    assert_close(one, semseg_probabilities(image, (1,), 62, WINDOW, False))
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


def plan(height, width, window, base_size=0, scale=1.0):
  return sliding_window.plan(
      height, width, scale, protocol(window=window, base_size=base_size))


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
      "stride_fraction": 2 / 3}
  c.eval.window_size, c.eval.flip = 321, False
  how = sliding_window.Protocol.from_config(c)
  assert how.window == 321 and not how.flip
  c.eval.window = "whole"
  how = sliding_window.Protocol.from_config(c)
  assert how.window is None and how.as_json()["window"] == "whole"
