"""What the numbers in a mask mean: class names, colours, stored values."""

import dataclasses

import numpy as np

# What every mask uses, once read, for pixels that do not count.
IGNORE_LABEL = 255


@dataclasses.dataclass(frozen=True)
class Taxonomy:
  """The classes of a dataset.

  Attributes:
    class_names: one name a class id.
    palette: (classes, 3) uint8 RGB.
    label_map: (256,) int16: value stored in a mask -> class id, 255 (ignore),
      or -1 where the value must not occur.
    palette_png: whether its benchmark's submissions are indexed PNGs in these
      colours; else they are grey.
  """
  class_names: tuple[str, ...]
  palette: np.ndarray
  label_map: np.ndarray
  palette_png: bool = True

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def stored_ids(self) -> np.ndarray:
    """(classes,) uint8: the first value that `label_map` gives each class."""
    return np.array([np.flatnonzero(self.label_map == c)[0]
                     for c in range(self.num_classes)], np.uint8)


def make_label_map(first_id: int, num_classes: int, ignored=()) -> np.ndarray:
  """Stored first_id..first_id + num_classes - 1 -> 0..num_classes - 1.

  255 is always ignored, so are the values in `ignored`; others are -1.
  """
  label_map = np.full(256, -1, np.int16)
  label_map[first_id:first_id + num_classes] = np.arange(num_classes)
  label_map[[*ignored, IGNORE_LABEL]] = IGNORE_LABEL
  return label_map


def voc_palette(num_colours: int) -> np.ndarray:
  """PASCAL VOC's colours: the bits of the id dealt out to R, G and B."""
  ids = np.arange(num_colours)
  palette = np.zeros((num_colours, 3), np.uint8)
  for bit in range(8):
    for channel in range(3):
      palette[:, channel] |= (
          ((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
  return palette
