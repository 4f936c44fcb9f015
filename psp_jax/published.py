"""The published PSPNet scores, and what each one's recipe changes.

`paper` is Zhao et al., CVPR 2017: Tables 1 to 4 (ADE20K val) and the test
scores of sections 5.3 and 5.4. `semseg` is the README of hszhao/semseg, the
authors' PyTorch code. Data only: configs/ablations.py trains the rows and
psp_jax/tables.py prints them.
"""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Row:
  """One published score.

  Attributes:
    changes: field -> value, against psp_jax/default_config.py.
    paper: (mIoU, pixel accuracy) in percent, as printed; "" where unpublished.
    semseg: (mIoU, mean accuracy, pixel accuracy), likewise.
    split: that the figures are of.
    first_stage: what the weights were trained on after ImageNet and before
      this recipe; "" for nothing.
  """
  changes: dict[str, Any]
  paper: tuple[str, str] = ("", "")
  semseg: tuple[str, str, str] = ("", "", "")
  split: str = "val"
  first_stage: str = ""


# Images of the whole split, by (dataset, split).
NUM_IMAGES = {
    ("ade20k", "val"): 2000, ("voc2012", "val"): 1449,
    ("voc2012", "test"): 1456, ("cityscapes", "val"): 500,
    ("cityscapes", "test"): 1525}

_NO_PYRAMID = {"model.pyramid.bins": ()}
_NO_AUX = {"model.auxiliary": False}
_NO_AUGMENTATION = {
    "data.augment.scale": (1.0, 1.0), "data.augment.rotate_probability": 0.0,
    "data.augment.blur_probability": 0.0,
    "data.augment.mirror_probability": 0.0}
_MULTISCALE = {"eval.scales": (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)}


def _pyramid(bins, pool, reduce):
  return {"model.pyramid.bins": bins, "model.pyramid.pool": pool,
          "model.pyramid.reduce": reduce}


def _aux(weight):
  return _NO_PYRAMID | {"model.aux_loss_weight": weight}


def _depth(depth):
  return {"model.depth": depth}


# The paper's iterations and blur; semseg trains 50 and 200 epochs and blurs
# Cityscapes too.
_VOC = {
    "data.name": "voc2012", "data.train_split": "train_aug",
    "data.crop_size": 473, "model.num_classes": 21, "eval.base_size": 512,
    "num_train_steps": 30_000}
_CITYSCAPES = {
    "data.name": "cityscapes", "data.crop_size": 713, "model.num_classes": 19,
    "eval.base_size": 2048, "num_train_steps": 90_000,
    "data.augment.blur_probability": 0.0}
_SEMSEG_VOC = _VOC | {"num_train_steps": 33_050}
_SEMSEG_CITYSCAPES = _CITYSCAPES | {
    "num_train_steps": 37_200, "data.augment.blur_probability": 0.5}

