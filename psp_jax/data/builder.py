"""The TFDS builder that all datasets share: encoded image, encoded mask.

Bytes go into the array_record files as they are on disk, never re-encoded, so
nothing is lost and preparing is quick.
"""

import abc
import io
import pathlib

import tensorflow_datasets as tfds

from psp_jax.data import pairs


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, abc.ABC):
  """Records of {"image", "label", "name"}; label is an 8-bit PNG of ids."""
  VERSION = tfds.core.Version("1.0.0")
  IMAGE_ENCODING = "png"

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self, description=type(self).__doc__,
        features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(
                shape=(None, None, 3), encoding_format=self.IMAGE_ENCODING),
            "label": tfds.features.Image(
                shape=(None, None, 1), encoding_format="png"),
            "name": tfds.features.Text(),
        }))


class PairsBuilder(SegmentationBuilder):
  """A dataset of image and mask files; subclasses say where they lie."""

  # The user's copy of the dataset, set before preparing. Not TFDS's own
  # manual_dir, which is a default folder where the user named none.
  manual_dir: pathlib.Path | None = None

  @abc.abstractmethod
  def find_pairs(self, root) -> dict[str, list[pairs.Pair]]:
    """Split name -> pairs, from the dataset's top folder."""

  @abc.abstractmethod
  def locate(self, dl_manager) -> pathlib.Path:
    """The dataset's top folder: `manual_dir`, or downloaded."""

  def _split_generators(self, dl_manager):
    splits = self.find_pairs(self.locate(dl_manager))
    pairs.check_pairs([p for split in splits.values() for p in split],
                      self.TAXONOMY.label_map)
    return {split: self._generate_examples(found)
            for split, found in splits.items()}

  def _generate_examples(self, found):
    for pair in found:
      yield pair.name, {
          "image": io.BytesIO(pair.image.read_bytes()),
          "label": io.BytesIO(pair.mask.read_bytes()),
          "name": pair.name,
      }
