"""Shared by all tests: 8 simulated devices, one compilation cache a session.

CPU compilations are most of the suite's time; subprocesses read the same
cache through the environment.
"""

import contextlib
import fcntl
import os
import pathlib
import subprocess

import cv2
import numpy as np
import pytest

from psp_jax import default_config

_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402  After the environment is set.

from psp_jax import kept_programs  # noqa: E402  It imports JAX.

jax.config.update("jax_num_cpu_devices", 8)

# Files of a minute and more.
_LONG = {f"test_{name}" for name in (
    "checkpoint", "compile_tpu", "evaluate", "kill", "main", "mistakes",
    "notebook", "packed", "parity", "protocol", "pspnet", "scale", "segmenter",
    "stopping", "train", "train_step", "trouble", "workers")}

SHARED = pathlib.Path(__file__).parent.parent.parent / "shared"


def pytest_configure(config):
  config.option.loadscopereorder = False  # pytest-xdist's: most tests first.


def pytest_collection_modifyitems(items):
  """Long files first: two processes then end at about the same time."""
  items.sort(key=lambda item: item.path.stem not in _LONG)


@pytest.fixture(autouse=True)
def _nothing_is_kept():
  """A command called in this process would keep programs for all tests."""
  yield
  kept_programs.enable(None)


@pytest.fixture
def shared():
  """The folder of real data beside the checkout; skips where it is not."""
  if not SHARED.is_dir():
    pytest.skip("needs ../shared (CamVid, ADE20K samples, ImageNet weights), "
                "which is not part of the project")
  return SHARED


def make_camvid_folder(root: pathlib.Path, sizes, height=48, width=64):
  """A dataset in CamVid's layout whose classes show in the colours.

  Args:
    root: where.
    sizes: split -> number of pairs.
    height: of the pictures.
    width: likewise.
  """
  rng = np.random.default_rng(0)
  colours = rng.integers(0, 256, (12, 3))
  for split, count in sizes.items():
    for kind in (split, f"{split}annot"):
      (root / kind).mkdir(parents=True)
    for i in range(count):
      cells = rng.integers(0, 12, (3, 4))
      label = np.kron(cells, np.ones((height // 3, width // 4), int))
      noise = rng.normal(0, 8, (*label.shape, 3))
      image = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
      cv2.imwrite(str(root / split / f"{i:03}.png"), image)
      cv2.imwrite(str(root / f"{split}annot" / f"{i:03}.png"),
                  label.astype(np.uint8))
  return root


@pytest.fixture
def alone_with_shared_memory():
  """No other test that asks for this runs meanwhile, in any process."""
  _CACHE.parent.mkdir(parents=True, exist_ok=True)
  with open(_CACHE.with_name("shared_memory.lock"), "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@pytest.fixture(scope="session")
def camvid_folder(tmp_path_factory):
  """A small made dataset: 12 train, 4 val and 4 test pairs of 64x48."""
  return make_camvid_folder(tmp_path_factory.mktemp("made") / "CamVid",
                            {"train": 12, "val": 4, "test": 4})


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
  """Where the session's datasets are prepared."""
  return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def tiny_config(camvid_folder, data_dir):
  """The default config, shrunk: seconds on a CPU, every part in use."""
  c = default_config.get_config()
  c.num_train_steps = 6
  c.global_batch_size = 8
  c.model.num_classes = 11
  c.model.depth = 10
  c.model.width_multiplier = 0.0625
  c.data.name = "camvid"
  c.data.manual_dir = str(camvid_folder)
  c.data.data_dir = str(data_dir)
  c.data.allow_partial = True
  c.data.crop_size = 33
  c.data.num_threads = 2
  c.eval.window = "whole"
  c.eval.base_size = 0
  c.validation.every_steps = 3
  c.validation.num_images = 2
  c.checkpoint.every_steps = 2
  c.log_every_steps = 1
  return c


@pytest.fixture(scope="session")
def _tiny_runs():
  """Filled by the first test that wants a run."""
  return {}


@pytest.fixture
def tiny_run(tiny_config, tmp_path_factory, _tiny_runs):
  """The folder of a run of `tiny_config`, to read: one a session."""
  if not _tiny_runs:
    from psp_jax import train
    tiny_config.validation.every_steps = 0
    _tiny_runs["folder"] = tmp_path_factory.mktemp("tiny") / "run"
    train.train(tiny_config, _tiny_runs["folder"])
  return _tiny_runs["folder"]


@pytest.fixture
def tiny_flags(tiny_config):
  """Flags that turn configs/camvid.py into `tiny_config`, or nearly."""
  flat = {
      "data.manual_dir": tiny_config.data.manual_dir,
      "data.data_dir": tiny_config.data.data_dir, "data.allow_partial": True,
      "data.crop_size": 33, "data.num_threads": 2, "global_batch_size": 4,
      "model.depth": 10, "model.width_multiplier": 0.0625,
      "checkpoint.every_steps": 5, "checkpoint.keep": 1000,
      "validation.num_images": 2, "log_every_steps": 1}
  return ["--config=configs/camvid.py:cpu",  # Its argument is passed on.
          *(f"--config.{k}={v}" for k, v in flat.items())]


@pytest.fixture
def small_disk(tmp_path):
  """A function (kB) -> the folder of a file system of that size.

  Called again it changes the size.
  """
  folder = tmp_path / "small"

  def size(kilobytes):
    options = f"size={kilobytes}k" + (",remount" if folder.exists() else "")
    folder.mkdir(exist_ok=True)
    try:
      subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder],
                     capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
      pytest.skip("a small disk cannot be mounted here (not root)")
    return folder

  yield size
  if os.path.ismount(folder):
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def as_nobody(tmp_path, tmp_path_factory):
  """A context in which root, who may read everything, is someone else."""
  # pytest's own folders are closed; a process of several (xdist) has one more.
  base = tmp_path_factory.getbasetemp()
  top = next((folder for folder in base.parents
              if folder.name.startswith("pytest-of-")), base.parent)
  for folder in (tmp_path, *tmp_path.parents):
    if folder.is_relative_to(top):
      folder.chmod(folder.stat().st_mode | 0o111)

  @contextlib.contextmanager
  def context():
    root = os.geteuid() == 0
    if root:
      os.seteuid(65534)
    try:
      yield
    finally:
      if root:
        os.seteuid(0)

  return context