ROWS = {
    # Table 1: the pyramid; B: bins, DR: dimension reduction.
    "table1_baseline": Row(_NO_PYRAMID, ("37.23", "78.01")),
    "table1_b1_max": Row(_pyramid((1,), "max", False), ("39.94", "79.46")),
    "table1_b1_average": Row(
        _pyramid((1,), "average", False), ("40.07", "79.52")),
    "table1_b1236_max": Row(
        _pyramid((1, 2, 3, 6), "max", False), ("40.18", "79.45")),
    "table1_b1236_average": Row(
        _pyramid((1, 2, 3, 6), "average", False), ("41.07", "79.97")),
    "table1_b1236_max_dr": Row(
        _pyramid((1, 2, 3, 6), "max", True), ("40.87", "79.61")),
    "table1_b1236_average_dr": Row(
        _pyramid((1, 2, 3, 6), "average", True), ("41.68", "80.04")),

    # Table 2: the auxiliary loss's weight, without the pyramid.
    "table2_aux_none": Row(_NO_PYRAMID | _NO_AUX, ("35.82", "77.07")),
    "table2_aux_0.3": Row(_aux(0.3), ("37.01", "77.87")),
    "table2_aux_0.4": Row(_aux(0.4), ("37.23", "78.01")),
    "table2_aux_0.6": Row(_aux(0.6), ("37.09", "77.84")),
    "table2_aux_0.9": Row(_aux(0.9), ("36.99", "77.87")),

    # Table 3: depth. semseg's are of 126,300 steps.
    "table3_resnet50": Row(
        _depth(50), ("41.68", "80.04"), ("41.89", "52.27", "80.39")),
    "table3_resnet50_multiscale": Row(
        _depth(50) | _MULTISCALE,
        ("42.78", "80.76"), ("42.84", "52.66", "81.06")),
    "table3_resnet101": Row(
        _depth(101), ("41.96", "80.64"), ("43.10", "53.75", "81.07")),
    "table3_resnet101_multiscale": Row(
        _depth(101) | _MULTISCALE,
        ("43.29", "81.39"), ("44.15", "54.26", "81.72")),
    "table3_resnet152": Row(_depth(152), ("42.62", "80.80")),
    "table3_resnet152_multiscale": Row(
        _depth(152) | _MULTISCALE, ("43.51", "81.38")),
    "table3_resnet269": Row(_depth(269), ("43.81", "80.88")),
    "table3_resnet269_multiscale": Row(
        _depth(269) | _MULTISCALE, ("44.94", "81.69")),

    # Table 4: one thing after another. DA: augmentation, AL: auxiliary loss.
    "table4_baseline": Row(
        _NO_PYRAMID | _NO_AUX | _NO_AUGMENTATION, ("34.28", "76.35")),
    "table4_da": Row(_NO_PYRAMID | _NO_AUX, ("35.82", "77.07")),
    "table4_da_al": Row(_NO_PYRAMID, ("37.23", "78.01")),
    "table4_psp": Row({}, ("41.68", "80.04")),
    "table4_269": Row(_depth(269), ("43.81", "80.88")),
    "table4_multiscale": Row(
        _depth(269) | _MULTISCALE, ("44.94", "81.69")),

    # The paper's test scores; the nets released for these are ResNet-101.
    "voc2012": Row(_VOC | _depth(101) | _MULTISCALE, ("82.6", ""),
                   split="test"),
    "voc2012_coco": Row(_VOC | _depth(101) | _MULTISCALE, ("85.4", ""),
                        split="test", first_stage="MS-COCO"),
    "cityscapes": Row(_CITYSCAPES | _depth(101) | _MULTISCALE,
                      ("78.4", ""), split="test"),
    "cityscapes_coarse": Row(
        _CITYSCAPES | _depth(101) | _MULTISCALE, ("80.2", ""),
        split="test", first_stage="fine and coarse labels together"),

    # semseg's validation scores.
    "voc2012_resnet50": Row(
        _SEMSEG_VOC | _depth(50), semseg=("77.05", "85.13", "94.89")),
    "voc2012_resnet50_multiscale": Row(
        _SEMSEG_VOC | _depth(50) | _MULTISCALE,
        semseg=("78.02", "85.80", "95.13")),
    "voc2012_resnet101": Row(
        _SEMSEG_VOC | _depth(101), semseg=("79.07", "86.36", "95.34")),
    "voc2012_resnet101_multiscale": Row(
        _SEMSEG_VOC | _depth(101) | _MULTISCALE,
        semseg=("79.63", "86.77", "95.50")),
    "cityscapes_resnet50": Row(
        _SEMSEG_CITYSCAPES | _depth(50), semseg=("77.30", "84.31", "95.97")),
    "cityscapes_resnet50_multiscale": Row(
        _SEMSEG_CITYSCAPES | _depth(50) | _MULTISCALE,
        semseg=("78.38", "84.86", "96.17")),
    "cityscapes_resnet101": Row(
        _SEMSEG_CITYSCAPES | _depth(101), semseg=("78.63", "85.77", "96.14")),
    "cityscapes_resnet101_multiscale": Row(
        _SEMSEG_CITYSCAPES | _depth(101) | _MULTISCALE,
        semseg=("79.29", "85.91", "96.38")),
}


def describe(row: Row) -> str:
  """In words: "paper mIoU 41.68 %, paper pixel accuracy 80.04 % on val"."""
  figures = zip(
      ("paper mIoU", "paper pixel accuracy", "semseg mIoU",
       "semseg mean accuracy", "semseg pixel accuracy"),
      row.paper + row.semseg)
  said = ", ".join(f"{name} {value} %" for name, value in figures if value)
  after = f", after training on {row.first_stage}" if row.first_stage else ""
  return f"{said} on {row.split}{after}"
