"""Your own photographs: a folder, no code.

    images/train/*  images/val/*   photographs, in folders of their own or not
    masks/train/*   masks/val/*    a mask of the same name for each
    classes.csv                    id, name, colour: one line a class

A mask holds ids (one 8-bit channel), palette indices or, if classes.csv has
colours, these colours. Further folders (images/test) are further splits; those
without masks can be predicted, not scored. 255 is never a class, nor is one
whose name in classes.csv is "ignore".
"""

import csv
import functools
import pathlib
import re

import numpy as np

from psp_jax.data import decode, pairs
from psp_jax.data.builder import PairsBuilder
from psp_jax.data.taxonomy import IGNORE_LABEL, Taxonomy, voc_palette
from psp_jax.errors import DataError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".webp", ".jpg", ".jpeg")
_LAYOUT = ("a dataset of one's own has images/train, images/val, masks/train, "
           "masks/val and classes.csv")


class Folder(PairsBuilder):
  """Photographs and masks of the user's."""
  HAND_MADE = True
  PARTS = ("images", "masks", "classes.csv")
  reduce_zero_label = False

  @property
  def taxonomy(self):
    if self.manual_dir:
      path = self.manual_dir / "classes.csv"
      return make_taxonomy(read_classes(path), path, self.reduce_zero_label)
    return make_taxonomy(self.info.metadata["classes"],
                         self.info.metadata["source"], self.reduce_zero_label)

  @property
  def unlabelled_splits(self):
    return tuple(self.info.metadata.get("unlabelled", ()))

  def download(self, dl_manager):
    raise DataError("name your dataset's folder with "
                    f"--config.data.manual_dir (--manual_dir): {_LAYOUT}")

  def find_pairs(self, roots, problems):
    [root] = map(pathlib.Path, roots)
    for name in ("images/train", "images/val", "masks/train", "masks/val"):
      if pairs.first_folder([root], name) is None:
        raise DataError(f"{root / name}: no such folder; {_LAYOUT}")
    classes = read_classes(root / "classes.csv")
    colours = colour_ids(classes, root / "classes.csv")
    found = {}
    folders = sorted((root / "images").iterdir(),
                     key=lambda f: (f.name not in ("train", "val"), f.name))
    for images in folders:
      masks = root / "masks" / images.name
      if not images.is_dir() or images.name.startswith("."):
        continue
      if not re.fullmatch("(?!all$)[A-Za-z0-9_]+", images.name):
        problems.append(f"{images}: a split's name has letters, digits and _ "
                        "only, and is not all; rename the folder")
        continue
      others = []
      listed = (pairs.pair_folders(images, masks, problems, MASK_SUFFIXES,
                                   others)
                if masks.is_dir() else
                pairs.unpaired_folder(images, problems, others))
      problems += [f"{path}: not one of {', '.join(pairs.IMAGE_SUFFIXES)}; "
                   "convert or remove it" for path in others]
      found[images.name] = [
          pairs.Pair(p.name, p.image, p.mask,
                     read_mask=functools.partial(_read_mask, colours))
          for p in listed]
    self._metadata = {
        "classes": classes, "unlabelled": [
            split for split, listed in found.items()
            if not any(p.mask for p in listed)]}
    return found

  def metadata(self):
    return self._metadata


def make_taxonomy(classes, path, reduce_zero_label: bool = False) -> Taxonomy:
  """The taxonomy of `read_classes`; class ids are the order of the stored.

  Args:
    classes: (stored id, name, (r, g, b) or None) in rows.
    path: where they come from, for messages.
    reduce_zero_label: whether 0 is unlabelled, whatever `classes` says of it.

  Raises:
    DataError: there is no class, or two have one name.
  """
  label_map = np.full(256, -1, np.int16)
  label_map[IGNORE_LABEL] = IGNORE_LABEL
  names, palette = [], []
  fallback = voc_palette(256)[1:]
  for stored, name, colour in sorted(classes, key=lambda row: row[0]):
    if name == "ignore":
      label_map[stored] = IGNORE_LABEL
    elif stored or not reduce_zero_label:
      label_map[stored] = len(names)
      palette.append(fallback[len(names)] if colour is None else colour)
      names.append(name)
  if reduce_zero_label:
    label_map[0] = IGNORE_LABEL
  if not names:
    raise DataError(f"{path}: lists no class; {_FORMAT}")
  twice = sorted({name for name in names if names.count(name) > 1})
  if twice:
    raise DataError(f"{path}: names {', '.join(twice)} twice; a class is one "
                    "line")
  return Taxonomy(tuple(names), np.array(palette, np.uint8), label_map)


