"""Reads every pair of a dataset once: what is wrong, and what is in it."""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib

import numpy as np

from psp_jax import progress
from psp_jax.data import decode, pairs
from psp_jax.data.taxonomy import IGNORE_LABEL, Taxonomy
from psp_jax.errors import DataError


@dataclasses.dataclass
class SplitReport:
  """What one split holds.

  Attributes:
    images: how many there are.
    unlabelled: how many of them have no mask.
    sizes: (width, height) -> images.
    pixels: (classes + 1,) int64 pixels of each class, and those ignored.
    images_with: (classes,) int64 images where a class occurs.
    empty: names of masks without a valid pixel; kept, the loss allows them.
    notes: what images have that a person should know -> their names.
    problems: a line for each thing that is wrong.
  """
  images: int
  unlabelled: int
  sizes: collections.Counter
  pixels: np.ndarray
  images_with: np.ndarray
  empty: list[str]
  notes: dict[str, list[str]]
  problems: list[str]


@dataclasses.dataclass
class _Facts:
  """Of one pair; size is None where it cannot be read."""
  problems: list[str] = dataclasses.field(default_factory=list)
  notes: list[str] = dataclasses.field(default_factory=list)
  size: tuple[int, int] | None = None
  counts: np.ndarray | None = None


def examine(split: str, found: list[pairs.Pair],
            taxonomy: Taxonomy) -> SplitReport:
  """Decodes every pair, on all cores."""
  classes = taxonomy.num_classes
  report = SplitReport(
      len(found), sum(p.mask is None for p in found), collections.Counter(),
      np.zeros(classes + 1, np.int64), np.zeros(classes, np.int64), [], {}, [])
  # One class id a stored value; ignored ones and unknown ones come last.
  columns = taxonomy.label_map.copy()
  columns[(columns < 0) | (columns >= classes)] = classes
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    read = pool.map(lambda pair: _read(pair, taxonomy.label_map), found)
    try:
      for pair, facts in zip(found, progress.track(
          read, len(found), f"checking {split}")):
        report.problems += facts.problems
        for note in facts.notes:
          report.notes.setdefault(note, []).append(pair.name)
        if facts.size:
          report.sizes[facts.size] += 1
        if facts.counts is not None:
          pixels = np.bincount(columns, facts.counts, classes + 1)
          report.pixels += pixels.astype(np.int64)
          report.images_with += pixels[:-1] > 0
          if not pixels[:-1].any():
            report.empty.append(pair.name)
    except BaseException:  # Interrupted: do not read on to the end.
      pool.shutdown(cancel_futures=True)
      raise
  if report.empty and len(report.empty) == len(found) > 1:
    mask = found[0].mask  # A record of a prepared dataset has no folder.
    where = mask.parent if isinstance(mask, pathlib.Path) else split
    report.problems.append(
        f"{where}: not one of {len(found)} masks has a pixel of "
        "a class; look at the ids that they hold")
  return report


def _read(pair: pairs.Pair, label_map: np.ndarray) -> _Facts:
  facts, image = _Facts(), None
  try:
    data = pair.image_bytes()
    image = decode.decode_image(data, str(pair.image))
    facts.size = image.shape[1], image.shape[0]
    facts.notes = decode.peculiarities(data)
  except DataError as error:
    facts.problems.append(str(error))
  if pair.mask is None:
    return facts
  try:
    mask = decode.decode_mask(pair.mask_bytes(), str(pair.mask))
  except DataError as error:
    facts.problems.append(str(error))
    return facts
  if image is not None and image.shape[:2] != mask.shape:
    turned = (decode.is_turned(data) and
              image.shape[1::-1] == mask.shape)
    facts.problems.append(
        f"{pair.image} is {_size(image)} but its mask {pair.mask} is "
        f"{_size(mask)}" + ("; the mask fits the image as its EXIF tag turns "
                            "it: save the image turned, without the tag"
                            if turned else ""))
  if pair.instances is not None:
    _check_instances(pair, mask, label_map, facts.problems)
  counts = np.bincount(mask.ravel(), minlength=256)
  bad = [int(v) for v in np.flatnonzero(counts) if label_map[v] < 0]
  if bad:
    facts.problems.append(
        f"{pair.mask}: label values {_few(bad)} are out of range (allowed: "
        f"{ranges(label_map)}){_hint(bad, label_map)}")
  else:
    facts.counts = counts
  return facts


