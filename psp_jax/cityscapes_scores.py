"""python -m psp_jax.cityscapes_scores PREDICTIONS_DIR GROUND_TRUTH_DIR

Cityscapes' scores of labelIds PNGs, equal to the official script's: prints IoU
and iIoU, by class and by category. Source of every rule: cityscapesscripts,
evaluation/evalPixelLevelSemanticLabeling.py.
"""

import argparse
import glob
import json
import math
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image

from psp_jax.data.cityscapes_labels import (
  AVERAGE_INSTANCE_SIZES,
  STORED,
  TAXONOMY,
)
from psp_jax.errors import DataError, UserError

_N = len(STORED)  # Stored ids are 0 to 33.
_EVALUATED = np.array([not label.ignored for label in STORED])
_HAS_INSTANCES = np.array([label.has_instances for label in STORED])
_AVERAGE_SIZE = np.array(
    [AVERAGE_INSTANCE_SIZES.get(label.name, 0.0) for label in STORED])
_CATEGORIES = tuple(dict.fromkeys(label.category for label in STORED))
_CATEGORY = np.array([_CATEGORIES.index(label.category) for label in STORED])
# Rows of the tables: classes and categories that have a score.
_SHOWN = {name for label in STORED if not label.ignored
          for name in (label.name, label.category)}

