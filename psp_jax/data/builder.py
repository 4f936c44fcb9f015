"""The TFDS builder that all datasets share: encoded image, encoded mask.

Bytes go into the array_record files as they are on disk, never re-encoded, so
nothing is lost and preparing is quick.
"""

import abc
import io
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds

from psp_jax import progress
from psp_jax.data import check, pairs
from psp_jax.data.taxonomy import Taxonomy
from psp_jax.errors import DataError

_SHUFFLED_IN_RAM = 1 << 30


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC):
  """Records of {"image", "label", "name"}; label is a PNG of stored ids.

  Attributes:
    TAXONOMY: what they mean.
    IMAGE_ENCODING: of most images, for those who read the files by TFDS.
    INSTANCE_SPLITS: those whose records have "instances", a 16-bit PNG; in
      others of the same dataset it is empty.
    UNLABELLED_SPLITS: those whose labels are empty.
    SPLIT_UNIONS: names for "SPLIT+SPLIT".
    taxonomy, unlabelled_splits: the same of this copy of the dataset.
  """
  VERSION = tfds.core.Version("1.0.0")
  TAXONOMY: Taxonomy
  IMAGE_ENCODING = "png"
  INSTANCE_SPLITS: tuple[str, ...] = ()
  UNLABELLED_SPLITS: tuple[str, ...] = ()
  SPLIT_UNIONS: dict[str, str] = {}

  def _info(self) -> tfds.core.DatasetInfo:
    features = {
        "image": tfds.features.Image(
            shape=(None, None, 3), encoding_format=self.IMAGE_ENCODING),
        "label": tfds.features.Image(
            shape=(None, None, 1), encoding_format="png"),
        "name": tfds.features.Text(),
    }
    if self.INSTANCE_SPLITS:
      features["instances"] = tfds.features.Image(
          shape=(None, None, 1), encoding_format="png", dtype=np.uint16)
    return tfds.core.DatasetInfo(
        builder=self, description=type(self).__doc__,
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict())

  @property
  def taxonomy(self) -> Taxonomy:
    return self.TAXONOMY

  @property
  def unlabelled_splits(self) -> tuple[str, ...]:
    return self.UNLABELLED_SPLITS

  def size_problems(self, sizes: dict[str, int]) -> list[str]:
    """What keeps splits of these sizes from being the whole dataset."""
    return []


class PairsBuilder(SegmentationBuilder):
  """A dataset of image and mask files; subclasses say where they lie.

  Attributes:
    SPLIT_SIZES: images of the real dataset, by split.
    OPTIONAL_SPLITS: those that may be absent altogether.
    HAND_MADE: whether people edit the files, so that their times count.
    PARTS: of the dataset's folder that are the dataset; what lies beside them
      (runs, notes) may change.
    manual_dir: the user's copy of the dataset, set before preparing. Not
      TFDS's own, which is a default folder where the user named none.
    allow_partial: whether a part of the dataset will do.
  """
  SPLIT_SIZES: dict[str, int] = {}
  OPTIONAL_SPLITS: tuple[str, ...] = ()
  HAND_MADE = False
  PARTS: tuple[str, ...] = (".",)
  manual_dir: pathlib.Path | None = None
  allow_partial = False

  @abc.abstractmethod
  def find_pairs(self, roots, problems: list[str]) -> dict[
      str, list[pairs.Pair]]:
    """Split name -> pairs.

    Args:
      roots: folders to look in: the dataset's top, or unpacked archives.
      problems: gets a line for each file that is missing or too many.

    Raises:
      DataError: this is no such dataset.
    """

  @abc.abstractmethod
  def download(self, dl_manager) -> list[pathlib.Path]:
    """The roots of the unpacked archives; DataError says how by hand."""

  def missing_names(self, split: str, found: list[pairs.Pair]) -> str:
    """What of the real split is not there, in words; "" for nothing."""
    return ""

  def list_splits(self, roots) -> tuple[dict[str, list[pairs.Pair]],
                                        list[str]]:
    """`find_pairs`, and all problems that names and numbers show."""
    problems = []
    found = self.find_pairs(roots, problems)
    if not problems:  # Which are more precise.
      problems = self._incomplete(
          {split: len(listed) for split, listed in found.items()},
          {split: self.missing_names(split, found.get(split, []))
           for split in self.SPLIT_SIZES})
    return found, problems

  def size_problems(self, sizes: dict[str, int]) -> list[str]:
    return self._incomplete(sizes, {})

  def _incomplete(self, sizes, missing) -> list[str]:
    if self.allow_partial:
      return []
    return [
        f"{self.name} {split}: {sizes.get(split, 0):,} of {size:,} images"
        f"{', ' if missing.get(split) else ''}{missing.get(split, '')}; "
        "complete it, or set config.data.allow_partial (--allow_partial) "
        "where a part will do"
        for split, size in self.SPLIT_SIZES.items()
        if (split in sizes or split not in self.OPTIONAL_SPLITS)
        and (sizes.get(split, 0) != size or missing.get(split))]

  def _split_generators(self, dl_manager):
    roots = ([self.manual_dir] if self.manual_dir
             else self.download(dl_manager))
    splits, problems = self.list_splits(roots)
    for split, found in splits.items():
      problems += check.examine(split, found, self.taxonomy).problems
    pairs.raise_all(problems)
    _check_room(splits, pathlib.Path(self.data_dir))
    self.info.metadata.update(
        self.metadata() | {"source": ", ".join(map(str, roots))})
    return {split: self._generate_examples(split, found)
            for split, found in splits.items()}

  def metadata(self) -> dict:
    """What is stored beside the records."""
    return {}

  def _generate_examples(self, split, found):
    for pair in progress.track(found, len(found), f"writing {split}"):
      example = {"image": io.BytesIO(pair.image_bytes()),
                 "label": io.BytesIO(pair.mask_bytes()),
                 "name": pair.name}
      if self.INSTANCE_SPLITS:
        example["instances"] = io.BytesIO(pair.instances_bytes())
      yield pair.name, example


def _check_room(splits, folder: pathlib.Path) -> None:
  """Raises DataError where the records will not fit on the disk."""
  files = {path for found in splits.values() for pair in found
           for path in (pair.image, pair.mask, pair.instances) if path}
  needed = sum(path.stat().st_size for path in files)
  if needed > _SHUFFLED_IN_RAM:
    needed *= 2  # TFDS shuffles larger splits on the disk.
  while not folder.is_dir():
    folder = folder.parent
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise DataError(
        f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed to "
        "prepare the dataset; make room, or name another folder with "
        "config.data.data_dir (--data_dir)")


def refuse_download(what: str, by_hand: str):
  """For datasets whose licence wants an account."""
  raise DataError(f"{what} is not downloaded for you: {by_hand}, then "
                  "--config.data.manual_dir=FOLDER (--manual_dir=FOLDER)")
