"""The images of a split that were segmented best and worst."""

import bisect
import dataclasses
import math

import numpy as np

from psp_jax import metrics, visualize


@dataclasses.dataclass(frozen=True)
class Example:
  """An image and what became of it, shrunk to show.

  Attributes:
    name: of the record.
    miou: of this image alone, over the classes that it or its prediction has.
    image: (h, w, 3) uint8 RGB.
    truth: (h, w) uint8 class ids, 255 where it does not count.
    prediction: (h, w) uint8 class ids.
    confusion: (C, C), of the image at its full size.
  """
  name: str
  miou: float
  image: np.ndarray
  truth: np.ndarray
  prediction: np.ndarray
  confusion: np.ndarray


class Extremes:
  """Keeps `count` best and `count` worst, however many are added.

  Equals are in the order in which they came. Images without a pixel that
  counts have no score and are left out.
  """

  def __init__(self, count: int, max_width: int):
    self._count, self._max_width = count, max_width
    self._keys, self._examples = [], []  # Best first, in step.
    self.num_images = 0

  def add(self, record, confusion: np.ndarray, prediction) -> None:
    """One more image: an `on_scored` of `evaluate.Evaluator.run`.

    Args:
      record: {"image", "label", "name"}.
      confusion: (C, C), of this image.
      prediction: a function without arguments that gives the (H, W) class
        ids; called only where the image is kept.
    """
    self.num_images += 1
    miou = metrics.scores(confusion).miou
    key = -miou, self.num_images
    place = bisect.bisect(self._keys, key)
    full = len(self._keys) == 2 * self._count
    if math.isnan(miou) or full and place == self._count:
      return
    image, truth, guess = visualize.shrunk(
        self._max_width, record["image"], record["label"], prediction())
    self._keys.insert(place, key)
    self._examples.insert(place, Example(
        record["name"], miou, image, truth, guess, confusion))
    if full:  # What is now in the middle is neither.
      del self._keys[self._count], self._examples[self._count]

  def best(self) -> list[Example]:
    """Best first; of few images the better half, rounded up."""
    return self._examples[:self._middle()]

  def worst(self) -> list[Example]:
    """Worst first; none that is among the best."""
    return self._examples[self._middle():][::-1]

  def _middle(self):
    return -(-len(self._examples) // 2)
