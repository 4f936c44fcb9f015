"""Cityscapes' labels: what the ids in its PNGs mean, and the 19 classes.

The facts are those of cityscapesscripts (helpers/labels.py and, for the
instance sizes, evaluation/evalPixelLevelSemanticLabeling.py).
"""

from typing import NamedTuple

import numpy as np

from psp_jax.data.taxonomy import IGNORE_LABEL, Taxonomy


class Label(NamedTuple):
  """One of the annotators' labels.

  Attributes:
    name: as published.
    id: what labelIds PNGs store; -1 where they never do.
    train_id: the class it trains and is predicted as, or 255 (-1 for id -1).
    category: the group that category scores are of.
    has_instances: whether instanceIds PNGs tell its objects apart.
    ignored: whether true pixels of it count in no score.
    colour: RGB.
  """
  name: str
  id: int
  train_id: int
  category: str
  has_instances: bool
  ignored: bool
  colour: tuple[int, int, int]


LABELS = tuple(Label(*row) for row in (
    ("unlabeled", 0, 255, "void", False, True, (0, 0, 0)),
    ("ego vehicle", 1, 255, "void", False, True, (0, 0, 0)),
    ("rectification border", 2, 255, "void", False, True, (0, 0, 0)),
    ("out of roi", 3, 255, "void", False, True, (0, 0, 0)),
    ("static", 4, 255, "void", False, True, (0, 0, 0)),
    ("dynamic", 5, 255, "void", False, True, (111, 74, 0)),
    ("ground", 6, 255, "void", False, True, (81, 0, 81)),
    ("road", 7, 0, "flat", False, False, (128, 64, 128)),
    ("sidewalk", 8, 1, "flat", False, False, (244, 35, 232)),
    ("parking", 9, 255, "flat", False, True, (250, 170, 160)),
    ("rail track", 10, 255, "flat", False, True, (230, 150, 140)),
    ("building", 11, 2, "construction", False, False, (70, 70, 70)),
    ("wall", 12, 3, "construction", False, False, (102, 102, 156)),
    ("fence", 13, 4, "construction", False, False, (190, 153, 153)),
    ("guard rail", 14, 255, "construction", False, True, (180, 165, 180)),
    ("bridge", 15, 255, "construction", False, True, (150, 100, 100)),
    ("tunnel", 16, 255, "construction", False, True, (150, 120, 90)),
    ("pole", 17, 5, "object", False, False, (153, 153, 153)),
    ("polegroup", 18, 255, "object", False, True, (153, 153, 153)),
    ("traffic light", 19, 6, "object", False, False, (250, 170, 30)),
    ("traffic sign", 20, 7, "object", False, False, (220, 220, 0)),
    ("vegetation", 21, 8, "nature", False, False, (107, 142, 35)),
    ("terrain", 22, 9, "nature", False, False, (152, 251, 152)),
    ("sky", 23, 10, "sky", False, False, (70, 130, 180)),
    ("person", 24, 11, "human", True, False, (220, 20, 60)),
    ("rider", 25, 12, "human", True, False, (255, 0, 0)),
    ("car", 26, 13, "vehicle", True, False, (0, 0, 142)),
    ("truck", 27, 14, "vehicle", True, False, (0, 0, 70)),
    ("bus", 28, 15, "vehicle", True, False, (0, 60, 100)),
    ("caravan", 29, 255, "vehicle", True, True, (0, 0, 90)),
    ("trailer", 30, 255, "vehicle", True, True, (0, 0, 110)),
    ("train", 31, 16, "vehicle", True, False, (0, 80, 100)),
    ("motorcycle", 32, 17, "vehicle", True, False, (0, 0, 230)),
    ("bicycle", 33, 18, "vehicle", True, False, (119, 11, 32)),
    ("license plate", -1, -1, "vehicle", False, True, (0, 0, 142)),
))

# Pixels an instance, averaged over the training set; they weigh iIoU.
AVERAGE_INSTANCE_SIZES = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "caravan": 36771.8241758242,
    "trailer": 16926.9763313609,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}

# The 19 classes by train id, and all labels by stored id (0 to 33).
CLASSES = tuple(label for label in LABELS if not label.ignored)
STORED = LABELS[:-1]

_LABEL_MAP = np.full(256, -1, np.int16)
_LABEL_MAP[:len(STORED)] = [label.train_id for label in STORED]
_LABEL_MAP[IGNORE_LABEL] = IGNORE_LABEL

TAXONOMY = Taxonomy(
    class_names=tuple(label.name for label in CLASSES),
    palette=np.array([label.colour for label in CLASSES], np.uint8),
    label_map=_LABEL_MAP, palette_png=False)
