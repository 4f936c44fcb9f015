"""Cityscapes: 2,975 / 500 / 1,525 street scenes of 2048x1024, 19 classes.

`train_extra` has 19,997 scenes with coarse masks: of the 20,000 that the paper
counts 19,998 were published, and of those troisdorf_000000_000073 is black.
"""

import pathlib

from psp_jax.data import pairs
from psp_jax.data.builder import PairsBuilder, refuse_download
from psp_jax.data.cityscapes_labels import TAXONOMY
from psp_jax.errors import DataError

_CORRUPT = "troisdorf/troisdorf_000000_000073"
_IMAGE = "_leftImg8bit.png"

# Scenes of each city, to say which one is incomplete.
CITY_SIZES = {
    "train": {
        "aachen": 174, "bochum": 96, "bremen": 316, "cologne": 154,
        "darmstadt": 85, "dusseldorf": 221, "erfurt": 109, "hamburg": 248,
        "hanover": 196, "jena": 119, "krefeld": 99, "monchengladbach": 94,
        "strasbourg": 365, "stuttgart": 196, "tubingen": 144, "ulm": 95,
        "weimar": 142, "zurich": 122},
    "val": {"frankfurt": 267, "lindau": 59, "munster": 174},
    "test": {"berlin": 544, "bielefeld": 181, "bonn": 46, "leverkusen": 58,
             "mainz": 298, "munich": 398},
}


class Cityscapes(PairsBuilder):
  """Cityscapes: fine train and val, test (images), coarse train_extra.

  Labels are labelIds as published. Those of val come with instanceIds, which
  iIoU needs.
  """
  TAXONOMY = TAXONOMY
  INSTANCE_SPLITS = ("val",)
  SPLIT_SIZES = {"train": 2_975, "val": 500, "test": 1_525,
                 "train_extra": 19_997}
  OPTIONAL_SPLITS = ("test", "train_extra")
  UNLABELLED_SPLITS = ("test",)

  def download(self, dl_manager):
    refuse_download(
        "Cityscapes", "register at cityscapes-dataset.com; unpack "
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip (and, for "
        "the coarse masks, leftImg8bit_trainextra.zip and gtCoarse.zip) into "
        "one folder")

  def find_pairs(self, roots, problems):
    [root] = map(pathlib.Path, roots)
    found = {}
    for split in self.SPLIT_SIZES:
      folder = pairs.first_folder([root], f"leftImg8bit/{split}")
      if folder is None:
        continue
      paths = [path for same in pairs.list_files(folder).values()
               for path in same]
      frames = {path: path.relative_to(folder).as_posix().removesuffix(_IMAGE)
                for path in paths if path.name.endswith(_IMAGE)}
      problems += [f"{path}: is no *{_IMAGE}; remove it"
                   for path in paths if path not in frames]
      if not frames:
        problems.append(f"{folder}: holds no *{_IMAGE}; unpack "
                        "leftImg8bit's archive again, or remove the folder")
      found[split] = [
          pair for path, frame in frames.items() if frame != _CORRUPT
          and (pair := _pair(root, split, frame, path, problems))]
    if not found:
      raise DataError(f"{root}: holds no leftImg8bit/train, val or test; set "
                      "config.data.manual_dir to the folder where Cityscapes' "
                      "archives are unpacked")
    return found

  def missing_names(self, split, found):
    sizes = dict.fromkeys(CITY_SIZES.get(split, {}), 0)
    for pair in found:
      city = pair.name.split("/")[0]
      sizes[city] = sizes.get(city, 0) + 1
    wrong = [f"{city} has {size} of {CITY_SIZES[split].get(city, 0)}"
             for city, size in sizes.items()
             if split in CITY_SIZES
             and size != CITY_SIZES[split].get(city, 0)]
    return ", ".join(wrong)


def _pair(root, split, frame, image, problems) -> pairs.Pair | None:
  """`frame` is CITY/CITY_SEQUENCE_FRAME; None where a file is missing."""
  if split == "test":  # Its published masks are dummies.
    return pairs.Pair(frame, image)
  kind = "gtCoarse" if split == "train_extra" else "gtFine"
  mask = root / kind / split / f"{frame}_{kind}_labelIds.png"
  instances = (root / kind / split / f"{frame}_{kind}_instanceIds.png"
               if split in Cityscapes.INSTANCE_SPLITS else None)
  why = f"{image} needs it; unpack {kind}'s archive into {root}"
  files = [mask] if instances is None else [mask, instances]
  if not all([pairs.is_there(path, problems, why) for path in files]):
    return None
  return pairs.Pair(frame, image, mask, instances)
