"""Image and mask files on disk: paired, and every one of them read once.

Bad data is found here, before training starts, and all of it in one message.
"""

import dataclasses
import pathlib

import cv2
import numpy as np

from psp_jax.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Pair:
  """One image file and its mask."""
  name: str
  image: pathlib.Path
  mask: pathlib.Path


def decode_image(data: bytes, name: str) -> np.ndarray:
  """Encoded bytes to uint8 RGB (H, W, 3); DataError names what is broken."""
  flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
  image = _decode(data, flags)
  if image is None:
    raise DataError(f"{name}: not a readable JPEG or PNG image; replace it or "
                    "remove it together with its mask")
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def decode_mask(data: bytes, name: str) -> np.ndarray:
  """Encoded bytes to uint8 ids (H, W); DataError names what is broken."""
  mask = _decode(data, cv2.IMREAD_UNCHANGED)
  if mask is None:
    raise DataError(f"{name}: not a readable PNG mask; replace it or remove "
                    "it together with its image")
  if mask.ndim != 2 or mask.dtype != np.uint8:
    raise DataError(f"{name}: shape {mask.shape}, {mask.dtype}; a mask is one "
                    "8-bit channel of class ids, not colours")
  return mask


def _decode(data: bytes, flags: int) -> np.ndarray | None:
  # A JPEG cut short may still decode, its rest grey: the end marker tells.
  if data[:2] == b"\xff\xd8" and not _jpeg_is_whole(data):
    return None
  try:
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
  except cv2.error:
    return None


def _jpeg_is_whole(data: bytes) -> bool:
  """Whether an end marker follows the start of the scan.

  The segments before it are stepped over: a thumbnail has its own markers.
  What follows the end (phones append videos) does not matter.
  """
  at = 2
  while data[at:at + 1] == b"\xff" and data[at + 1:at + 2] != b"\xda":
    at += 2 + int.from_bytes(data[at + 2:at + 4], "big")
  return data.find(b"\xff\xd9", at) >= 0


def list_pairs(image_dir, mask_dir) -> list[Pair]:
  """Pairs of equal stem, sorted by name.

  Raises:
    DataError: a folder is missing or empty, or an image has no mask.
  """
  image_dir, mask_dir = pathlib.Path(image_dir), pathlib.Path(mask_dir)
  for folder in (image_dir, mask_dir):
    if not folder.is_dir():
      raise DataError(f"{folder}: no such folder; set config.data.manual_dir "
                      "to the dataset's top folder")
  images = sorted(p for p in image_dir.iterdir()
                  if p.suffix.lower() in IMAGE_SUFFIXES)
  if not images:
    raise DataError(f"{image_dir}: holds no {', '.join(IMAGE_SUFFIXES)} "
                    "images; set config.data.manual_dir to the dataset's top "
                    "folder")
  pairs = [Pair(p.stem, p, mask_dir / f"{p.stem}.png") for p in images]
  _raise_all([f"{p.image}: has no mask {p.mask}" for p in pairs
              if not p.mask.is_file()])
  return pairs


def check_pairs(pairs: list[Pair], label_map: np.ndarray) -> None:
  """Decodes every pair; raises one DataError that lists all that is wrong.

  Args:
    pairs: what to read.
    label_map: (256,) int16, stored value to class id, -1 for a value that
      must not occur.
  """
  problems = []
  for pair in pairs:
    try:
      image = decode_image(pair.image.read_bytes(), str(pair.image))
      mask = decode_mask(pair.mask.read_bytes(), str(pair.mask))
    except (DataError, OSError) as error:
      problems.append(str(error))
      continue
    if image.shape[:2] != mask.shape:
      problems.append(f"{pair.image} is {_size(image)} but its mask "
                      f"{pair.mask} is {_size(mask)}")
    bad = [int(v) for v in np.unique(mask) if label_map[v] < 0]
    if bad:
      problems.append(f"{pair.mask}: label values {bad} are out of range "
                      f"(allowed: {_ranges(label_map)})")
  _raise_all(problems)


def _size(array: np.ndarray) -> str:
  return f"{array.shape[1]}x{array.shape[0]}"


def _ranges(label_map: np.ndarray) -> str:
  """"0-11, 255": the stored values that may occur."""
  allowed = np.flatnonzero(label_map >= 0)
  runs = np.split(allowed, np.flatnonzero(np.diff(allowed) > 1) + 1)
  return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0])
                   for r in runs)


def _raise_all(problems: list[str], shown: int = 20) -> None:
  if not problems:
    return
  more = len(problems) - shown
  tail = f"\n  ... and {more} more" if more > 0 else ""
  if len(problems) == 1:
    raise DataError(problems[0])
  raise DataError(f"{len(problems)} bad files:\n  "
                  + "\n  ".join(problems[:shown]) + tail)
