"""MS-COCO's instances in PASCAL VOC's 20 classes, to pre-train for VOC.

What the paper's last VOC row trains on first; it does not say how instances
become masks. Here: crowds are ignored, and so are pixels where instances of
two classes overlap; images count whose instances of VOC's classes, crowds left
out, cover more than 1,000 pixels together.
"""

import collections
import functools
import json
import pathlib

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
    for year in ("2017", "2014"):
      found = {}
      for split in ("train", "val"):
        images = pairs.first_folder(
            roots, f"{split}{year}", f"images/{split}{year}")
        if images:
          found[split] = self._find(roots, images, split + year, problems)
      if found:
        return found
    raise DataError(f"{roots[0]}: holds no train2017, val2017, train2014 or "
                    "val2014; set config.data.manual_dir to the folder where "
                    "COCO's archives are unpacked")

  def _find(self, roots, images, part, problems):
    folder = pairs.first_folder(roots, "annotations")
    path = (folder or pathlib.Path(roots[0], "annotations")) / (
        f"instances_{part}.json")
    listed, instances = _read_annotations(path)
    if len(listed) != LISTED[part] and not self.allow_partial:
      problems.append(
          f"{path}: lists {len(listed):,} of {LISTED[part]:,} images; get it "
          "again, or set config.data.allow_partial (--allow_partial) where a "
          "part will do")
    found = []
    for image in listed:
      mine = instances[image["id"]]
      area = sum(a["area"] for _, a in mine if not a["iscrowd"])
      file = images / image["file_name"]
      if area > _MIN_PIXELS and pairs.is_there(file, problems,
                                               f"{path} lists it"):
        found.append(pairs.Pair(
            file.stem, file, path, read_mask=functools.partial(
                rasterize, image["height"], image["width"], mine)))
    return found


def _read_annotations(path):
  """(images, image id -> [(class id, annotation)])."""
  try:
    content = json.loads(pairs.read_bytes(path))
    names = {c["id"]: _RENAMED.get(c["name"], c["name"])
             for c in content["categories"]}
    classes = {name: i for i, name in enumerate(TAXONOMY.class_names)}
    instances = collections.defaultdict(list)
    for annotation in content["annotations"]:
      name = names[annotation["category_id"]]
      if name in classes:
        instances[annotation["image_id"]].append((classes[name], annotation))
    return content["images"], instances
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(f"{path}: not COCO's instance annotations ({error!r}); "
                    "unpack annotations_trainval2017.zip again") from error


def rasterize(height: int, width: int, instances, path=None) -> bytes:
  """[(class id, COCO annotation)] as an index PNG.

  Raises:
    DataError: pycocotools is not installed, or a shape is not COCO's.
  """
  try:
    from pycocotools import mask as coco_mask
  except ImportError:
    raise DataError("coco_voc needs pycocotools, which draws COCO's shapes: "
                    "pip install 'psp_jax[coco]'") from None
  label = np.zeros((height, width), np.uint8)
  ignored = np.zeros((height, width), bool)
  for class_id, annotation in instances:
    try:
      shape = annotation["segmentation"]
      if isinstance(shape, list):  # Polygons.
        shape = coco_mask.merge(
            coco_mask.frPyObjects(shape, height, width))
      elif isinstance(shape["counts"], list):
        shape = coco_mask.frPyObjects(shape, height, width)
      inside = coco_mask.decode(shape).astype(bool)
    except Exception as error:  # Whatever the annotation makes it raise.
      raise DataError(f"{path}: annotation {annotation.get('id')} has no "
                      f"usable segmentation ({error!r})") from error
    if annotation["iscrowd"]:
      ignored |= inside & (label == 0)
      continue
    ignored |= inside & (label != 0) & (label != class_id)
    label[inside] = class_id
  label[ignored] = IGNORE_LABEL
  return decode.encode_mask(label)