# What a file may hold, by value (PNGs have at most 16 bits).
_IS_LABEL = np.arange(2**16) < _N
_IS_INSTANCE = np.array([v <= 1000 or v // 1000 < _N
                         and _HAS_INSTANCES[v // 1000] for v in range(2**16)])
_TRUTH_SUFFIX = "_gtFine_labelIds.png"


class Counts:
  """Sums over frames.

  Attributes:
    confusion: (34, 34) int64 pixels, rows truth, columns prediction.
    instances: (34,) int64 true instances of a label.
    class_hits: (34,) float64 pixels of the label's instances predicted as
      it, each weighed by average instance size / this instance's size.
    category_hits: likewise, predicted as any label of its category.
  """

  def __init__(self):
    self.confusion = np.zeros((_N, _N), np.int64)
    self.instances = np.zeros(_N, np.int64)
    self.class_hits = np.zeros(_N)
    self.category_hits = np.zeros(_N)

  def add(self, prediction, truth, instances) -> None:
    """Counts a frame.

    Args:
      prediction: (H, W) stored ids, 0 to 33.
      truth: likewise.
      instances: (H, W) instanceIds: label * 1000 + number for the pixels of
        single objects; anything up to 1000 (groups, stuff) is none.
    """
    cells = truth.astype(np.int64) * _N + prediction
    self.confusion += np.bincount(
        cells.ravel(), minlength=_N * _N).reshape(_N, _N)

    single = instances > 1000
    ids, predicted = instances[single].astype(np.int64), prediction[single]
    label = ids // 1000
    sizes = np.bincount(ids)
    found = np.flatnonzero(sizes)
    weight = _AVERAGE_SIZE[found // 1000] / sizes[found]

    def weighed(hit):
      pixels = np.bincount(ids[hit], minlength=len(sizes))[found]
      return np.bincount(found // 1000, pixels * weight, _N)

    self.instances += np.bincount(found // 1000, minlength=_N)
    self.class_hits += weighed(predicted == label)
    self.category_hits += weighed(_CATEGORY[predicted] == _CATEGORY[label])

  def add_record(self, record, prediction) -> None:
    """Counts a prediction of class ids for a record with "instances".

    Its labels would not do: they hold the 19 classes, scores know all 34.

    Raises:
      DataError: there are instanceIds that no label has.
    """
    instances = record["instances"]
    truth = np.where(instances < 1000, instances, instances // 1000)
    unknown = np.unique(instances[(truth >= _N) | ~_IS_INSTANCE[instances]])
    if unknown.size:
      raise DataError(f"{record['name']}: instanceIds {unknown.tolist()} are "
                      f"unknown; they are labelIds, 0 to {_N - 1}, or labelId "
                      "* 1000 + number")
    self.add(TAXONOMY.stored_ids[prediction], truth, instances)

  def summed(self, sum_over_processes) -> "Counts":
    """Those of all processes together."""
    total = Counts()
    for name, array in vars(self).items():
      setattr(total, name, sum_over_processes(array))
    return total


def scores(counts: Counts) -> dict:
  """Fractions under the official JSON's names; NaN is 0 / 0 or no score.

  Means leave NaN out. Wrong predictions count wherever the truth is not
  ignored; so do pixels of the truth that are predicted as an ignored label.
  """
  categories = _CATEGORY == np.arange(len(_CATEGORIES))[:, None]
  result: dict[str, Any] = {}
  for kind, plural, names, members, hits in (
      ("class", "Classes", [label.name for label in STORED],
       np.eye(_N, dtype=bool), counts.class_hits),
      ("category", "Categories", _CATEGORIES, categories,
       counts.category_hits)):
    iou, instance_iou = _scores(counts, members, hits)
    for tag, values in (("", iou), ("Inst", instance_iou)):
      result[f"{kind}{tag}Scores"] = dict(zip(names, values.tolist()))
      seen = values[~np.isnan(values)]
      result[f"averageScore{tag}{plural}"] = (
          float(seen.mean()) if seen.size else math.nan)
  return result


def _scores(counts, members, hits):
  """(IoU, iIoU) of groups of labels, members (K, 34) bool."""
  evaluated = members & _EVALUATED
  others = ~members & _EVALUATED

  def pixels(rows, columns):
    return np.einsum("ki,ij,kj->k", rows, counts.confusion, columns)

  truth = evaluated @ counts.confusion.sum(1)
  # A category's iIoU holds predictions of its ignored labels against it (and,
  # in category_hits, for it), its IoU does not: so does the official script.
  weighed = evaluated @ (counts.instances * _AVERAGE_SIZE)
  scored = (members <= _HAS_INSTANCES).all(1) & evaluated.any(1)
  with np.errstate(invalid="ignore"):
    iou = pixels(evaluated, evaluated) / (truth + pixels(others, evaluated))
    instance_iou = evaluated @ hits / (weighed + pixels(others, members))
  return iou, np.where(scored, instance_iou, math.nan)


def score_folders(predictions, ground_truth) -> dict:
  """`scores` of all frames below `ground_truth` (a split's folder).

  A frame is CITY_SEQUENCE_FRAME_gtFine_labelIds.png and its instanceIds; its
  prediction is the one file CITY_SEQUENCE_FRAME*.png below `predictions`.

  Raises:
    DataError: names every file that is missing, ambiguous or bad.
  """
  for folder in (predictions, ground_truth):
    if not pathlib.Path(folder).is_dir():
      raise DataError(f"{folder}: no such folder")
  truths, files = _pngs(ground_truth, _TRUTH_SUFFIX), _pngs(predictions, ".png")
  if not truths:
    raise DataError(f"{ground_truth}: holds no *{_TRUTH_SUFFIX}; name a "
                    "split's folder, like gtFine/val")
  counts, problems = Counts(), []
  for truth in truths:
    frame = truth.name.removesuffix(_TRUTH_SUFFIX)
    found = [path for path in files if path.name.startswith(frame)]
    if len(found) != 1:
      problems.append(f"{truth}: {len(found)} predictions {frame}*.png in "
                      f"{predictions}, must be one")
    arrays = [_read(path, problems, _IS_LABEL) for path in (truth, *found)]
    arrays.append(_read(truth.with_name(f"{frame}_gtFine_instanceIds.png"),
                        problems, _IS_INSTANCE))
    sizes = {f"{a.shape[1]}x{a.shape[0]}" for a in arrays if a is not None}
    if len(sizes) > 1:
      problems.append(f"{truth}: it, its instanceIds and its prediction "
                      f"differ in size: {', '.join(sorted(sizes))}")
    if not problems:
      counts.add(arrays[1], arrays[0], arrays[2])
  if problems:
    raise DataError("\n  ".join([f"{len(problems)} problem(s):", *problems]))
  return scores(counts)


def _pngs(folder, suffix) -> list[pathlib.Path]:
  """Files at any depth; unlike Path.rglob, glob follows linked folders."""
  pattern = f"{glob.escape(str(folder))}/**/*{suffix}"
  return sorted(map(pathlib.Path, glob.glob(pattern, recursive=True)))


def _read(path, problems, known) -> np.ndarray | None:
  """(H, W) integers with known[value], or None and one more problem."""
  try:
    with Image.open(path, formats=["PNG"]) as image:
      array = np.array(image)  # Of a palette PNG the indices.
  except Exception as error:  # Whatever the file makes Pillow raise.
    problems.append(f"{path}: not a readable PNG ({error})")
    return None
  if array.ndim != 2 or array.dtype.kind not in "ui":
    problems.append(f"{path}: mode {image.mode}; must be one channel of ids")
    return None
  unknown = np.unique(array[~known[array]])
  if unknown.size:
    problems.append(f"{path}: values {unknown.tolist()} are unknown; labelIds "
                    f"are 0 to {_N - 1} (not train ids), instanceIds labelId "
                    "* 1000 + number")
  return array


def format_scores(result: dict) -> str:
  """Two tables in percent; "-" where there is no score."""
  lines = []
  for kind, plural in (("class", "Classes"), ("category", "Categories")):
    lines.append(f"{kind:<22}{'IoU':>6}{'iIoU':>8}")
    rows = [(name, iou, result[f"{kind}InstScores"][name])
            for name, iou in result[f"{kind}Scores"].items()
            if name in _SHOWN]
    rows.append(("mean", result[f"averageScore{plural}"],
                 result[f"averageScoreInst{plural}"]))
    lines += [f"{name:<22}{_percent(iou):>6}{_percent(instance_iou):>8}"
              for name, iou, instance_iou in rows]
    lines.append("")
  return "\n".join(lines[:-1])


def _percent(fraction: float) -> str:
  return "-" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _main() -> None:
  parser = argparse.ArgumentParser(
      prog="python -m psp_jax.cityscapes_scores",
      description=__doc__.partition("\n\n")[2],
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("predictions", metavar="PREDICTIONS_DIR",
                      help="holds CITY_SEQUENCE_FRAME*.png, at any depth")
  parser.add_argument("ground_truth", metavar="GROUND_TRUTH_DIR",
                      help="a split's folder, like gtFine/val")
  parser.add_argument("--json", metavar="FILE", help="write the scores here")
  args = parser.parse_args()
  try:
    result = score_folders(args.predictions, args.ground_truth)
    print(format_scores(result))
    if args.json:
      _write_json(args.json, result)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


def plain(result):
  """`result` with null for NaN, which JSON does not have."""
  if isinstance(result, dict):
    return {name: plain(inner) for name, inner in result.items()}
  return None if math.isnan(result) else result


def _write_json(path, result) -> None:
  try:
    pathlib.Path(path).write_text(json.dumps(plain(result), indent=2) + "\n")
  except OSError as error:
    raise DataError(f"--json={path}: cannot be written ({error.strerror}); "
                    "name a file in a folder that exists") from error


if __name__ == "__main__":
  _main()
