"""PASCAL VOC 2012 segmentation, with SBD's further 9,118 masks: 21 classes.

`train_aug`, which the published scores are trained on, is VOC's own training
set and every image of SBD that is in neither of VOC's sets; where both have a
mask, VOC's is taken (it marks borders with 255, SBD does not).
"""

import pathlib

import numpy as np
import scipy.io

from psp_jax.data import decode, downloads, pairs
from psp_jax.data.builder import PairsBuilder
from psp_jax.data.taxonomy import Taxonomy, make_label_map, voc_palette
from psp_jax.errors import DataError

TAXONOMY = Taxonomy(
    class_names=(
        "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus",
        "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
        "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
        "tvmonitor"),
    palette=voc_palette(21), label_map=make_label_map(0, 21))

ARCHIVES = (
    downloads.Archive(
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
        "VOCtrainval_11-May-2012.tar",
        "md5:6cd6e144f989b92b3379bac3b3de84fd"),
    downloads.Archive(
        "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
        "semantic_contours/benchmark.tgz",
        "md5:82b4d87ceb2ed10f6038a1cba92111cb"),
)


class Voc2012(PairsBuilder):
  """PASCAL VOC 2012: train, val, sbd (neither of both) and test (images)."""
  TAXONOMY = TAXONOMY
  IMAGE_ENCODING = "jpeg"
  SPLIT_SIZES = {"train": 1_464, "val": 1_449, "sbd": 9_118, "test": 1_456}
  OPTIONAL_SPLITS = ("sbd", "test")
  UNLABELLED_SPLITS = ("test",)
  SPLIT_UNIONS = {"trainval": "train+val", "train_aug": "train+sbd"}

  def download(self, dl_manager):
    return downloads.fetch(
        dl_manager, ARCHIVES, "Get it by hand and unpack it: "
        "--config.data.manual_dir=FOLDER, which holds VOCdevkit and "
        "benchmark_RELEASE")

  def find_pairs(self, roots, problems):
    voc = pairs.first_folder(roots, "VOCdevkit/VOC2012", "VOC2012", ".")
    assert voc is not None  # "." is there.
    lists = voc / "ImageSets" / "Segmentation"
    if not lists.is_dir():
      raise DataError(
          f"{lists}: no such folder; set config.data.manual_dir to the folder "
          "that holds VOCdevkit (of VOCtrainval_11-May-2012.tar) and, for "
          "train_aug, benchmark_RELEASE (of SBD's benchmark.tgz)")
    found = {split: _listed(voc, _names(lists / f"{split}.txt"), problems)
             for split in ("train", "val")}
    sbd = pairs.first_folder(
        roots, "benchmark_RELEASE/dataset", "../benchmark_RELEASE/dataset")
    if sbd:
      own = {pair.name for split in found.values() for pair in split}
      names = sorted({*_names(sbd / "train.txt"), *_names(sbd / "val.txt")})
      found["sbd"] = _sbd(voc, sbd, [n for n in names if n not in own],
                          problems)
    if (lists / "test.txt").is_file():
      images = [(name, voc / "JPEGImages" / f"{name}.jpg")
                for name in _names(lists / "test.txt")]
      found["test"] = [
          pairs.Pair(name, image) for name, image in images
          if pairs.is_there(image, problems, f"{lists / 'test.txt'} lists it")]
    return found


def _names(path: pathlib.Path) -> list[str]:
  """One a line."""
  return pairs.read_bytes(path).decode().split()


def _listed(voc, names, problems) -> list[pairs.Pair]:
  found = []
  for name in names:
    image = voc / "JPEGImages" / f"{name}.jpg"
    mask = voc / "SegmentationClass" / f"{name}.png"
    why = f"{voc / 'ImageSets/Segmentation'} lists it"
    if all([pairs.is_there(path, problems, why) for path in (image, mask)]):
      found.append(pairs.Pair(name, image, mask))
  return found


def _sbd(voc, sbd, names, problems) -> list[pairs.Pair]:
  found = []
  for name in names:
    # The same photographs; VOC's copy, if it is there.
    image = voc / "JPEGImages" / f"{name}.jpg"
    if not image.is_file():
      image = sbd / "img" / f"{name}.jpg"
    mask = sbd / "cls" / f"{name}.mat"
    why = f"{sbd}'s train.txt or val.txt lists it"
    if all([pairs.is_there(path, problems, why) for path in (image, mask)]):
      found.append(pairs.Pair(name, image, mask, read_mask=read_sbd))
  return found


def read_sbd(path: pathlib.Path) -> bytes:
  """SBD's cls/NAME.mat as a PNG of the same ids."""
  try:
    mask = scipy.io.loadmat(path)["GTcls"]["Segmentation"][0, 0]
  except Exception as error:  # Whatever the file makes SciPy raise.
    raise DataError(f"{path}: not one of SBD's cls/*.mat ({error}); unpack "
                    "benchmark.tgz again") from error
  if mask.ndim != 2 or mask.dtype != np.uint8:
    raise DataError(f"{path}: GTcls.Segmentation is {mask.dtype} of shape "
                    f"{mask.shape}; must be (H, W) uint8")
  return decode.encode_mask(mask)