def colour_ids(classes, path) -> dict[int, int]:
  """0xRRGGBB -> stored id, of those of `read_classes` with a colour.

  Raises:
    DataError: two have the same.
  """
  ids = {}
  for stored, name, colour in classes:
    if colour is None:
      continue
    packed = int(_pack(np.array(colour)))
    if packed in ids:
      raise DataError(f"{path}: ids {ids[packed]} and {stored} ({name}) have "
                      "the same colour; give one of them another")
    ids[packed] = stored
  return ids


_FORMAT = ('the first line is "id,name,colour", then one line a class, like '
           '"0,road,#804080" (colour may be left out where masks hold ids)')


def read_classes(path: pathlib.Path) -> list[tuple]:
  """(stored id, name, (r, g, b) or None) of each line of a classes.csv.

  Raises:
    DataError: names the file, the line and the remedy.
  """
  if not path.is_file():
    raise DataError(f"{path}: no such file; {_FORMAT}")
  try:
    text = pairs.read_bytes(path).decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DataError(f"{path}: not UTF-8 ({error}); save it again as UTF-8"
                    ) from error
  delimiter = ";" if ";" in text.partition("\n")[0] else ","  # Some Excels.
  reader = csv.DictReader(text.splitlines(), delimiter=delimiter,
                          skipinitialspace=True)
  header = [(name or "").strip().lower() for name in reader.fieldnames or ()]
  reader.fieldnames = ["colour" if h == "color" else h for h in header]
  if not {"id", "name"} <= set(reader.fieldnames):
    raise DataError(f"{path}: its first line is {', '.join(header)!r}; "
                    f"{_FORMAT}")
  rows, seen = [], set()
  for row in reader:
    where = f"{path}, line {reader.line_num}"
    stored = (row["id"] or "").strip()
    name = (row["name"] or "").strip()
    if not re.fullmatch(r"\d{1,3}", stored) or int(stored) > 254 or not name:
      raise DataError(f"{where}: id {stored!r}, name {name!r}; an id is a "
                      f"number from 0 to 254 and a name is not empty; "
                      f"{_FORMAT}")
    if int(stored) in seen:
      raise DataError(f"{where}: id {stored} is listed twice; remove one")
    seen.add(int(stored))
    rows.append((int(stored), name, _colour(row.get("colour"), where)))
  return rows


def _colour(text: str | None, where: str):
  text = (text or "").strip()
  if not text:
    return None
  if re.fullmatch(r"#?[0-9a-fA-F]{6}", text):
    text = text.removeprefix("#")
    return tuple(int(text[i:i + 2], 16) for i in (0, 2, 4))
  numbers = [int(n) for n in re.findall(r"\d+", text)]
  if len(numbers) == 3 and max(numbers) <= 255:
    return tuple(numbers)
  raise DataError(f"{where}: colour {text!r}; write #rrggbb or three numbers "
                  'in quotes, "128 64 128"')


def _pack(colours: np.ndarray) -> np.ndarray:
  """(..., 3) to 0xRRGGBB."""
  return colours.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _read_mask(colours: dict[int, int], path: pathlib.Path) -> bytes:
  """The file as it is where it holds ids; else its colours as an id PNG."""
  data = pairs.read_bytes(path)
  if not colours or not decode.has_colours(data):
    return data
  rgb = decode.decode_colours(data, str(path))
  packed = _pack(rgb)
  values, inverse = np.unique(packed, return_inverse=True)
  unknown = [v for v in values.tolist() if v not in colours]
  if unknown:
    # Not the classes' colours: a palette's indices are the ids, or the grey
    # of a WebP, which knows RGB alone.
    if decode.has_palette(data) or (
        data[8:12] == b"WEBP" and (rgb == rgb[..., :1]).all()):
      return data
    y, x = (int(i[0]) for i in np.nonzero(packed == unknown[0]))
    more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
    raise DataError(
        f"{path}: colour #{unknown[0]:06x} at row {y}, column {x}{more} is "
        "not in classes.csv; add it there (name it ignore if it is no class)")
  ids = np.array([colours[v] for v in values.tolist()], np.uint8)
  return decode.encode_mask(ids[inverse.reshape(packed.shape)])
