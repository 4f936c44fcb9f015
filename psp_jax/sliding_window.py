"""What is averaged to score an image: semseg's test protocol (tool/test.py).

An image is resized, padded to the window with the mean, cut into overlapping
windows; each window's class probabilities (averaged with its mirror image's)
are summed where they overlap, divided by the count, cropped, resized to the
image's own size and averaged over scales.

With `average="logits"` it is mmsegmentation's (slide_inference and its test
augmentation there): the mirrored image is cut on its own; overlapping windows
average logits, without padding (an image smaller than the window is taken
whole); logits are resized to the image's own size, and their softmax is
averaged over scales and mirror images. (Its resized images are rounded to 8
bits, ours are not.)

Here is the geometry, in numpy; `stitching` carries it out on the device. All
of it is linear along one axis at a time, but for the softmax. So every window
has, for each axis, `Taps` that say which pixels of the image it is made of,
and others that say what it contributes to the answer at the image's own size:
no image is resized as a whole, and no map of a scale exists anywhere.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np

from psp_jax.errors import check_choice
from psp_jax.models.pooling import interpolation_taps


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How images are scored; the fields of `config.eval`.

  Attributes:
    scales: of the base size.
    flip: the mirror image counts as well.
    window: side of the square window; None takes each image in one piece.
    stride_fraction: of the window, rounded up to pixels.
    base_size: of the side that `base_side` names; 0 for the image's own.
    base_side: "long" (semseg) or "short". mmsegmentation's keep-ratio scale
      (2048, 512) is "short" with 512 where the long side stays within 2048.
    average: "probabilities" (semseg) or "logits" (mmsegmentation).
    absent_classes: "skip" or "zero", see `metrics.scores`.
  """
  scales: tuple[float, ...]
  flip: bool
  window: int | None
  stride_fraction: float
  base_size: int
  base_side: str = "long"
  average: str = "probabilities"
  absent_classes: str = "skip"

  @classmethod
  def from_config(cls, config) -> "Protocol":
    """Raises ConfigError where a field names something that is not there."""
    c = config.eval
    check_choice("eval.window", c.window, ("sliding", "whole"))
    check_choice("eval.base_side", c.base_side, ("long", "short"))
    check_choice("eval.average", c.average, ("probabilities", "logits"))
    check_choice("eval.absent_classes", c.absent_classes, ("skip", "zero"))
    size = c.window_size or config.data.crop_size
    return cls(scales=tuple(c.scales), flip=c.flip,
               window=None if c.window == "whole" else size,
               stride_fraction=c.stride_fraction, base_size=c.base_size,
               base_side=c.base_side, average=c.average,
               absent_classes=c.absent_classes)

  def as_json(self) -> dict:
    return dataclasses.asdict(self) | {
        "scales": list(self.scales), "window": self.window or "whole"}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where everything lies for one image size and scale.

  Attributes:
    scaled: (height, width) after resizing.
    canvas: after padding to at least the window, where there is padding.
    pad: rows above and columns left of the image on the canvas.
    window: (height, width) of a window.
    starts: tops, and lefts, of the windows: every one with every other.
  """
  scaled: tuple[int, int]
  canvas: tuple[int, int]
  pad: tuple[int, int]
  window: tuple[int, int]
  starts: tuple[tuple[int, ...], tuple[int, ...]]

  @property
  def offsets(self) -> tuple[tuple[int, int], ...]:
    """(top, left) of each window on the canvas."""
    return tuple(itertools.product(*self.starts))


def plan(height: int, width: int, scale: float, protocol: Protocol) -> Plan:
  """The geometry of semseg's scale_process for one scale."""
  scaled = _scaled_size(height, width, scale, protocol)
  if protocol.window is None:
    return Plan(scaled, scaled, (0, 0), scaled, ((0,), (0,)))
  canvas = scaled
  if protocol.average == "probabilities":
    canvas = max(scaled[0], protocol.window), max(scaled[1], protocol.window)
  pad = (canvas[0] - scaled[0]) // 2, (canvas[1] - scaled[1]) // 2
  window = min(canvas[0], protocol.window), min(canvas[1], protocol.window)
  stride = math.ceil(protocol.window * protocol.stride_fraction)

  def starts(canvas: int, window: int) -> tuple[int, ...]:
    return tuple(min(i * stride, canvas - window)
                 for i in range(math.ceil((canvas - window) / stride) + 1))

  return Plan(scaled, canvas, pad, window, (
      starts(canvas[0], window[0]), starts(canvas[1], window[1])))


