"""Images and masks as files, for tests of what reads them."""

import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def picture(height=30, width=40):
  """Smooth RGB, so that JPEG keeps it; every channel is different."""
  y, x = np.mgrid[:height, :width]
  return np.stack([40 + 4 * x, 200 - 4 * y, 90 + 2 * y - x], -1).astype(
      np.uint8)


def jpeg(rgb=None):
  rgb = picture() if rgb is None else rgb
  return cv2.imencode(".jpg", rgb[..., ::-1],
                      [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()


def png(array):
  if array.ndim == 3:
    array = np.ascontiguousarray(array[..., ::-1])
  return cv2.imencode(".png", array)[1].tobytes()


def mask(height=30, width=40):
  return (np.arange(height * width).reshape(height, width) % 12).astype(
      np.uint8)


def turned_by_exif():
  """TIFF header and one tag: orientation 6, to be shown a quarter turned."""
  return (b"MM\x00\x2a" + struct.pack(">IHHHIHHI", 8, 1, 0x112, 3, 1, 6, 0, 0))


def with_exif(data):
  """By hand: cv2 writes no such tag."""
  if data[:2] == b"\xff\xd8":
    body = b"Exif\x00\x00" + turned_by_exif()
    return (data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
            + data[2:])
  body = b"eXIf" + turned_by_exif()
  chunk = (struct.pack(">I", len(body) - 4) + body
           + struct.pack(">I", zlib.crc32(body)))
  return data[:33] + chunk + data[33:]  # After the header chunk.


def pil(array, format_, mode=None, **options):
  """Encoded by Pillow; `mode` converts first."""
  image = Image.fromarray(array)
  buffer = io.BytesIO()
  (image.convert(mode) if mode else image).save(buffer, format_, **options)
  return buffer.getvalue()


def palette_png(ids, colours, bits=8):
  """An indexed PNG of 1, 2, 4 or 8 bits: `ids`, shown in `colours`."""
  image = Image.fromarray(ids)
  image.putpalette(np.asarray(colours, np.uint8).tobytes())
  buffer = io.BytesIO()
  image.save(buffer, "PNG", bits=bits)
  return buffer.getvalue()


def grey_png(ids, bits):
  """A grey PNG of 1, 2, 4, 8 or 16 bits, by the specification."""
  height, width = ids.shape
  if bits == 16:
    rows = ids.astype(">u2").tobytes()
    rows = [rows[i:i + 2 * width] for i in range(0, len(rows), 2 * width)]
  else:
    binary = (ids[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    rows = [row.tobytes() for row in np.packbits(
        binary.reshape(height, -1).astype(np.uint8), axis=1)]

  def chunk(kind, body):
    return (struct.pack(">I", len(body)) + kind + body
            + struct.pack(">I", zlib.crc32(kind + body)))

  header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
          + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r for r in rows)))
          + chunk(b"IEND", b""))


# What a server sends instead of a file that is not there.
HTML = b"\n<!DOCTYPE html>\n<html><body>404 Not Found</body></html>\n" * 20
