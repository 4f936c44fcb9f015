"""mmsegmentation's photometric distortion, with its roundings to uint8.

Of its 1.x code, `PhotoMetricDistortion` with the default ranges: brightness,
contrast, saturation, hue, contrast, each left out half the time and the
contrast in one of its two places. Every stage maps a channel's 256 values, so
that tables do the work.
"""

import dataclasses

import cv2
import numpy as np

BRIGHTNESS = 32.0  # At most this much up or down, of 255.
FACTORS = (0.5, 1.5)  # Of contrast and of saturation.
HUE = 18  # In OpenCV's units of two degrees, [-18, 18).

_VALUES = np.arange(256, dtype=np.float32)


@dataclasses.dataclass(frozen=True)
class Distortion:
  """One draw; None leaves a stage out.

  Attributes:
    brightness: what is added to all channels.
    contrast: what they are multiplied with, about zero as there.
    contrast_first: before saturation and hue, not after them.
    saturation: what HSV's saturation is multiplied with.
    hue: what is added to HSV's hue, in units of two degrees.
  """
  brightness: float | None = None
  contrast: float | None = None
  contrast_first: bool = True
  saturation: float | None = None
  hue: int | None = None


def draw(rng: np.random.Generator) -> Distortion:
  """Each stage with probability 1/2, uniform over its range."""
  brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
  contrast, saturation = rng.uniform(*FACTORS, 2)
  hue = int(rng.integers(-HUE, HUE))
  happens = rng.integers(2, size=4)
  return Distortion(
      brightness=float(brightness) if happens[0] else None,
      contrast=float(contrast) if happens[1] else None,
      contrast_first=bool(rng.integers(2)),
      saturation=float(saturation) if happens[2] else None,
      hue=hue if happens[3] else None)


def apply(distortion: Distortion, image: np.ndarray) -> np.ndarray:
  """Distorts an (H, W, 3) uint8 RGB image, which is left as it is."""
  d = distortion
  if d.brightness is not None:
    image = cv2.LUT(image, _linear(1.0, d.brightness))
  if d.contrast is not None and d.contrast_first:
    image = cv2.LUT(image, _linear(d.contrast))
  if d.saturation is not None:
    image = _map_hsv(image, 1, _linear(d.saturation))
  if d.hue is not None:
    image = _map_hsv(image, 0, ((np.arange(256) + d.hue) % 180).astype("uint8"))
  if d.contrast is not None and not d.contrast_first:
    image = cv2.LUT(image, _linear(d.contrast))
  return image


def _linear(factor: float, shift: float = 0.0) -> np.ndarray:
  """The table of value * factor + shift, clipped; mmcv cuts fractions off."""
  return np.clip(_VALUES * factor + shift, 0, 255).astype(np.uint8)


def _map_hsv(image, channel: int, table: np.ndarray) -> np.ndarray:
  # Saturation and hue each go to HSV and back, as there: each way rounds.
  hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
  hsv[..., channel] = cv2.LUT(hsv[..., channel], table)
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
