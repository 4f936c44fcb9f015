"""semseg's augmentation as one resample (tool/train.py there).

Scale, rotate, blur, mirror, pad and crop in that order, on uint8. The chain of
cv2 passes resamples the image twice and touches every pixel of the scaled
canvas; here the crop's pixels alone are computed, straight from the source.
Unturned crops are equal but for rounding; turned ones are sharper here.

Of mmsegmentation, off by default: positions redrawn where one class fills the
crop, and photometric distortion.
"""

import dataclasses
import math
import numbers

import cv2
import numpy as np

from psp_jax.data import photometric
from psp_jax.data.normalize import MEAN_UINT8
from psp_jax.data.taxonomy import IGNORE_LABEL
from psp_jax.errors import ConfigError

_BLUR_SIZE = 5
# Images that are resized, not warped, are true to a 128th of a pixel, where
# cv2.warpAffine is to a 64th; up to this many pixels more are resized for it.
_PHASE = 1 / 128
_MOST_SKIPPED = 129
_REDRAWS = 10  # mmsegmentation's RandomCrop.
# From here on OpenCV before 5 refuses a side.
_SIDE_LIMIT = 32_767

Size = int | tuple[int, int]  # Of a square, or (height, width).


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """One draw: what happens to one image and its label.

  Attributes:
    scale: of the image, before all else.
    angle: in degrees counter-clockwise about the centre; 0 for none.
    blur: 5x5 Gaussian, sigma as OpenCV derives it (1.1).
    mirror: left-right.
    top: row of the padded canvas where the crop starts.
    left: likewise the column.
    distortion: of the image's colours, before the blur; None for none.
  """
  scale: float
  angle: float
  blur: bool
  mirror: bool
  top: int
  left: int
  distortion: photometric.Distortion | None = None


def check(config) -> None:
  """Raises ConfigError where config.data.augment or the crop cannot work."""
  c = config.data.augment

  def require(holds, field, value, what):
    if not holds:
      raise ConfigError(f"config.data.{field}={value!r}: must be {what}")

  require(config.data.crop_size >= 1, "crop_size", config.data.crop_size,
          "1 or more")
  require(len(c.scale) == 2
          and all(isinstance(s, numbers.Real) for s in c.scale)
          and 0 < c.scale[0] <= c.scale[1] < math.inf, "augment.scale", c.scale,
          "(lowest, highest) with 0 < lowest <= highest")
  require(0 <= c.rotate_degrees <= 180, "augment.rotate_degrees",
          c.rotate_degrees, "from 0 to 180")
  for name in ("rotate", "blur", "mirror"):
    field = f"{name}_probability"
    require(0 <= c[field] <= 1, f"augment.{field}", c[field], "from 0 to 1")
  require(0 < c.cat_max_ratio <= 1, "augment.cat_max_ratio", c.cat_max_ratio,
          "above 0 and at most 1, which is off")


def crop_shape(config) -> tuple[int, int]:
  """(height, width) of a crop."""
  c = config.data
  return c.crop_size, c.crop_width or c.crop_size


def canvas_size(height: int, width: int, scale: float) -> tuple[int, int]:
  """(height, width) that cv2.resize gives a scaled image."""
  return max(1, round(height * scale)), max(1, round(width * scale))


def draw(rng: np.random.Generator, height: int, width: int, crop_size: Size,
         config) -> Augmentation:
  """Draws semseg's part of `config.data.augment` for one image's size."""
  c = config.data.augment
  scale = rng.uniform(*c.scale)
  rotate = rng.random() < c.rotate_probability
  angle = rng.uniform(-c.rotate_degrees, c.rotate_degrees)
  blur = rng.random() < c.blur_probability
  mirror = rng.random() < c.mirror_probability
  top, left = _draw_position(rng, height, width, scale, crop_size)
  return Augmentation(scale, angle if rotate else 0.0, blur, mirror, top, left)


def draw_for(rng: np.random.Generator, label: np.ndarray, crop_size: Size,
             config) -> Augmentation:
  """Draws all of `config.data.augment` for one (H, W) uint8 label.

  With `cat_max_ratio` below 1 the position is drawn anew, ten times at most,
  until the crop has two classes or more and none fills that share of its valid
  pixels; the tenth is taken as it comes.
  """
  c = config.data.augment
  height, width = label.shape
  drawn = draw(rng, height, width, crop_size, config)
  if c.cat_max_ratio < 1:
    for _ in range(_REDRAWS):
      ids = crop_label(drawn, label, crop_size)
      if _is_mixed(ids, c.cat_max_ratio):
        break
      top, left = _draw_position(rng, height, width, drawn.scale, crop_size)
      drawn = dataclasses.replace(drawn, top=top, left=left)
  if c.photometric_distortion:
    drawn = dataclasses.replace(drawn, distortion=photometric.draw(rng))
  return drawn


