"""MS-COCO's instances in PASCAL VOC's 20 classes, to pre-train for VOC.

What the paper's last VOC row trains on first; it does not say how instances
become masks. Here: pixels where instances of two classes overlap are ignored,
and so are crowds where there is no instance; images count whose instances of
VOC's classes, crowds left out, have areas of more than 1,000 pixels together.
"""

import collections
import functools
import json
import pathlib
from typing import NamedTuple

import numpy as np

from psp_jax.data import decode, downloads, pairs
from psp_jax.data.builder import PairsBuilder
from psp_jax.data.taxonomy import IGNORE_LABEL
from psp_jax.data.voc2012 import TAXONOMY
from psp_jax.errors import DataError

# COCO's names where they are not VOC's.
_RENAMED = {
    "airplane": "aeroplane", "dining table": "diningtable",
    "motorcycle": "motorbike", "potted plant": "pottedplant", "couch": "sofa",
    "tv": "tvmonitor"}
_MIN_PIXELS = 1_000

# Images that each annotation file lists.
LISTED = {"train2017": 118_287, "val2017": 5_000,
          "train2014": 82_783, "val2014": 40_504}

ARCHIVES = tuple(
    downloads.Archive(f"http://images.cocodataset.org/{path}",
                      f"sha256:{sha256}")
    for path, sha256 in {
        "zips/train2017.zip": "69a8bb58ea5f8f99d24875f21416de2e"
                              "9ded3178e903f1f7603e283b9e06d929",
        "zips/val2017.zip": "4f7e2ccb2866ec5041993c9cf2a952bb"
                            "ed69647b115d0f74da7ce8f4bef82f05",
        "annotations/annotations_trainval2017.zip":
            "113a836d90195ee1f884e704da6304df"
            "aaecff1f023f49b6ca93c4aaae470268"}.items())


class Instance(NamedTuple):
  """What is used of one of COCO's annotations.

  Attributes:
    number: COCO's own, for messages.
    class_id: VOC's.
    is_crowd: whether it is a group of objects.
    area: in pixels.
    shape: polygons, or runs of pixels down the columns.
  """
  number: int
  class_id: int
  is_crowd: bool
  area: float
  shape: list | dict


class CocoVoc(PairsBuilder):
  """COCO 2017 (or 2014) reduced to the 21 classes of PASCAL VOC."""
  TAXONOMY = TAXONOMY
  IMAGE_ENCODING = "jpeg"

  def download(self, dl_manager):
    return downloads.fetch(
        dl_manager, ARCHIVES, "Get it by hand and unpack it: "
        "--config.data.manual_dir=FOLDER, which holds train2017, val2017 and "
        "annotations")

  def find_pairs(self, roots, problems):
    _pycocotools()  # Before gigabytes are read, and not once an image.
    self._listed = {}
    for year in ("2017", "2014"):
      found = {}
      for split in ("train", "val"):
        images = pairs.first_folder(
            roots, f"{split}{year}", f"images/{split}{year}")
        if images:
          found[split] = self._find(roots, images, split, year, problems)
      if found:
        return found
    raise DataError(f"{roots[0]}: holds no train2017, val2017, train2014 or "
                    "val2014; set config.data.manual_dir to the folder where "
                    "COCO's archives are unpacked")

  def _find(self, roots, images, split, year, problems):
    part = split + year
    folder = pairs.first_folder(roots, "annotations")
    path = (folder or pathlib.Path(roots[0], "annotations")) / (
        f"instances_{part}.json")
    archive = f"annotations_trainval{year}.zip"
    if not pairs.is_there(path, problems,
                          f"{images} needs it; unpack {archive}"):
      return []
    listed, instances = _read_annotations(path, archive)
    self._listed[part] = len(listed)
    problems += self._listed_problems({part: len(listed)}, path)
    found, large = [], 0
    for number, file_name, height, width in listed:
      mine = instances[number]
      if sum(i.area for i in mine if not i.is_crowd) <= _MIN_PIXELS:
        continue
      large += 1
      file = images / file_name
      if pairs.is_there(file, problems, f"{path} lists it"):
        found.append(pairs.Pair(
            file.stem, file, path, read_mask=functools.partial(
                rasterize, height, width, mine)))
    if not large:
      problems.append(
          f"{path}: lists no image with more than {_MIN_PIXELS:,} pixels of "
          f"VOC's classes; {split} would be empty")
    return found

  def metadata(self):
    return {"listed": self._listed}

  def size_problems(self, sizes):
    """Of the images that are listed: `sizes` are of those large enough."""
    return self._listed_problems(self.info.metadata["listed"], self.name)

  def _listed_problems(self, listed, where) -> list[str]:
    if self.allow_partial:
      return []
    return [f"{where}: lists {size:,} of {part}'s {LISTED[part]:,} images; get "
            "it again, or set config.data.allow_partial (--allow_partial) "
            "where a part will do"
            for part, size in listed.items() if size != LISTED[part]]


