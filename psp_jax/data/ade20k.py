"""ADE20K scene parsing (ADEChallengeData2016): 150 classes, 0 unlabelled.

Not TFDS's `scene_parse150`, which holds the instance challenge's annotations.
"""

import pathlib

from psp_jax.data import downloads, pairs
from psp_jax.data.builder import PairsBuilder
from psp_jax.data.taxonomy import Taxonomy, make_label_map, voc_palette
from psp_jax.errors import DataError

# First synonym of each line of objectInfo150.txt.
_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass,
    cabinet, sidewalk, person, earth, door, table, mountain, plant, curtain,
    chair, car, water, painting, sofa, shelf, house, sea, mirror, rug,
    field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
    railing, cushion, base, box, column, signboard, chest of drawers,
    counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand,
    path, stairs, runway, case, pool table, pillow, screen door, stairway,
    river, bridge, bookcase, blind, coffee table, toilet, flower, book,
    hill, bench, countertop, stove, palm, kitchen island, computer, swivel
    chair, boat, bar, arcade machine, hovel, bus, towel, light, truck,
    tower, chandelier, awning, streetlight, booth, television, airplane,
    dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle,
    buffet, poster, stage, van, ship, fountain, conveyer belt, canopy,
    washer, plaything, swimming pool, stool, barrel, basket, waterfall,
    tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
    microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier,
    crt screen, plate, monitor, bulletin board, shower, radiator, glass,
    clock, flag
"""

TAXONOMY = Taxonomy(
    class_names=tuple(" ".join(n.split()) for n in _NAMES.split(",")),
    palette=voc_palette(151)[1:],
    label_map=make_label_map(1, 150, ignored=(0,)))

ARCHIVE = downloads.Archive(
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
    "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7")

_FOLDERS = {"train": "training", "val": "validation"}


class Ade20k(PairsBuilder):
  """ADE20K scene parsing: images/ and annotations/, training/, validation/.

  14 training masks are empty.
  """
  TAXONOMY = TAXONOMY
  IMAGE_ENCODING = "jpeg"
  SPLIT_SIZES = {"train": 20_210, "val": 2_000}

  def download(self, dl_manager):
    return downloads.fetch(
        dl_manager, [ARCHIVE], "Get it by hand, unpack it, then "
        "--config.data.manual_dir=ADEChallengeData2016")

  def find_pairs(self, roots, problems):
    root = (pairs.first_folder(roots, "ADEChallengeData2016")
            or pathlib.Path(roots[0]))
    images = {split: pairs.first_folder([root / "images"], folder)
              for split, folder in _FOLDERS.items()}
    if not any(images.values()):
      raise DataError(f"{root}: holds neither images/training nor "
                      "images/validation; set config.data.manual_dir to the "
                      "folder ADEChallengeData2016")
    return {split: pairs.pair_folders(
        folder, root / "annotations" / _FOLDERS[split], problems)
        for split, folder in images.items() if folder}

  def missing_names(self, split, found):
    names = {pair.name for pair in found}
    missing = [name for i in range(1, self.SPLIT_SIZES[split] + 1)
               if (name := f"ADE_{split}_{i:08}") not in names]
    if not missing:
      return ""
    more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    return f"missing {', '.join(missing[:5])}{more}"