def _draw_position(rng, height, width, scale, crop_size) -> tuple[int, int]:
  room = (size - wanted for size, wanted in zip(
      canvas_size(height, width, scale), _both(crop_size)))
  top, left = (rng.integers(max(each, 0) + 1) for each in room)
  return int(top), int(left)


def _both(size: Size) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else size


def _is_mixed(ids: np.ndarray, max_ratio: float) -> bool:
  counts = np.bincount(ids.ravel(), minlength=IGNORE_LABEL)[:IGNORE_LABEL]
  valid = counts.sum()
  return valid > 0 and counts.max() / valid < max_ratio  # Two then, at least.


def apply(augmentation: Augmentation, image: np.ndarray, label: np.ndarray,
          crop_size: Size) -> tuple[np.ndarray, np.ndarray]:
  """Augments a pair.

  Args:
    augmentation: what to do.
    image: (H, W, 3) uint8.
    label: (H, W) uint8.
    crop_size: of the result, (height, width) or the side of a square.

  Returns:
    (height, width, 3) uint8 and (height, width) uint8. Outside the image lie
    the mean and the ignore label.
  """
  frame = _Frame.of(augmentation, label.shape, crop_size)
  view = frame.show(image)
  if augmentation.distortion is not None:
    distorted = photometric.apply(augmentation.distortion, view)
    if frame.turned:  # What turning uncovered is padding and stays the mean.
      ones = np.ones(label.shape, np.uint8)
      uncovered = frame.warp(ones, cv2.INTER_NEAREST, 0) == 0
      distorted[uncovered] = view[uncovered]
    view = distorted
  if augmentation.blur:
    view = cv2.GaussianBlur(view, (_BLUR_SIZE, _BLUR_SIZE), 0)
  return frame.place(view, MEAN_UINT8), frame.crop_label(label)


def crop_label(augmentation: Augmentation, label: np.ndarray,
               crop_size: Size) -> np.ndarray:
  """The label alone, as `apply` returns it."""
  return _Frame.of(augmentation, label.shape, crop_size).crop_label(label)


@dataclasses.dataclass(frozen=True)
class _Frame:
  """The view: the part of the canvas that a crop shows, and its surroundings.

  Attributes:
    matrix: (2, 3), a pixel of the view to the source.
    rows: first and one past the last of the view, in the crop's coordinates.
    columns: likewise.
    crop_size: (height, width) of the crop.
    turned: whether what lies beyond the image is seen.
  """
  matrix: np.ndarray
  rows: tuple[int, int]
  columns: tuple[int, int]
  crop_size: tuple[int, int]
  turned: bool

  @classmethod
  def of(cls, augmentation: Augmentation, shape: tuple[int, int],
         crop_size: Size):
    a = augmentation
    height, width = crop_size = _both(crop_size)
    rows, columns = canvas_size(*shape, a.scale)
    # Where the canvas lies in the crop's coordinates, and what is visible.
    y = max(height - rows, 0) // 2 - a.top
    x = max(width - columns, 0) // 2 - a.left
    margin = _BLUR_SIZE // 2 if a.blur else 0  # The blur sees past the crop.
    y0, y1 = max(y, -margin), min(y + rows, height + margin)
    x0, x1 = max(x, -margin), min(x + columns, width + margin)
    matrix = (_to_source(a.scale) @ _unrotate(a.angle, rows, columns)
              @ _unmirror(a.mirror, columns) @ _translate(x0 - x, y0 - y))
    return cls(matrix[:2], (y0, y1), (x0, x1), crop_size, bool(a.angle))

  @property
  def size(self) -> tuple[int, int]:
    """(width, height) of the view."""
    return self.columns[1] - self.columns[0], self.rows[1] - self.rows[0]

  def show(self, image: np.ndarray) -> np.ndarray:
    """The view of an image."""
    view = None if self.turned else _resized(image, self.matrix, self.size)
    if view is None:
      # With four channels warpAffine takes half the time that it takes with 3.
      view = self.warp(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA),
                       cv2.INTER_LINEAR, (*MEAN_UINT8, 0))
      view = cv2.cvtColor(view, cv2.COLOR_RGBA2RGB)
    return view

  def crop_label(self, label: np.ndarray) -> np.ndarray:
    return self.place(self.warp(label, cv2.INTER_NEAREST, IGNORE_LABEL),
                      IGNORE_LABEL)

  def warp(self, source: np.ndarray, interpolation: int, fill) -> np.ndarray:
    """The view, resampled from `source`; `fill` where that does not reach."""
    # Rotation shows what lies beyond the image; without it, only half a pixel
    # of the border is asked for, which cv2.resize takes from the edge.
    border = cv2.BORDER_CONSTANT if self.turned else cv2.BORDER_REPLICATE
    matrix, size = self.matrix, self.size
    if max(source.shape[:2]) >= _SIDE_LIMIT:
      source, matrix = _cut(source, matrix, size)
    return cv2.warpAffine(
        source, matrix, size, flags=interpolation | cv2.WARP_INVERSE_MAP,
        borderMode=border, borderValue=fill)

  def place(self, view: np.ndarray, fill) -> np.ndarray:
    """The crop: the view without its margin, within `fill`."""
    (y0, y1), (x0, x1) = self.rows, self.columns
    height, width = self.crop_size
    seen = view[max(-y0, 0):min(y1, height) - y0,
                max(-x0, 0):min(x1, width) - x0]
    return cv2.copyMakeBorder(
        seen, max(y0, 0), max(height - y1, 0), max(x0, 0), max(width - x1, 0),
        cv2.BORDER_CONSTANT, value=fill)


