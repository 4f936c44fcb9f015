"""The geometry of the protocols, by hand and beside cv2.

What is made of it is compared with semseg and mmsegmentation in
test_stitching.py.
"""

import cv2
import numpy as np
import pytest

from psp_jax import default_config, sliding_window
from psp_jax.errors import ConfigError

WINDOW = 33


def protocol(scales=(1.0,), base_size=0, window=WINDOW, flip=True, **fields):
  return sliding_window.Protocol(
      scales, flip, window, 2 / 3, base_size, **fields)


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
  low, first, second = sliding_window.into_window(source, target, 0, 0, target)
  assert first.dtype == second.dtype == np.float32
  padded = np.append(values, values[-1:], 0)
  result = padded[low] * first[:, None] + padded[low + 1] * second[:, None]
  expected = cv2.resize(values[:, None], (1, target),
                        interpolation=cv2.INTER_LINEAR)[:, 0]
  # cv2 computes positions in float32.
  np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("tile", [8, 64])
@pytest.mark.parametrize(("source", "scaled", "pad", "window"), [
    (50, 50, 0, 20), (50, 23, 0, 9), (23, 50, 0, 33), (30, 12, 4, 20),
    (1, 1, 3, 8), (1, 9, 0, 5), (2, 1, 0, 1), (130, 131, 0, 33)])
def test_windows_together_are_the_image_resized_back(
    source, scaled, pad, window, tile, mirrored):
  canvas = max(scaled + 2 * pad, window)
  values = np.random.default_rng(source).normal(size=canvas).astype(np.float32)
  starts = sorted({min(i, canvas - window)
                   for i in range(0, canvas, max(1, window * 2 // 3))})
  total = np.zeros(-(-source // tile) * tile)
  for start, pieces in zip(starts, sliding_window.out_of_windows(
      source, scaled, pad, starts, window, tile, 0.25, mirrored)):
    seen = np.append(values[start:start + window], np.nan)
    for index, first, span, taps in pieces:
      assert 0 <= first < first + span <= window
      for i, (low, a, b) in enumerate(zip(*taps)):
        for at, weight in ((low, a), (low + 1, b)):
          if weight:
            assert first <= at < first + span
            total[index * tile + i] += weight * seen[at]
  expected = 0.25 * cv2.resize(values[pad:pad + scaled, None], (1, source),
                               interpolation=cv2.INTER_LINEAR)[:, 0]
  np.testing.assert_allclose(
      total[:source][::-1 if mirrored else 1], expected, atol=1e-4)
  assert not total[source:].any()


@pytest.mark.parametrize(("source", "scaled", "pad", "window"), [
    (50, 50, 0, 20), (50, 23, 0, 9), (23, 50, 0, 33), (30, 12, 4, 20),
    (1, 1, 3, 8), (1, 9, 0, 5), (2, 1, 0, 1)])
def test_windows_of_a_mirror_image_are_those_of_the_image_turned(
    source, scaled, pad, window):
  values = np.random.default_rng(source).normal(size=source)
  canvas = max(scaled + 2 * pad, window)

  def windows(values, mirrored):
    ends = np.pad(values, 1, constant_values=1e9)  # Never with a weight.
    for start in range(canvas - window + 1):
      low, first, second = sliding_window.into_window(
          source, scaled, pad, start, window, mirrored)
      yield ends[low + 1] * first + ends[low + 2] * second

  for one, other in zip(windows(values, True), windows(values[::-1], False)):
    np.testing.assert_allclose(one, other, atol=1e-4)


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
