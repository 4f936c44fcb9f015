"""A run as a function: what it says of a photograph is what is scored.

Oracles: the evaluator's own predictions, OpenCV's enlarging, Pillow's turning.
"""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

import psp_jax
from psp_jax import evaluate, runs, segmenter, sliding_window
from psp_jax.data import datasets
from psp_jax.errors import CheckpointError, ConfigError, DataError
from psp_jax.models import create_model


def photograph(height, width, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("options", [
    {}, {"window": 33, "scales": (0.75, 1.25), "flip": True}])
def test_it_says_what_is_scored(tiny_run, options):
  seg = psp_jax.load(tiny_run, **options)
  config, state = runs.load(tiny_run)
  if options:
    config.eval.window, config.eval.window_size = "sliding", 33
    config.eval.scales, config.eval.flip = options["scales"], True
  split = datasets.open_split(config, "test")
  scored = []
  evaluate.Evaluator(create_model(config), config).run(
      state, split, on_prediction=lambda record, prediction: scored.append(
          (record, prediction)))
  assert len(scored) == 4
  together = list(seg.label_maps([record["image"] for record, _ in scored]))
  for (record, prediction), labels in zip(scored, together):
    np.testing.assert_array_equal(labels, prediction)
    np.testing.assert_array_equal(seg(record["image"]), prediction)
    probabilities = seg.probabilities(record["image"])
    np.testing.assert_array_equal(probabilities.argmax(-1), prediction)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_images_of_any_sizes_come_in_order(tiny_run):
  seg = psp_jax.load(tiny_run, window=33, base_size=60, scales=(1.0, 0.5))
  images = [photograph(*size, seed) for seed, size in enumerate(
      [(48, 64), (30, 200), (1, 1), (48, 64), (500, 333)])]
  windows = []
  together = list(seg.label_maps(
      images, lambda done, of: windows.append((done, of))))
  for image, labels in zip(images, together):
    assert labels.shape == image.shape[:2] and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, seg(image))
  assert windows[-1][0] == windows[-1][1] > 5
  assert windows == sorted(windows)


def test_large_answers_are_enlarged_as_opencv_does(tiny_run):
  seg = psp_jax.load(tiny_run, base_size=64)
  image = photograph(300, 401)
  answer, = seg.answers([image])
  assert answer.small.shape == (48, 64, 11)
  whole = cv2.resize(answer.small, (401, 300), interpolation=cv2.INTER_LINEAR)
  np.testing.assert_allclose(seg.probabilities(image), whole, atol=1e-5)
  first, second = np.sort(whole, -1)[..., -2:].transpose(2, 0, 1)[::-1]
  clear = first - second > 1e-4  # Of two equals OpenCV may have the other.
  assert clear.mean() > 0.9
  assert (answer.labels() == whole.argmax(-1))[clear].all()


@pytest.mark.parametrize("size, base, usual, expected", [
    ((3000, 4000), 512, None, (768, 1024)),  # Twice 512: the largest scale.
    ((750, 1000), 512, None, (750, 1000)),  # As it is scored.
    ((3000, 4000), 0, (360, 480), (360, 480)),
    ((300, 4000), 0, (360, 480), (114, 1518)),  # Of the same area.
    ((400, 520), 0, (360, 480), (400, 520)),
    ((90, 120), 0, (360, 480), (360, 480)),
    ((90, 120), 0, None, (90, 120)),
])
def test_the_size_at_which_a_photograph_is_seen(size, base, usual, expected):
  protocol = sliding_window.Protocol((0.5, 2.0), False, None, 2 / 3, base)
  assert segmenter.canvas_size(*size, protocol, usual) == expected