def _resized(source: np.ndarray, matrix: np.ndarray, size: tuple[int, int]):
  """The view of an image that is not turned, by cv2.resize; None if it cannot.

  That takes a quarter of warpAffine's time. It begins at a whole pixel of the
  source, so it begins some pixels before the view, where one lies within
  `_PHASE` of a pixel of the result.
  """
  (x_step, _, x), (_, y_step, y) = matrix
  width, height = size
  mirrored = x_step < 0
  if mirrored:  # The same pixels from left to right, turned round at the end.
    x, x_step = x + x_step * (width - 1), -x_step
  columns = _resized_axis(x, x_step, width, source.shape[1])
  rows = _resized_axis(y, y_step, height, source.shape[0])
  if columns is None or rows is None:
    return None
  part, seen = zip(rows, columns)
  view = cv2.resize(source[part], None, fx=1 / x_step, fy=1 / y_step)[seen]
  return cv2.flip(view, 1) if mirrored else view


def _resized_axis(start: float, step: float, length: int, source: int):
  """(slice of the source to resize, slice of the result that is the view).

  Pixel v of the view lies at start + step * v of the source. None where no
  pixel of the source will do.
  """
  # Before the first, cv2.resize would ask for pixels that were cut off.
  skipped = np.arange(max(0, math.ceil(0.5 / step - 0.5)), _MOST_SKIPPED)
  first = start + 0.5 - (skipped + 0.5) * step
  good = (np.abs(first - np.round(first)) <= _PHASE) & (first > -_PHASE)
  if not good.any():
    return None
  chosen = int(np.argmax(good))
  begin, skip = round(float(first[chosen])), int(skipped[chosen])
  end = min(source, begin + math.ceil((skip + length) * step) + 2)
  if round((end - begin) / step) < skip + length:
    return None
  return slice(begin, end), slice(skip, skip + length)


def _cut(source: np.ndarray, matrix: np.ndarray, size: tuple[int, int]):
  """The part of `source` that a view of (width, height) needs; its matrix.

  Only where it must be: another origin rounds coordinates otherwise, which
  moves some pixels by a grey level.
  """
  width, height = size
  corners = matrix @ [(0, width - 1, 0, width - 1), (0, 0, height - 1,
                                                     height - 1), (1,) * 4]
  # Interpolation reads a pixel further, rounding may ask for one more. What
  # is needed may lie beyond the image: then a pixel at its edge is kept.
  last = np.array(source.shape[1::-1]) - 1
  low = np.clip(np.floor(corners.min(1)).astype(int) - 2, 0, last)
  high = np.clip(np.ceil(corners.max(1)).astype(int) + 2, low, last)
  matrix = matrix.copy()
  matrix[:, 2] -= low
  return source[low[1]:high[1] + 1, low[0]:high[0] + 1], matrix


# 3x3 matrices on (x, y, 1), pixel centres at integers. Each maps a point of
# its stage's result back to the stage before.


def _to_source(scale: float) -> np.ndarray:
  """Scaled canvas -> source, cv2.resize's half-pixel centres."""
  offset = 0.5 / scale - 0.5
  return np.array([[1 / scale, 0, offset], [0, 1 / scale, offset], [0, 0, 1]])


def _unrotate(angle: float, rows: int, columns: int) -> np.ndarray:
  """semseg turns about (w / 2, h / 2), half a pixel off the centre."""
  if not angle:
    return np.eye(3)
  forward = cv2.getRotationMatrix2D((columns / 2, rows / 2), angle, 1)
  return np.linalg.inv(np.vstack([forward, (0, 0, 1)]))


def _unmirror(mirror: bool, columns: int) -> np.ndarray:
  if not mirror:
    return np.eye(3)
  return np.array([[-1, 0, columns - 1], [0, 1, 0], [0, 0, 1]], float)


def _translate(x: float, y: float) -> np.ndarray:
  return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)
