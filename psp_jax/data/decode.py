"""Encoded bytes to arrays: pixels, class ids, colours; and what is wrong.

Every complaint names the file, says what it is and what to do.
"""

import io
import warnings
import zlib

import cv2
import numpy as np
from PIL import Image

from psp_jax.errors import DataError

# OpenCV reports what it cannot read on stderr, unnamed; the errors here do it.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
# Pillow warns of large pictures, which these are allowed to be.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"
_MOST_PIXELS = 2**28  # Of a PNG.


def decode_image(data: bytes, name: str, upright: bool = False) -> np.ndarray:
  """Encoded bytes to uint8 RGB (H, W, 3); DataError names what is broken.

  JPEG, PNG, WebP or TIFF. Grey is repeated, CMYK converted, transparency
  dropped, 16 bits cut to their upper 8. An EXIF rotation is applied where
  `upright` says so; masks are drawn on the pixels as they are stored.
  """
  _check_bytes(data, name)
  flags = cv2.IMREAD_COLOR_RGB
  if not upright:
    flags |= cv2.IMREAD_IGNORE_ORIENTATION
  image = _imdecode(data, flags)
  if image is None:
    raise DataError(f"{name}: not a readable JPEG, PNG, WebP or TIFF image; "
                    "replace it, or remove it (and its mask, if it has one)")
  return image


def decode_mask(data: bytes, name: str) -> np.ndarray:
  """Encoded bytes to uint8 ids (H, W); DataError names what is broken.

  Grey or palette PNG or TIFF of up to 8 bits, or lossless WebP whose channels
  are equal. Of a palette the indices are the ids, not the colours.
  """
  _check_bytes(data, name)
  if data[:2] == _JPEG:
    raise DataError(f"{name}: a JPEG, which blurs class ids into others; save "
                    "masks as PNG, from the original labels")
  if data[:8] == _PNG and data[24:26] == b"\x08\x00":  # 8 bits of grey.
    mask = _imdecode(data, cv2.IMREAD_UNCHANGED)
    if mask is not None:
      return mask
    raise _unreadable_mask(name)
  try:
    with Image.open(io.BytesIO(data), formats=["PNG", "TIFF", "WEBP"]) as file:
      mode, array = file.mode, np.array(file)
  except Exception as error:  # Whatever the bytes make Pillow raise.
    raise _unreadable_mask(name) from error
  if data[:8] == _PNG and mode == "L":
    # Pillow spreads 2 and 4 bits over 0 to 255.
    array = array // (255 // (2 ** data[24] - 1))
  if data[8:12] == b"WEBP":
    if data[12:16] == b"VP8 ":
      raise DataError(f"{name}: a lossy WebP, which blurs class ids into "
                      "others; save masks as PNG, from the original labels")
    if (array[..., :1] == array[..., :3]).all():
      mode, array = "L", array[..., 0]
  if mode not in ("1", "L", "P"):
    depth = "16 bits" if mode.startswith("I") else f"{mode} colours"
    raise DataError(f"{name}: {array.shape[1]}x{array.shape[0]} of {depth}; a "
                    "mask is one 8-bit channel of class ids, not colours")
  return np.ascontiguousarray(array, np.uint8)


def decode_colours(data: bytes, name: str) -> np.ndarray:
  """A colour mask's bytes to uint8 RGB (H, W, 3); transparency is dropped."""
  _check_bytes(data, name)
  if data[:2] == _JPEG or data[8:16] == b"WEBPVP8 ":
    raise DataError(f"{name}: compressed with loss, which blurs the colours "
                    "of classes; save masks as PNG, from the original labels")
  colours = _imdecode(data, cv2.IMREAD_COLOR_RGB)
  if colours is None:
    raise _unreadable_mask(name)
  return colours


def decode_instances(data: bytes, name: str) -> np.ndarray:
  """Cityscapes' instanceIds: a 16-bit PNG's bytes to uint16 (H, W)."""
  _check_bytes(data, name)
  array = _imdecode(data, cv2.IMREAD_UNCHANGED)
  if array is None or array.ndim != 2:
    raise DataError(f"{name}: not a readable grey PNG of instance ids")
  return array.astype(np.uint16)


def encode_mask(mask: np.ndarray) -> bytes:
  """(H, W) uint8 ids as an 8-bit grey PNG."""
  return cv2.imencode(".png", mask)[1].tobytes()


