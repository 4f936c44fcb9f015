"""The command that labels photographs, on files as people have them."""

import csv
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

import psp_jax
from psp_jax import predict, progress
from psp_jax.errors import DataError

ROOT = pathlib.Path(__file__).parent.parent


def photograph(height, width, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photos(tmp_path):
  """A folder with good files, one that is none, a video, and a hidden one."""
  folder = tmp_path / "photos"
  (folder / "trip").mkdir(parents=True)
  for i, name in enumerate(["one.png", "trip/two.png", "trip/.hidden.png"]):
    Image.fromarray(photograph(40 + i, 60, i)).save(folder / name)
  (folder / "broken.jpg").write_text("hello")
  (folder / "notes.txt").write_text("hello")
  video = cv2.VideoWriter(str(folder / "walk.mp4"),
                          cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
  for i in range(3):
    video.write(photograph(48, 64, i))
  video.release()
  return folder


def test_a_folder_of_all_kinds(tiny_run, photos, tmp_path):
  out = tmp_path / "out"
  done = subprocess.run(
      [sys.executable, "-m", "psp_jax.predict", f"--workdir={tiny_run}",
       "--input", str(photos), "--output", str(out), "--probabilities"],
      cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 1, done.stderr  # One is left out.
  assert done.stderr.strip().startswith(f"left out: {photos / 'broken.jpg'}")
  assert done.stdout.splitlines()[-1].startswith("labelled 3 of 4; ")

  seg = psp_jax.load(tiny_run)
  for name in ("one", "trip/two"):
    labels = seg(photos / f"{name}.png")
    with Image.open(out / f"labels/{name}.png") as file:
      assert file.mode == "L"
      np.testing.assert_array_equal(np.asarray(file), labels)
    with Image.open(out / f"colors/{name}.png") as file:
      assert file.mode == "P"
      np.testing.assert_array_equal(np.asarray(file), labels)
      np.testing.assert_array_equal(np.asarray(file.convert("RGB")),
                                    seg.palette[labels])
    overlay = cv2.imread(str(out / f"overlays/{name}.jpg"))[..., ::-1]
    expected = seg.overlay(photos / f"{name}.png")
    assert np.abs(overlay.astype(int) - expected).mean() < 4  # JPEG.
    files = sorted((out / f"probabilities/{name}").iterdir())
    assert [f.name for f in files][:2] == ["000_sky.png", "001_building.png"]
    levels = np.stack([cv2.imread(str(f), -1) for f in files], -1)
    np.testing.assert_allclose(
        levels / 255, seg.probabilities(photos / f"{name}.png"), atol=0.003)
  rows = list(csv.DictReader((out / "classes.csv").open()))
  assert [row["name"] for row in rows] == list(seg.class_names)
  assert rows[0] == {"id": "0", "name": "sky", "colour": "#808080",
                     "dataset_id": "0"}
  # The video: three frames of labels, and as many of overlays.
  assert len(list((out / "labels/walk").iterdir())) == 3
  capture = cv2.VideoCapture(str(out / "overlays/walk.mp4"))
  assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3
  source = cv2.VideoCapture(str(photos / "walk.mp4"))
  source.read()
  frame = np.ascontiguousarray(source.read()[1][..., ::-1])
  np.testing.assert_array_equal(
      cv2.imread(str(out / "labels/walk/000001.png"), -1), seg(frame))
  assert not list(out.rglob("*hidden*")) and not list(out.rglob("*notes*"))


def test_names_stay_apart(tmp_path):
  for name in ("a/x.jpg", "b/x.jpg", "a/y.jpg", "a/y.png", "z.tif"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()

  def names(*patterns):
    found = predict.find_inputs([str(tmp_path / p) for p in patterns])
    assert len({name for _, name in found}) == len(found)
    return {str(p.relative_to(tmp_path)): name for p, name in found}

  assert names("a", "z.tif") == {"a/x.jpg": "x", "a/y.jpg": "y.jpg",
                                 "a/y.png": "y.png", "z.tif": "z"}
  assert names("") == {"a/x.jpg": "a/x", "b/x.jpg": "b/x", "z.tif": "z",
                       "a/y.jpg": "a/y.jpg", "a/y.png": "a/y.png"}
  assert names("*/x.jpg") == {"a/x.jpg": "x.jpg", "b/x.jpg": "x.jpg_2"}
  assert names("a/x.jpg", "a") == {"a/x.jpg": "x", "a/y.jpg": "y.jpg",
                                   "a/y.png": "y.png"}
  assert set(names("**/*.tif", "a/*.png")) == {"z.tif", "a/y.png"}


@pytest.mark.parametrize("pattern", ["none.jpg", "*.jpg", "empty"])
def test_nothing_to_label_is_told(tmp_path, pattern):
  (tmp_path / "empty").mkdir()
  with pytest.raises(DataError, match="--input="):
    predict.find_inputs([str(tmp_path / pattern)])


def test_it_says_how_far_it_is(tiny_run, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(progress, "_SAY_EVERY_SECONDS", 0)
  for i in range(2):
    Image.fromarray(photograph(150, 200, i)).save(tmp_path / f"{i}.png")
  seg = psp_jax.load(tiny_run, window=33, scales=(1.0, 2.0), base_size=48)
  predict.predict_photographs(
      seg, predict.find_inputs([str(tmp_path)]),
      predict.Writer(tmp_path / "out", seg.taxonomy, 0.5, False))
  lines = capsys.readouterr().err.splitlines()
  assert all(line.startswith("photographs ") for line in lines)
  windows = [line for line in lines if "window" in line]
  classes = [line for line in lines if "class " in line]
  assert len(windows) > 2 and "photographs 0/2" in windows[0]
  assert classes and "photographs 1/2" in classes[-1]
  assert all(" left" in line for line in classes)


@pytest.mark.parametrize("flags, code, message", [
    (["--workdir=nowhere"], 2, "nowhere/config.json: no such file"),
    (["--opacity=2"], 2, "--opacity=2.0"),
    (["--scales=a,b"], 2, "--scales"),
    (["--window=tiny"], 2, "window='tiny'"),
    (["--scales=0"], 2, "scales=(0.0,)"),
    (["--output={file}/out"], 2, "{file}/out/classes.csv: cannot be written"),
])
def test_mistakes(tiny_run, photos, monkeypatch, capsys, flags, code, message):
  names = {"file": photos / "notes.txt"}
  argv = ["predict", f"--workdir={tiny_run}", "--input",
          str(photos / "one.png"), *(f.format(**names) for f in flags)]
  monkeypatch.setattr(sys, "argv", argv)
  with pytest.raises(SystemExit) as exit_:
    predict.run()
  assert exit_.value.code == code
  assert message.format(**names) in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_no_video(tiny_run, tmp_path, monkeypatch, capsys):
  (tmp_path / "walk.mp4").write_text("hello")
  monkeypatch.setattr(sys, "argv", [
      "predict", f"--workdir={tiny_run}", "--input", str(tmp_path / "walk.mp4"),
      "--output", str(tmp_path / "out")])
  with pytest.raises(SystemExit) as exit_:
    predict.run()
  assert exit_.value.code == 1
  assert "not a video that OpenCV reads" in capsys.readouterr().err
