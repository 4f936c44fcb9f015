"""`scenes`: a rendered dataset for trying PSPNet with nothing to download.

See `scene_renderer` for what the pictures show and why.
"""

import io

import cv2

from psp_jax.data import scene_renderer
from psp_jax.data.builder import SegmentationBuilder
from psp_jax.data.taxonomy import Taxonomy, make_label_map

TAXONOMY = Taxonomy(
    class_names=scene_renderer.CLASS_NAMES, palette=scene_renderer.PALETTE,
    label_map=make_label_map(0, len(scene_renderer.CLASS_NAMES)))

SPLIT_SIZES = {"train": 1000, "val": 200}


class Scenes(SegmentationBuilder):
  """Rendered harbours and cities, 192x192, 12 classes."""
  TAXONOMY = TAXONOMY

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(i, size)
            for i, (split, size) in enumerate(SPLIT_SIZES.items())}

  def _generate_examples(self, split_index, size):
    for i in range(size):
      image, label = scene_renderer.render((split_index, i))
      yield i, {"image": _png(image[..., ::-1]), "label": _png(label),
                "name": f"{i:05d}"}


def _png(array):
  return io.BytesIO(cv2.imencode(".png", array)[1].tobytes())
