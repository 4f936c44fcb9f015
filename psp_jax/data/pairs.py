"""Image files and their masks on disk: who belongs to whom.

Nothing here is decoded but single files asked for; data/check.py reads all.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from psp_jax.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def read_bytes(path: pathlib.Path) -> bytes:
  """The file's bytes; DataError names it and the reason."""
  try:
    return path.read_bytes()
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror})") from error


@dataclasses.dataclass(frozen=True)
class Pair:
  """One image file and what is known of its pixels.

  Attributes:
    name: unique in its split; with the folders it lies in, if any.
    image: its file.
    mask: the file that says the classes; None in a test split.
    instances: the file of instance ids, where a dataset has it.
    read_mask: what makes an index PNG's (or TIFF's) bytes of `mask`.
  """
  name: str
  image: pathlib.Path
  mask: pathlib.Path | None = None
  instances: pathlib.Path | None = None
  read_mask: Callable[[pathlib.Path], bytes] = read_bytes

  def image_bytes(self) -> bytes:
    return read_bytes(self.image)

  def mask_bytes(self) -> bytes:
    """Of an index image; empty where there is no mask."""
    return b"" if self.mask is None else self.read_mask(self.mask)

  def instances_bytes(self) -> bytes:
    return b"" if self.instances is None else read_bytes(self.instances)


def first_folder(roots, *candidates: str) -> pathlib.Path | None:
  """The first folder that is there: each candidate below each root."""
  for candidate in candidates:
    for root in roots:
      if _is_folder(pathlib.Path(root, candidate)):
        return pathlib.Path(root, candidate)
  return None


def list_files(folder: pathlib.Path, suffixes=IMAGE_SUFFIXES,
               others: list | None = None) -> dict[str, list[pathlib.Path]]:
  """Files at any depth by their path below `folder` without the suffix.

  Hidden files are none, files with other suffixes go to `others`.

  Raises:
    DataError: a folder that is missing or may not be read.
  """
  def refuse(error):
    raise DataError(f"{error.filename}: {_REASONS.get(type(error), 'cannot')}"
                    f" be read ({error.strerror}); {_WHERE}") from error

  if not _is_folder(folder):
    raise DataError(f"{folder}: no such folder; {_WHERE}")
  found = {}
  for parent, folders, names in os.walk(
      folder, onerror=refuse, followlinks=True):
    folders[:] = sorted(f for f in folders if not f.startswith("."))
    for name in sorted(names):
      path = pathlib.Path(parent, name)
      if name.startswith("."):
        continue
      if path.suffix.lower() not in suffixes:
        if others is not None:
          others.append(path)
        continue
      key = path.relative_to(folder).with_suffix("").as_posix()
      found.setdefault(key, []).append(path)
  return dict(sorted(found.items()))


_WHERE = ("set config.data.manual_dir (--manual_dir) to the dataset's top "
          "folder")
_REASONS = {PermissionError: "may not"}


def _is_folder(path: pathlib.Path) -> bool:
  try:
    return path.is_dir()
  except OSError as error:
    raise DataError(f"{path}: may not be read ({error.strerror})") from error


def pair_folders(image_dir, mask_dir, problems: list[str],
                 mask_suffixes=(".png",), others: list | None = None
                 ) -> list[Pair]:
  """Pairs of equal path and stem below two folders, sorted by name.

  Args:
    image_dir: of the images, at any depth.
    mask_dir: likewise.
    problems: gets a line for each image without a mask, mask without an image
      and name that two files share.
    mask_suffixes: of masks.
    others: gets the files below `image_dir` that are no images.

  Raises:
    DataError: a folder is missing, unreadable or without images.
  """
  image_dir, mask_dir = pathlib.Path(image_dir), pathlib.Path(mask_dir)
  images = _unique(list_files(image_dir, others=others), problems)
  masks = _unique(list_files(mask_dir, mask_suffixes), problems)
  if not images:
    raise DataError(f"{image_dir}: holds no {', '.join(IMAGE_SUFFIXES)} "
                    f"images; {_WHERE}")
  problems += [
      f"{path}: has no mask {mask_dir / name}{' or '.join(mask_suffixes)}"
      for name, path in images.items() if name not in masks]
  problems += [
      f"{path}: has no image {image_dir / name}.*; add it, or remove the mask"
      for name, path in masks.items() if name not in images]
  return [Pair(name, path, masks[name]) for name, path in images.items()
          if name in masks]


def unpaired_folder(image_dir, problems: list[str],
                    others: list | None = None) -> list[Pair]:
  """A test split: images without masks, sorted by name."""
  images = _unique(
      list_files(pathlib.Path(image_dir), others=others), problems)
  return [Pair(name, path) for name, path in images.items()]


def _unique(found, problems) -> dict[str, pathlib.Path]:
  unique = {}
  for name, paths in found.items():
    try:
      name.encode()
    except UnicodeEncodeError:
      problems.append(f"{str(paths[0])!r}: a file name that is not UTF-8; "
                      "rename it")
      continue
    if len(paths) > 1:
      problems.append(f"{paths[0]}: {', '.join(p.name for p in paths[1:])} "
                      "beside it would share its mask; rename or remove one")
    unique[name] = paths[0]
  return unique


def raise_all(problems: list[str], shown: int = 20) -> None:
  """One DataError that lists the first of all problems; none, no error."""
  if not problems:
    return
  if len(problems) == 1:
    raise DataError(problems[0])
  more = len(problems) - shown
  tail = (f"\n  ... and {more} more; python -m psp_jax.prepare --check lists "
          "all" if more > 0 else "")
  raise DataError(f"{len(problems)} problems:\n  "
                  + "\n  ".join(problems[:shown]) + tail)


def is_there(path: pathlib.Path, problems: list[str], why: str) -> bool:
  """Whether `path` is a file; if not, `problems` gets a line with `why`."""
  try:
    if path.is_file():
      return True
    problems.append(f"{path}: no such file; {why}")
  except OSError as error:
    problems.append(f"{path}: may not be read ({error.strerror})")
  return False