def _read_annotations(path, archive):
  """[(image id, file name, height, width)], image id -> [Instance]."""
  try:
    content = json.loads(pairs.read_bytes(path))
    names = {c["id"]: _RENAMED.get(c["name"], c["name"])
             for c in content["categories"]}
    classes = {name: i for i, name in enumerate(TAXONOMY.class_names)}
    instances = collections.defaultdict(list)
    for a in content["annotations"]:
      name = names[a["category_id"]]
      if name in classes:
        instances[a["image_id"]].append(Instance(
            a["id"], classes[name], bool(a["iscrowd"]), float(a["area"]),
            a["segmentation"]))
    return [(image["id"], str(image["file_name"]), int(image["height"]),
             int(image["width"])) for image in content["images"]], instances
  except (ValueError, LookupError, TypeError, AttributeError) as error:
    raise DataError(f"{path}: not COCO's instance annotations ({error!r}); "
                    f"unpack {archive} again") from error


def rasterize(height: int, width: int, instances: list[Instance],
              path=None) -> bytes:
  """An index PNG of the instances, whatever their order.

  Args:
    height: of the image.
    width: likewise.
    instances: of the image.
    path: the annotations' file, for messages.

  Raises:
    DataError: pycocotools is not installed, or a shape is not COCO's.
  """
  label = np.zeros((height, width), np.uint8)
  crowds, several = np.zeros((2, height, width), bool)
  for instance in instances:
    try:
      inside = _draw(instance.shape, height, width)
    except DataError:
      raise
    except Exception as error:  # Whatever the shape makes pycocotools raise.
      raise DataError(f"{path}: annotation {instance.number} has no usable "
                      f"segmentation ({error!r})") from error
    if instance.is_crowd:
      crowds |= inside
      continue
    several |= inside & (label != 0) & (label != instance.class_id)
    label[inside] = instance.class_id
  label[several | crowds & (label == 0)] = IGNORE_LABEL
  return decode.encode_mask(label)


def _draw(shape, height: int, width: int) -> np.ndarray:
  """(H, W) bool."""
  coco_mask = _pycocotools()
  if isinstance(shape, list):  # Polygons.
    shape = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
  else:
    counts, size = shape["counts"], list(shape["size"])
    if size != [height, width]:
      raise ValueError(f"runs of {size}, not of {[height, width]}")
    if isinstance(counts, list):
      # Of fewer, pycocotools leaves the rest as it finds the memory.
      if sum(counts) != height * width:
        raise ValueError(f"runs of {sum(counts)} pixels")
      shape = coco_mask.frPyObjects(shape, height, width)
  return coco_mask.decode(shape).astype(bool)


def _pycocotools():
  try:
    from pycocotools import mask
  except ImportError:
    raise DataError("coco_voc needs pycocotools, which draws COCO's shapes: "
                    "pip install -e '.[coco]'") from None
  return mask
