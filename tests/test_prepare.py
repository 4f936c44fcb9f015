"""`python -m psp_jax.prepare`, in real processes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import cv2
import numpy as np
import pytest
from conftest import make_camvid_folder
from pictures import jpeg, png

from psp_jax import default_config, prepare, visualize
from psp_jax.data import builder, camvid, datasets
from psp_jax.errors import DataError

ROOT = pathlib.Path(__file__).parent.parent


def command(*args):
  return [sys.executable, "-m", "psp_jax.prepare", *map(str, args)]


def run(*args):
  return subprocess.run(command(*args), cwd=ROOT, capture_output=True,
                        text=True, timeout=300)


@pytest.fixture
def made(tmp_path):
  return make_camvid_folder(tmp_path / "CamVid",
                            {"train": 12, "val": 3, "test": 3})


def config(made, tmp_path):
  c = default_config.get_config()
  c.data.name = "camvid"
  c.data.manual_dir = str(made)
  c.data.data_dir = str(tmp_path / "prepared")
  c.data.allow_partial = True
  return c


def prepared_in(folder):
  return [p for p in folder.rglob("dataset_info.json")
          if "incomplete" not in str(p)]


def test_preparing_says_what_there_is_and_training_finds_it(made, tmp_path):
  flags = ["--dataset=camvid", f"--manual_dir={made}", "--allow_partial",
           f"--data_dir={tmp_path / 'prepared'}"]
  done = run(*flags)
  assert done.returncode == 0, done.stderr
  for words in ("train: 12 images", "val: 3 images", "11 classes: sky,",
                "prepared in"):
    assert words in done.stdout
  again = run(*flags)
  assert again.returncode == 0
  assert "preparing camvid" in done.stdout
  assert "preparing camvid" not in again.stdout
  assert len(datasets.open_split(config(made, tmp_path), "train")) == 12


def test_checking_reports_and_shows_and_prepares_nothing(made, tmp_path):
  done = run("--dataset=camvid", f"--manual_dir={made}", "--allow_partial",
             f"--data_dir={tmp_path / 'prepared'}", "--check",
             f"--output={tmp_path / 'report'}")
  assert done.returncode == 0, done.stderr
  assert "no problems" in done.stdout and "12 images, 64x48" in done.stdout
  assert not prepared_in(tmp_path)
  report = json.loads((tmp_path / "report" / "report.json").read_text())
  truth = np.zeros(12, int)
  for path in (made / "trainannot").glob("*.png"):
    truth += np.bincount(cv2.imread(str(path), -1).ravel(), minlength=12)
  counted = report["train"]["classes"]
  assert [c["pixels"] for c in counted.values()] == truth[:11].tolist()
  assert list(counted) == list(camvid.TAXONOMY.class_names)
  assert report["train"]["ignored_pixels"] == truth[11]
  assert report["problems"] == []
  # The sheet holds photographs, and masks in the dataset's colours.
  sheet = cv2.imread(str(tmp_path / "report" / "contact_sheet.png"))[..., ::-1]
  image = cv2.imread(str(made / "train" / "000.png"))[..., ::-1]
  label = cv2.imread(str(made / "trainannot" / "000.png"), -1)
  colours = np.vstack([camvid.TAXONOMY.palette, [(0, 0, 0)]])[label]
  for picture in (image, colours, visualize.overlay(
      np.ascontiguousarray(image), label, camvid.TAXONOMY.palette)):
    match = cv2.matchTemplate(sheet.astype(np.float32),
                              picture.astype(np.float32), cv2.TM_SQDIFF)
    assert match.min() < picture.size * 0.01


def test_every_bad_file_is_named_in_one_pass_with_exit_code_2(made, tmp_path):
  (made / "train/000.png").write_bytes(b"")
  (made / "train/001.png").write_bytes(b"<html>404</html>")
  (made / "trainannot/002.png").unlink()
  (made / "train/003.png").unlink()
  for i in range(4, 12):
    (made / f"trainannot/{i:03}.png").write_bytes(png(np.full(
        (48, 64), 100 + i, np.uint8)))
  for split in ("val", "test"):
    for i in range(3):
      (made / split / f"{i:03}.png").write_bytes(jpeg()[:-50])
  flags = ["--dataset=camvid", f"--manual_dir={made}", "--allow_partial",
           f"--data_dir={tmp_path / 'prepared'}"]
  checked = run(*flags, "--check", f"--output={tmp_path / 'report'}")
  assert checked.returncode == 2
  assert "error: 18 problem(s):" in checked.stderr
  for split, count in (("train", 12), ("val", 3), ("test", 3)):
    for i in range(count):
      assert re.search(rf"{made}/{split}(annot)?/{i:03}\.png: ",
                       checked.stderr)
  assert "Traceback" not in checked.stderr
  report = json.loads((tmp_path / "report" / "report.json").read_text())
  assert len(report["problems"]) == 18
  prepared = run(*flags)
  assert prepared.returncode == 2
  assert "error: 18 problems:" in prepared.stderr
  assert not prepared_in(tmp_path)


def test_what_was_prepared_can_be_checked_without_the_files(made, tmp_path):
  c = config(made, tmp_path)
  datasets.prepare(c)
  c.data.manual_dir = ""
  assert prepare.check_dataset(c, tmp_path / "report") == []
  report = json.loads((tmp_path / "report" / "report.json").read_text())
  c.data.manual_dir = str(made)
  assert prepare.check_dataset(c, tmp_path / "report2") == []
  other = json.loads((tmp_path / "report2" / "report.json").read_text())
  assert report == other


@pytest.mark.parametrize("args, words", [
    ([], ["--dataset"]),
    (["--dataset=camvit"], ["data.name='camvit'", "'camvid'", "'folder'"]),
    (["--dataset=camvid", "--manual_dir=/nowhere"], ["/nowhere", "no such"]),
    (["--dataset=folder"], ["images/train", "--manual_dir"]),
    (["--dataset=cityscapes"], ["register", "leftImg8bit_trainvaltest.zip"]),
    (["--dataset=camvid", "--reduce_zero_label"], ["reduce_zero_label"]),
    (["--dataset=camvid", "--chek"], ["--chek"]),
], ids=lambda value: " ".join(value)[-24:] or "nothing")
def test_mistakes_are_one_line_and_exit_2(args, words, tmp_path):
  done = run(*args, f"--data_dir={tmp_path}")
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  for word in words:
    assert word in last
  assert "Traceback" not in done.stderr


def test_killed_while_preparing_it_starts_again_cleanly(made, tmp_path):
  """SIGKILL, when it has begun to write."""
  for i in range(12, 1500):
    for kind in ("train", "trainannot"):
      os.link(made / kind / f"{i % 12:03}.png", made / kind / f"{i:03}.png")
  flags = ["--dataset=camvid", f"--manual_dir={made}", "--allow_partial",
           f"--data_dir={tmp_path / 'prepared'}"]
  process = subprocess.Popen(command(*flags), cwd=ROOT)
  deadline = time.monotonic() + 120
  while not list((tmp_path / "prepared").rglob("incomplete.*")):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert list((tmp_path / "prepared").rglob("incomplete.*"))
  assert not prepared_in(tmp_path)
  done = run(*flags)
  assert done.returncode == 0, done.stderr
  assert "train: 1,500 images" in done.stdout
  assert not list((tmp_path / "prepared").rglob("incomplete.*"))


def test_two_at_once_prepare_once(made, tmp_path):
  flags = ["--dataset=camvid", f"--manual_dir={made}", "--allow_partial",
           f"--data_dir={tmp_path / 'prepared'}"]
  both = [subprocess.Popen(command(*flags), cwd=ROOT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
          for _ in range(2)]
  outputs = [process.communicate(timeout=120)[0] for process in both]
  assert [process.returncode for process in both] == [0, 0], outputs
  assert len(prepared_in(tmp_path)) == 1
  assert all("train: 12 images" in output for output in outputs)
  assert sum("preparing camvid" in output for output in outputs) == 1


def test_a_disk_without_room_is_named_before_anything_is_written(
    made, tmp_path, monkeypatch):
  monkeypatch.setattr(builder.shutil, "disk_usage",
                      lambda path: types.SimpleNamespace(free=1000))
  with pytest.raises(DataError, match="0.0 GB free.*make room.*data_dir"):
    datasets.prepare(config(made, tmp_path))
  assert not prepared_in(tmp_path)


def test_a_disk_that_fills_while_preparing_is_named(
    tmp_path, small_disk, monkeypatch):
  made = make_camvid_folder(tmp_path / "CamVid",
                            {"train": 40, "val": 1, "test": 1}, 96, 128)
  c = config(made, tmp_path)
  small_disk = small_disk(256)
  c.data.data_dir = str(small_disk)
  # As if something else had filled it in the meantime.
  monkeypatch.setattr(builder, "_check_room", lambda *args: None)
  with pytest.raises(DataError) as error:
    datasets.prepare(c)
  assert "No space left on device" in str(error.value)
  assert str(small_disk) in str(error.value) and "--data_dir" in str(
      error.value)
  assert not prepared_in(small_disk)
  assert not list(small_disk.rglob("incomplete.*"))
  c.data.data_dir = str(tmp_path / "prepared")
  assert len(datasets.open_split(c, "train")) == 40


def test_a_data_dir_that_cannot_be_written_is_named(made, tmp_path):
  c = config(made, tmp_path)
  (tmp_path / "file").write_text("")
  c.data.data_dir = str(tmp_path / "file")
  with pytest.raises(DataError, match="cannot be written.*--data_dir"):
    datasets.prepare(c)


def test_a_report_that_cannot_be_written_is_named(made, tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(DataError, match="cannot be written.*--output"):
    prepare.check_dataset(config(made, tmp_path), tmp_path / "file" / "x")