def _scaled_size(height, width, scale, protocol) -> tuple[int, int]:
  if protocol.base_side == "short":  # mmcv rounds both sides from one factor,
    short_side = min(height, width)
    factor = scale * (protocol.base_size or short_side) / short_side
    return (max(1, int(height * factor + 0.5)),
            max(1, int(width * factor + 0.5)))
  # semseg the long side first; the other follows it.
  long_side = round(scale * (protocol.base_size or max(height, width)))
  if height > width:
    return long_side, max(1, round(long_side / height * width))
  return max(1, round(long_side / width * height)), long_side


class Taps(NamedTuple):
  """Two neighbours of an axis for each result, all (n,).

  result = first * x[low] + second * x[low + 1]; where a weight is 0 its
  neighbour need not exist.
  """
  low: np.ndarray
  first: np.ndarray
  second: np.ndarray


class Piece(NamedTuple):
  """What a window contributes to one tile, along one axis.

  Attributes:
    tile: which one.
    first: pixel of the window that is needed.
    span: pixels that are needed from there.
    taps: (tile,), of the window's pixels.
  """
  tile: int
  first: int
  span: int
  taps: Taps


def _half_pixel(source: int, target: int) -> Taps:
  """cv2.resize's INTER_LINEAR along one axis."""
  low, _, weight = interpolation_taps(source, target, align_corners=False)
  return Taps(low, 1 - weight, weight)


def into_window(source: int, scaled: int, pad: int, start: int, window: int,
                mirrored: bool = False) -> Taps:
  """What a window is made of, along one axis.

  Args:
    source: pixels of the image.
    scaled: pixels that it is resized to.
    pad: pixels before it on the canvas; there the result is 0.
    start: of the window on the canvas.
    window: pixels of the window.
    mirrored: the image is read backwards.

  Returns:
    (window,) taps of the image's pixels.
  """
  low, first, second = _half_pixel(source, scaled)
  if mirrored:  # -1 where the first neighbour was the last pixel.
    low, first, second = source - 2 - low, second, first
  position = np.arange(start, start + window) - pad
  inside = (position >= 0) & (position < scaled)
  position = np.clip(position, 0, scaled - 1)
  return Taps(low[position].astype(np.int32),
              (first[position] * inside).astype(np.float32),
              (second[position] * inside).astype(np.float32))


def out_of_windows(source: int, scaled: int, pad: int, starts, window: int,
                   tile: int, weight: float = 1.0, mirrored: bool = False
                   ) -> list[list[Piece]]:
  """What the windows at `starts` contribute to the image, along one axis.

  Taken together they are the mean where windows overlap, cropped and resized
  from `scaled` to `source` pixels, times `weight`; `mirrored` turns the result
  round. The image's axis is cut into tiles of `tile` pixels.

  Returns:
    For each window the pieces for all tiles to which it contributes.
  """
  low, first, second = _half_pixel(scaled, source)
  counts = np.zeros(pad + scaled + 1)
  for start in starts:
    counts[start:start + window] += 1
  counts = np.maximum(counts, 1)  # The last is not of the image: weight 0.
  low = low + pad
  first = weight * first / counts[low]
  second = weight * second / counts[low + 1]
  contributions = []
  for start in starts:
    rows = np.arange(np.searchsorted(low, start - 1),
                     np.searchsorted(low, start + window - 1, side="right"))
    at = low[rows] - start  # From -1 to window - 1.
    weights = np.stack([np.where(at >= 0, first[rows], 0),
                        np.where(at < window - 1, second[rows], 0)])
    used = weights.any(0)
    rows, at, weights = rows[used], at[used], weights[:, used]
    if mirrored:
      rows = source - 1 - rows
    pieces = []
    for index in np.unique(rows // tile):
      inside = rows // tile == index
      taps = Taps(np.zeros(tile, np.int32), *np.zeros((2, tile), np.float32))
      place = rows[inside] - index * tile
      taps.low[place] = at[inside]
      taps.first[place], taps.second[place] = weights[:, inside]
      needed = np.concatenate([taps.low[taps.first != 0],
                               taps.low[taps.second != 0] + 1])
      begin, end = int(needed.min()), int(needed.max()) + 1
      pieces.append(Piece(int(index), begin, end - begin, taps))
    contributions.append(pieces)
  return contributions
