"""semseg's augmentation as one affine resample (tool/train.py there).

Scale, rotate, blur, mirror, pad and crop in that order, on uint8. The chain of
cv2 passes resamples the image twice and touches every pixel of the scaled
canvas; here the crop's pixels alone are computed, straight from the source.
Unturned crops are equal but for rounding; turned ones are sharper here.
"""

import dataclasses

import cv2
import numpy as np

from psp_jax.data.normalize import MEAN_UINT8
from psp_jax.data.taxonomy import IGNORE_LABEL

_BLUR_SIZE = 5


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
  """
  scale: float
  angle: float
  blur: bool
  mirror: bool
  top: int
  left: int


def canvas_size(height: int, width: int, scale: float) -> tuple[int, int]:
  """(height, width) that cv2.resize gives a scaled image."""
  return max(1, round(height * scale)), max(1, round(width * scale))


def draw(rng: np.random.Generator, height: int, width: int, crop_size: int,
         config) -> Augmentation:
  """Draws from `config.data.augment`'s distribution for one image's size."""
  c = config.data.augment
  scale = rng.uniform(*c.scale)
  rotate = rng.random() < c.rotate_probability
  angle = rng.uniform(-c.rotate_degrees, c.rotate_degrees)
  blur = rng.random() < c.blur_probability
  mirror = rng.random() < c.mirror_probability
  rows, columns = canvas_size(height, width, scale)
  top = rng.integers(max(rows - crop_size, 0) + 1)
  left = rng.integers(max(columns - crop_size, 0) + 1)
  return Augmentation(scale, angle if rotate else 0.0, blur, mirror,
                      int(top), int(left))


def apply(augmentation: Augmentation, image: np.ndarray, label: np.ndarray,
          crop_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Augments a pair.

  Args:
    augmentation: what to do.
    image: (H, W, 3) uint8.
    label: (H, W) uint8.
    crop_size: of the square result.

  Returns:
    (crop_size, crop_size, 3) uint8 and (crop_size, crop_size) uint8. Outside
    the image lie the mean and the ignore label.
  """
  a = augmentation
  rows, columns = canvas_size(*label.shape, a.scale)
  # Where the canvas lies in the crop's coordinates, and what is visible.
  y = max(crop_size - rows, 0) // 2 - a.top
  x = max(crop_size - columns, 0) // 2 - a.left
  margin = _BLUR_SIZE // 2 if a.blur else 0  # The blur sees past the crop.
  y0, y1 = max(y, -margin), min(y + rows, crop_size + margin)
  x0, x1 = max(x, -margin), min(x + columns, crop_size + margin)

  matrix = (_to_source(a.scale) @ _unrotate(a.angle, rows, columns)
            @ _unmirror(a.mirror, columns) @ _translate(x0 - x, y0 - y))
  # Rotation shows what lies beyond the image; without it, only half a pixel
  # of the border is asked for, which cv2.resize takes from the edge.
  border = cv2.BORDER_CONSTANT if a.angle else cv2.BORDER_REPLICATE

  def warp(source, interpolation, fill):
    return cv2.warpAffine(
        source, matrix[:2], (x1 - x0, y1 - y0),
        flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=border,
        borderValue=fill)

  view = warp(image, cv2.INTER_LINEAR, MEAN_UINT8)
  if a.blur:
    view = cv2.GaussianBlur(view, (_BLUR_SIZE, _BLUR_SIZE), 0)
  label_view = warp(label, cv2.INTER_NEAREST, IGNORE_LABEL)

  image_crop = np.empty((crop_size, crop_size, 3), np.uint8)
  image_crop[:] = MEAN_UINT8
  label_crop = np.full((crop_size, crop_size), IGNORE_LABEL, np.uint8)
  inside = np.s_[max(y0, 0):min(y1, crop_size), max(x0, 0):min(x1, crop_size)]
  seen = np.s_[max(-y0, 0):min(y1, crop_size) - y0,
               max(-x0, 0):min(x1, crop_size) - x0]
  image_crop[inside] = view[seen]
  label_crop[inside] = label_view[seen]
  return image_crop, label_crop


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
