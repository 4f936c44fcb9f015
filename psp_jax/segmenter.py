"""A trained network as a function of photographs.

    seg = psp_jax.load("runs/camvid")
    labels = seg("photo.jpg")           # (H, W) class ids
    seg.class_names[labels[0, 0]]

A photograph much larger than the network was made for is shrunk to what it
sees, and its answer enlarged: a class id for every pixel all the same.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cv2
import jax
import numpy as np
from PIL import Image, ImageOps

from psp_jax import inference, runs, sliding_window, stitching, visualize
from psp_jax.data import decode, pairs
from psp_jax.errors import ConfigError, DataError, check_folder
from psp_jax.models import create_model

# A photograph at most so many times larger than the network wants is taken as
# it is, which is how images are scored; beyond, bilinear scaling skips pixels.
_SHRUNK_BEYOND = 2.0
_USUAL = 1.25  # Sides that differ by less from the usual are usual.


def load(workdir, step: int | None = None, **options) -> "Segmenter":
  """The network of a run's folder, trained here or converted.

  Args:
    workdir: the folder.
    step: of the checkpoint; None: the last.
    **options: `scales`, `flip`, `window` and `base_size` of `Segmenter`.

  Raises:
    UserError: there is no such run or checkpoint, or an option cannot be.
  """
  check_folder("--workdir", workdir)
  config, state = runs.load(pathlib.Path(workdir), step)
  return Segmenter(config, state, runs.load_classes(config, workdir),
                   **options)


class Segmenter:
  """Photographs in, class ids out.

  An image is a file's path, a PIL image, or a uint8 array (H, W, 3) of RGB or
  (H, W) of grey. Files and PIL images are turned as their EXIF data says.

  Attributes:
    class_names: one name a class id.
    palette: (classes, 3) uint8 RGB.
    taxonomy: both, and the dataset's own ids.
    step: of the checkpoint.
    protocol: how windows, scales and mirror images are averaged.
    usual_size: (height, width) of photographs that it was trained on, to whose
      area others are scaled; None where nobody knows, or `base_size` says it.
  """

  def __init__(self, config, state, classes: runs.Classes, scales=None,
               flip: bool | None = None, window: str | int | None = None,
               base_size: int | None = None):
    """Compiles nothing yet.

    Args:
      config: of the run.
      state: its params and batch_stats.
      classes: their names and colours.
      scales: of the base size, averaged; None: as the run is scored.
      flip: averages with the mirror image; None likewise.
      window: "whole", "sliding", or the side of a sliding window in pixels.
      base_size: pixels of the photograph's long side at scale 1; 0: its own.
        None: as the run is scored; where that is 0, photographs are scaled to
        about the area of those that it was trained on.

    Raises:
      ConfigError: an option cannot be.
    """
    config = config.copy_and_resolve_references()
    config.unlock()
    _set_options(config, scales, flip, window, base_size)
    if jax.local_devices()[0].platform == "cpu":
      config.eval.window_batch = 1  # Larger ones hold filler, and gain nothing.
    self.taxonomy = classes.taxonomy
    self.class_names = classes.taxonomy.class_names
    self.palette = classes.taxonomy.palette
    self.step = int(state.step)
    self.protocol = sliding_window.Protocol.from_config(config)
    self.usual_size = classes.image_size if base_size is None else None
    self._inference = inference.Inference(
        create_model(config), config, self.protocol)
    self._variables = self._inference.variables(state)

  def __call__(self, image) -> np.ndarray:
    """(H, W) uint8 class ids; raises DataError where it is no image."""
    return next(self.label_maps([image]))

  def probabilities(self, image) -> np.ndarray:
    """(H, W, classes) float32: of one pixel they add up to 1."""
    answer = next(self.answers([image]))
    return np.stack([answer.of_class(i)
                     for i in range(len(self.class_names))], -1)

  def overlay(self, image, opacity: float = 0.5) -> np.ndarray:
    """(H', W, 3) uint8 RGB: the classes' colours over the photograph.

    Below it lies a legend of the classes found, with their shares.
    """
    pixels = read_image(image)
    return visualize.overlay_with_legend(
        pixels, self(pixels), self.taxonomy, opacity)

  def label_maps(self, images: Iterable, on_windows=lambda done, of: None
                 ) -> Iterator[np.ndarray]:
    """`self(image)` for each, in order; the device need not wait between."""
    for answer in self.answers(images, on_windows):
      yield answer.labels()

  def answers(self, images: Iterable,
              on_windows: Callable[[int, int], None] = lambda done, of: None
              ) -> Iterator["Answer"]:
    """What the network says of each image, in order.

    Args:
      images: of any sizes; one is read when the one before it is under way.
      on_windows: called with how many windows of the images read so far have
        gone through the network, and how many there are.

    Raises:
      DataError: one is no image.
    """
    done = known = 0

    def alive(windows):
      nonlocal done
      done = min(done + windows, known)
      on_windows(done, known)

    def canvases():
      nonlocal known
      for image in images:
        pixels = read_image(image)
        height, width = pixels.shape[:2]
        size = canvas_size(height, width, self.protocol, self.usual_size)
        known += sum(
            len(sliding_window.plan(*size, s, self.protocol).offsets)
            for s in self.protocol.scales)
        yield pixels, resized(pixels, size)

    def keyed():
      for pixels, canvas in canvases():
        yield (pixels, canvas.shape[:2]), canvas

    for (pixels, size), blocks in self._inference.stitched(
        self._variables, keyed(), self.protocol, alive):
      yield Answer(pixels, stitching.from_blocks(
          [np.asarray(block) for block in blocks], *size))


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """What the network says of an image.

  Attributes:
    image: (H, W, 3) uint8 RGB, upright.
    small: (h, w, classes) float32 probabilities at the size that it saw.
  """
  image: np.ndarray
  small: np.ndarray

  def of_class(self, index: int) -> np.ndarray:
    """(H, W) float32: the probabilities of one class.

    Those of all at once would take gigabytes of a large photograph.
    """
    size = self.image.shape[1::-1]
    small = np.ascontiguousarray(self.small[..., index])
    if small.shape[::-1] == size:
      return small
    return cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)

  def labels(self, on_classes: Callable[[int, int], None] = lambda done, of:
             None) -> np.ndarray:
    """(H, W) uint8 class ids; `on_classes` hears how many are compared."""
    if self.small.shape[:2] == self.image.shape[:2]:
      return self.small.argmax(-1).astype(np.uint8)
    # The likeliest of n classes has at least 1 / n: few ever have that.
    count = self.small.shape[-1]
    candidates = np.flatnonzero(self.small.max((0, 1)) >= 0.999 / count)
    labels = np.full(self.image.shape[:2], candidates[0], np.uint8)
    best = self.of_class(candidates[0])
    for done, index in enumerate(candidates[1:], 1):
      on_classes(done, len(candidates))
      probability = self.of_class(index)
      labels[probability > best] = index
      np.maximum(best, probability, out=best)
    return labels


def read_image(image: Any) -> np.ndarray:
  """(H, W, 3) uint8 RGB, upright, of what `Segmenter` takes.

  Raises:
    DataError: it is not one, or cannot be read.
  """
  if isinstance(image, str | pathlib.Path):
    data = pairs.read_bytes(pathlib.Path(image))
    return decode.decode_image(data, str(image), upright=True)
  if isinstance(image, Image.Image):
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
  array = np.asarray(image)
  if array.dtype != np.uint8 or not (
      array.ndim == 2 or array.ndim == 3 and array.shape[2] == 3
      ) or not array.size:
    raise DataError(
        f"an array of {array.dtype} {array.shape} is no image: give a uint8 "
        "array (H, W, 3) of RGB from 0 to 255 or (H, W) of grey, a PIL image, "
        "or a file's path")
  return array if array.ndim == 3 else np.repeat(array[..., None], 3, 2)


def canvas_size(height: int, width: int, protocol, usual) -> tuple[int, int]:
  """The size at which a photograph goes to the protocol.

  Args:
    height: of the photograph.
    width: likewise.
    protocol: what scores the run.
    usual: (height, width) of the images that it was trained on, or None;
      counts where the protocol takes images at their own size.
  """
  factor = 1.0
  if protocol.base_size:
    side = (min if protocol.base_side == "short" else max)(height, width)
    most = protocol.base_size * max(protocol.scales)
    if side > _SHRUNK_BEYOND * most:
      factor = most / side
  elif usual:
    factor = ((usual[0] * usual[1]) / (height * width)) ** 0.5
    if 1 / _USUAL <= factor <= _USUAL:
      factor = 1.0
  return max(1, round(height * factor)), max(1, round(width * factor))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """To (height, width); what shrinks is averaged."""
  if image.shape[:2] == size:
    return image
  shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
  return cv2.resize(image, size[::-1], interpolation=(
      cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def _set_options(config, scales, flip, window, base_size) -> None:
  if scales is not None:
    scales = tuple(map(float, scales))
    if not scales or not all(0 < s < 100 for s in scales):
      raise ConfigError(f"scales={scales}: name positive factors, such as "
                        "(0.75, 1.0, 1.25)")
    config.eval.scales = scales
  if flip is not None:
    config.eval.flip = bool(flip)
  if isinstance(window, int):
    if window < 1:
      raise ConfigError(f"window={window}: name a side in pixels, 'whole' or "
                        "'sliding'")
    config.eval.window, config.eval.window_size = "sliding", window
  elif window is not None:
    if window not in ("whole", "sliding"):
      raise ConfigError(f"window={window!r}: name 'whole', 'sliding' or a side "
                        "in pixels")
    config.eval.window = window
  if base_size is not None:
    if base_size < 0:
      raise ConfigError(f"base_size={base_size}: name pixels of the long side, "
                        "or 0 for the photograph's own size")
    config.eval.base_size, config.eval.base_side = int(base_size), "long"