def test_a_base_size_of_0_is_the_photograph_s_own(tiny_run):
  image = photograph(200, 260)
  usual, own = (next(psp_jax.load(tiny_run, base_size=base).answers([image]))
                for base in (None, 0))
  assert own.small.shape[:2] == (200, 260)
  assert usual.small.shape[:2] == (49, 63)  # 48x64 pixels is usual.


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_are_turned_upright(tmp_path, orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  path = tmp_path / "photo.jpg"
  Image.fromarray(photograph(32, 48)).save(path, exif=exif, quality=95)
  with Image.open(path) as file:
    expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    by_pillow = segmenter.read_image(file)
  np.testing.assert_array_equal(by_pillow, expected)
  read = segmenter.read_image(path)
  assert read.shape == expected.shape
  assert np.abs(read.astype(int) - expected).max() <= 3  # Two JPEG decoders.


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_kinds_of_pictures(tmp_path, mode):
  image = Image.fromarray(photograph(32, 48)).convert(mode)
  path = tmp_path / ("photo.jpg" if mode in ("L", "CMYK") else "photo.png")
  image.save(path)
  with Image.open(path) as file:
    expected = np.asarray(file.convert("RGB")).astype(int)
  for given in (path, str(path)):
    read = segmenter.read_image(given)
    assert np.abs(read - expected).max() <= (6 if mode == "CMYK" else 2)
  with Image.open(path) as file:
    np.testing.assert_array_equal(segmenter.read_image(file), expected)


def test_grey_arrays_are_repeated():
  grey = photograph(8, 9)[..., 0]
  np.testing.assert_array_equal(
      segmenter.read_image(grey), np.stack([grey] * 3, -1))


@pytest.mark.parametrize("array", [
    np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8),
    np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8), "abc"])
def test_what_is_no_image_is_told(array):
  with pytest.raises(DataError, match="no image|abc: cannot be read"):
    segmenter.read_image(array)


def test_the_overlay_has_the_colours_and_a_legend(tiny_run):
  seg = psp_jax.load(tiny_run)
  image = photograph(48, 64)
  drawn, labels = seg.overlay(image, opacity=1.0), seg(image)
  assert drawn.shape[0] > 48 and drawn.shape[1] == 64
  np.testing.assert_array_equal(drawn[:48], seg.palette[labels])
  np.testing.assert_array_equal(seg.overlay(image, opacity=0.0)[:48], image)
  legend = drawn[48:].reshape(-1, 3)
  for index in np.unique(labels):
    assert (legend == seg.palette[index]).all(-1).any()


@pytest.mark.parametrize("options, message", [
    ({"scales": ()}, "scales"), ({"scales": (0, 1)}, "scales"),
    ({"window": 0}, "window=0"), ({"window": "tiles"}, "window='tiles'"),
    ({"base_size": -1}, "base_size=-1")])
def test_options_that_cannot_be(tiny_run, options, message):
  with pytest.raises(ConfigError, match=message):
    psp_jax.load(tiny_run, **options)


def test_runs_that_are_not_there(tiny_run, tmp_path):
  with pytest.raises(ConfigError, match="config.json: no such file"):
    psp_jax.load(tmp_path)
  with pytest.raises(CheckpointError, match="no checkpoint of step 99"):
    psp_jax.load(tiny_run, step=99)


def test_classes_travel_with_the_run(tiny_run, tiny_config, tmp_path):
  names = datasets.taxonomy(tiny_config).class_names
  found = runs.load_classes(tiny_config, tiny_run)
  assert found.taxonomy.class_names == names and found.image_size == (48, 64)
  # Without the file, the dataset's; without the dataset, numbers.
  assert runs.load_classes(
      tiny_config, tmp_path).taxonomy.class_names == names
  tiny_config.data.manual_dir = str(tmp_path / "gone")
  taxonomy = runs.load_classes(tiny_config, tmp_path).taxonomy
  assert taxonomy.class_names[3] == "class 3" and taxonomy.num_classes == 11
  assert len(np.unique(taxonomy.palette, axis=0)) == 11


@pytest.mark.parametrize("change", [
    {"palette": [[0, 0, 0]]}, {"stored_ids": [0, 999]}, {"class_names": 3},
    {"class_names": [1] * 11}, {"image_size": [3]}, {"palette": "red"}])
def test_a_damaged_class_list_is_told(tiny_run, tiny_config, tmp_path, change):
  content = json.loads((tiny_run / "classes.json").read_text()) | change
  (tmp_path / "classes.json").write_text(json.dumps(content))
  with pytest.raises(CheckpointError, match="classes.json: not readable"):
    runs.load_classes(tiny_config, tmp_path)


def test_importing_psp_jax_imports_nothing_heavy():
  subprocess.run([sys.executable, "-c", "import psp_jax, sys; "
                  "assert 'jax' not in sys.modules"], check=True)
