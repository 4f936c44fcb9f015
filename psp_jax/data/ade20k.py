"""ADE20K scene parsing (ADEChallengeData2016): 150 classes, 0 unlabelled.

Not TFDS's `scene_parse150`, which holds the instance challenge's annotations.
"""

from psp_jax.data import pairs
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

URL = ("http://data.csail.mit.edu/places/ADEchallenge/"
       "ADEChallengeData2016.zip")


class Ade20k(PairsBuilder):
  """images/ and annotations/, each with training/ and validation/.

  A split whose image folder is absent is left out: a sample of the dataset
  is a dataset.
  """
  TAXONOMY = TAXONOMY
  IMAGE_ENCODING = "jpeg"

  def locate(self, dl_manager):
    if self.manual_dir is None:
      raise DataError(f"ADE20K is not downloaded for you: get {URL}, unpack "
                      "it, then --config.data.manual_dir=ADEChallengeData2016")
    return self.manual_dir

  def find_pairs(self, root):
    folders = {"train": "training", "val": "validation"}
    found = {split: pairs.list_pairs(root / "images" / folder,
                                     root / "annotations" / folder)
             for split, folder in folders.items()
             if (root / "images" / folder).is_dir()}
    if not found:
      raise DataError(f"{root}: holds neither images/training nor "
                      "images/validation; set config.data.manual_dir to the "
                      "folder ADEChallengeData2016")
    return found