def _check_instances(pair, mask, label_map, problems) -> None:
  try:
    instances = decode.decode_instances(
        pair.instances_bytes(), str(pair.instances))
  except DataError as error:
    problems.append(str(error))
    return
  if instances.shape != mask.shape:
    problems.append(f"{pair.instances} is {_size(instances)} but {pair.mask} "
                    f"is {_size(mask)}")
  values = np.unique(instances)  # A label, or label * 1000 + number.
  stored = np.where(values < 1000, values, values // 1000)
  bad = [int(v) for v, s in zip(values, stored)
         if s > 255 or label_map[s] < 0]
  if bad:
    problems.append(f"{pair.instances}: values {_few(bad)} are instances of "
                    "no label; unpack it again")


def _size(array: np.ndarray) -> str:
  return f"{array.shape[1]}x{array.shape[0]}"


def _few(values: list[int], shown: int = 12) -> str:
  if len(values) <= shown:
    return str(values)
  return f"{str(values[:shown])[:-1]}, ... {len(values) - shown} more]"


def _hint(bad: list[int], label_map: np.ndarray) -> str:
  """Ids counted from 1 are the most common mistake."""
  classes = np.sum((label_map >= 0) & (label_map != IGNORE_LABEL))
  if label_map[0] == 0 and bad == [classes]:
    return ("; if ids count from 1 and 0 is unlabelled, set "
            "config.data.reduce_zero_label (--reduce_zero_label)")
  return ""


def ranges(label_map: np.ndarray) -> str:
  """"0-11, 255": the stored values that may occur."""
  allowed = np.flatnonzero(label_map >= 0)
  runs = np.split(allowed, np.flatnonzero(np.diff(allowed) > 1) + 1)
  return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0])
                   for r in runs)


def format_report(splits: dict[str, SplitReport], taxonomy: Taxonomy) -> str:
  """Counts, sizes, class frequencies and what is odd, as plain text."""
  lines = []
  for split, report in splits.items():
    lines.append(f"{split}: {_counted(report)}")
    lines += [f"  {len(names):,} images: {note} ({_names(names)})"
              for note, names in report.notes.items()]
    if report.empty:
      lines.append(f"  {len(report.empty):,} masks without a valid pixel, "
                   f"kept ({_names(report.empty)})")
  labelled = {s: r for s, r in splits.items() if r.pixels.any()}
  if labelled:
    lines += ["", *_frequencies(labelled, taxonomy)]
  for split, report in labelled.items():
    unseen = [name for name, seen in zip(
        taxonomy.class_names, report.images_with) if not seen]
    if unseen:
      lines.append(f"never seen in {split}: {', '.join(unseen)}")
  return "\n".join(lines)


def _counted(report: SplitReport) -> str:
  text = f"{report.images:,} images"
  if report.unlabelled:
    text += (", without masks" if report.unlabelled == report.images
             else f", {report.unlabelled:,} without masks")
  sizes = sorted(report.sizes, key=lambda s: s[0] * s[1])
  if sizes:
    few = [sizes[0], sizes[-1]] if len(sizes) > 1 else sizes
    text += ", " + " to ".join(f"{w}x{h}" for w, h in few)
    if len(sizes) > 2:
      text += f" ({len(sizes):,} sizes)"
  return text


def _names(names: list[str], shown: int = 5) -> str:
  more = f", ... {len(names) - shown} more" if len(names) > shown else ""
  return ", ".join(names[:shown]) + more


def _frequencies(splits, taxonomy: Taxonomy) -> list[str]:
  """A row a class seen: percent of the pixels, images where it occurs."""
  width = max(map(len, (*taxonomy.class_names, "ignored")))
  head = f"{'class':<{width}}" + "".join(
      f"  {split + ' % of pixels':>20}  {'images':>8}" for split in splits)
  rows = [head]
  for i, name in enumerate((*taxonomy.class_names, "ignored")):
    if not any(report.pixels[i] for report in splits.values()):
      continue
    row = f"{name:<{width}}"
    for report in splits.values():
      share = 100 * report.pixels[i] / max(report.pixels.sum(), 1)
      images = (f"{report.images_with[i]:,}" if i < len(report.images_with)
                else "")
      row += f"  {share:>20.3f}  {images:>8}"
    rows.append(row)
  return rows


def as_json(splits: dict[str, SplitReport], taxonomy: Taxonomy) -> dict:
  """The same for machines."""
  return {split: {
      "images": r.images, "unlabelled": r.unlabelled,
      "sizes": {f"{w}x{h}": n for (w, h), n in sorted(r.sizes.items())},
      "classes": {name: {"pixels": int(r.pixels[i]),
                         "images": int(r.images_with[i])}
                  for i, name in enumerate(taxonomy.class_names)},
      "ignored_pixels": int(r.pixels[-1]), "empty_masks": r.empty,
      "notes": r.notes, "problems": r.problems,
  } for split, r in splits.items()}


def sheet_pairs(found: list[pairs.Pair], report: SplitReport,
                count: int = 4) -> list[pairs.Pair]:
  """Labelled pairs to look at: rotated ones first, then evenly spread."""
  rotated = {name for note, names in report.notes.items() if "EXIF" in note
             for name in names}
  labelled = [p for p in found if p.mask is not None]
  if not labelled:
    return []
  spread = np.linspace(0, len(labelled) - 1, min(count, len(labelled)))
  first = [p for p in labelled if p.name in rotated][:count // 2]
  others = [labelled[i] for i in spread.round().astype(int)]
  return (first + [p for p in others if p not in first])[:count]


def read_pair(pair: pairs.Pair, taxonomy: Taxonomy):
  """(image, label) of a pair as training sees it.

  Raises:
    DataError: it cannot be read.
  """
  image = decode.decode_image(pair.image_bytes(), str(pair.image))
  mask = decode.decode_mask(pair.mask_bytes(), str(pair.mask))
  return image, taxonomy.label_map.astype(np.uint8)[mask]
