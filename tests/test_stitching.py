"""What the device answers is semseg's protocol, or mmsegmentation's, in numpy.

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

from psp_jax import sliding_window, stitching

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
    stitching.make_forward(MODEL, flip, average))
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

  out = np.stack(stitching.probabilities(
      forward, VARIABLES, images, CLASSES, protocol, window_batch))
  assert out.shape == (*images.shape[:3], CLASSES)
  return out


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


# ---- Batches over scales and images.

MIXED = [(45, 62), (20, 80), (21, 30), (129, 340), (33, 33), (45, 62)]


@pytest.mark.parametrize(("window", "average", "window_batch"), [
    (WINDOW, "probabilities", 2), (WINDOW, "probabilities", 7),
    (WINDOW, "probabilities", 64), (WINDOW, "logits", 7),
    (None, "probabilities", 7), (None, "logits", 2)])
def test_images_of_any_sizes_are_those_images_one_by_one(
    window_batch, window, average):
  images = [pictures(1, *size)[0] for size in MIXED]
  how = protocol((0.5, 1.0), 50, window, average=average)
  forward = FORWARD[True, average]
  keys = []

  def keyed():
    for key, image in enumerate(images):
      keys.append(key)
      yield key, image

  together = list(stitching.stitched(
      forward, VARIABLES, keyed(), CLASSES, how, window_batch))
  assert [key for key, _ in together] == keys == list(range(len(images)))
  for image, (_, blocks) in zip(images, together, strict=True):
    result = stitching.from_blocks(blocks, *image.shape[:2])
    alone = probabilities(image[None], how, window_batch=1)[0]
    np.testing.assert_allclose(result, alone, atol=1e-6)


def test_only_the_last_batch_holds_filler():
  images = [pictures(1, *size)[0] for size in MIXED]
  how = protocol((0.5, 0.75, 1.0, 1.5), 60)
  needed = sum(len(sliding_window.plan(*size, scale, how).offsets)
               for size in MIXED for scale in how.scales)
  calls = []

  def forward(variables, windows):
    calls.append(windows.shape)
    return FORWARD[True, "probabilities"](variables, windows)

  list(stitching.stitched(
      forward, VARIABLES, enumerate(images), CLASSES, how, 8))
  assert calls == [(8, WINDOW, WINDOW, 3)] * math.ceil(needed / 8)


@pytest.mark.parametrize("window", [WINDOW, None])
def test_images_are_read_when_they_are_needed(window):
  """Neither all before the first result, nor their results all at the end."""
  taken = []

  def keyed():
    for i in range(6):
      taken.append(i)
      yield i, pictures(1, 33, 30 + 2 * i)[0]

  how = protocol(window=window, flip=False)
  keys = []
  for key, _ in stitching.stitched(
      FORWARD[False, "probabilities"], VARIABLES, keyed(), CLASSES, how, 2):
    keys.append(key)
    assert len(taken) - key <= 2
  assert keys == list(range(6))


def test_many_sizes_share_a_handful_of_programs(caplog):
  how = protocol((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), base_size=60)
  rng = np.random.default_rng(0)
  sizes = rng.integers(100, 250, (30, 2))

  def compilations():
    caplog.clear()
    with jax.log_compiles():
      for height, width in sizes:
        probabilities(pictures(1, height, width), how, window_batch=4)
    return [r.args[0] for r in caplog.records
            if r.getMessage().startswith("Compiling")]

  jax.clear_caches()
  found = compilations()
  # Pixels are held by 128 or 256 rows and columns; strips have 6 widths at
  # most: 33, 32, 24, 16, 12, 8.
  assert found.count("jit(_cut)") == 4
  assert found.count("jit(_stitch)") <= 6
  assert 7 <= len(found) <= 16, found
  assert not compilations()


@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_matrix_units_answer_the_same(monkeypatch, window, average):
  """What `platform_dependent` takes elsewhere, here on the CPU."""
  images = pictures(2, 45, 150)
  how = protocol((0.4, 1.5), 0, window, average=average)
  expected = probabilities(images, how)
  by_matrices = []

  def elsewhere(cpu, default):
    by_matrices.append(True)
    return default()

  monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
  jax.clear_caches()
  result = probabilities(images, how)
  jax.clear_caches()  # Else what follows would use these programs.
  assert by_matrices
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_mirror_image_is_averaged_in_exactly():
  windows = np.random.default_rng(0).normal(
      size=(3, WINDOW, WINDOW, 3)).astype(np.float32)
  alone = FORWARD[False, "probabilities"]
  mirrored = alone(VARIABLES, windows[:, :, ::-1])[:, :, ::-1]
  np.testing.assert_allclose(
      FORWARD[True, "probabilities"](VARIABLES, windows),
      (alone(VARIABLES, windows) + mirrored) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "size", [(1, 1), (64, 64), (65, 63), (130, 200), (3, 700)])
def test_blocks_are_the_array_again(size):
  array = np.random.default_rng(0).integers(0, 200, size).astype(np.uint8)
  blocks = stitching.to_blocks(array, 255)
  assert blocks.shape[1:] == (16, 64, 64) and blocks.dtype == np.uint8
  assert (blocks != 255).sum() == array.size
  tiles = math.prod(-(-n // 64) for n in size)
  assert len(blocks) == math.ceil(tiles / 16)
  np.testing.assert_array_equal(stitching.from_blocks(blocks, *size), array)