def peculiarities(data: bytes) -> list[str]:
  """What a readable image has that a person should know, in words."""
  with Image.open(io.BytesIO(data)) as file:
    mode, found = file.mode, []
    if mode.startswith("I") or (data[:8] == _PNG and data[24] == 16):
      found.append("16 bits a channel, read as their upper 8")
    elif mode in ("L", "1", "LA"):
      found.append("grey, repeated in three channels")
    elif mode == "CMYK":
      found.append("CMYK, converted to RGB")
    if mode in ("LA", "PA", "RGBA") or "transparency" in file.info:
      found.append("transparency, dropped")
    if orientation(file) != 1:
      found.append("an EXIF rotation, not applied: look whether masks line up")
  return found


def image_size(data: bytes) -> tuple[int, int]:
  """(height, width) of a readable image as it is stored, by its header."""
  with Image.open(io.BytesIO(data)) as file:
    return file.height, file.width


def orientation(image: Image.Image) -> int:
  """The EXIF tag: 1 as stored, 5 to 8 a quarter turned."""
  if image.format == "PNG" and "exif" not in image.info:
    return 1  # Pillow would decode all pixels to look behind them.
  return image.getexif().get(0x112, 1)


def is_turned(data: bytes) -> bool:
  """Whether EXIF says to show the image a quarter turned."""
  with Image.open(io.BytesIO(data)) as file:
    return orientation(file) >= 5


def _check_bytes(data: bytes, name: str) -> None:
  if not data:
    raise DataError(f"{name}: is empty (0 bytes); get the file again")
  start = data[:512].lstrip().lower()
  if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
    raise DataError(f"{name}: is a web page, not an image: its download went "
                    "wrong; get the file again")
  # One cut short may still decode, its rest grey: the end marker tells.
  if data[:2] == _JPEG and not _jpeg_is_whole(data):
    raise DataError(f"{name}: not readable, a JPEG that was cut short; get "
                    "the file again")
  if data[:8] == _PNG and not _png_is_whole(data):
    raise DataError(f"{name}: not readable, a PNG that was cut short; get the "
                    "file again")
  if data[:8] == _PNG:  # OpenCV makes room for any size before it looks on.
    if (data[8:16] != b"\0\0\0\rIHDR"
        or zlib.crc32(data[12:29]) != int.from_bytes(data[29:33], "big")):
      raise DataError(f"{name}: not readable, a PNG whose header is damaged; "
                      "get the file again")
    width, height = (int.from_bytes(data[i:i + 4], "big") for i in (16, 20))
    if width * height > _MOST_PIXELS:
      raise DataError(f"{name}: {width}x{height}, more than {_MOST_PIXELS:,} "
                      "pixels; cut it into parts")


def _imdecode(data: bytes, flags: int) -> np.ndarray | None:
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error:
    return None


def _unreadable_mask(name: str) -> DataError:
  return DataError(f"{name}: not a readable PNG, TIFF or WebP mask; replace "
                   "it or remove it together with its image")


def _jpeg_is_whole(data: bytes) -> bool:
  """Whether an end marker follows the start of the scan.

  The segments before it are stepped over: a thumbnail has its own markers.
  What follows the end (phones append videos) does not matter.
  """
  at = 2
  while data[at:at + 1] == b"\xff" and data[at + 1:at + 2] != b"\xda":
    at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
  return data.rfind(b"\xff\xd9") >= at  # From the end, where it mostly is.


def _png_is_whole(data: bytes) -> bool:
  """Whether chunk follows chunk up to the end marker.

  OpenCV makes room for as much as a chunk says it has, up to gigabytes.
  """
  at = 8
  while at + 12 <= len(data):
    if data[at + 4:at + 8] == b"IEND":
      return True
    at += 12 + int.from_bytes(data[at:at + 4], "big")
  return False


def has_colours(data: bytes) -> bool:
  """Whether a mask's bytes hold colours: RGB, or a palette of them."""
  mode = _mode(data)
  return mode in ("RGB", "RGBA", "P", "PA")


def has_palette(data: bytes) -> bool:
  return _mode(data) in ("P", "PA")


def _mode(data: bytes) -> str:
  """Pillow's, from the header; "" where there is none."""
  try:
    with Image.open(io.BytesIO(data)) as file:
      return file.mode
  except Exception:  # decode_mask says what is wrong with it.
    return ""
