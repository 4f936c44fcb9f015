"""What the numbers in each dataset's masks mean, value by value."""

import numpy as np
import pytest

from psp_jax import default_config
from psp_jax.data import ade20k, camvid, datasets, scenes, taxonomy

NAMES = ("ade20k", "camvid", "scenes")


def known(name):
  c = default_config.get_config()
  c.data.name = name
  return datasets.taxonomy(c)


def expected_meaning(name, value):
  """Class id, 255 for ignored, -1 for never, as the datasets say."""
  if name == "ade20k":
    return 255 if value in (0, 255) else value - 1 if value <= 150 else -1
  if name == "camvid":
    return value if value <= 10 else 255 if value in (11, 255) else -1
  return value if value < 12 else 255 if value == 255 else -1


@pytest.mark.parametrize("name", NAMES)
def test_every_stored_value(name):
  label_map = known(name).label_map
  assert label_map.shape == (256,)
  assert [expected_meaning(name, value) for value in range(256)] == (
      label_map.tolist())


@pytest.mark.parametrize(
    ("name", "count"), [("ade20k", 150), ("camvid", 11), ("scenes", 12)])
def test_names_and_colours_are_counted_and_unique(name, count):
  t = known(name)
  assert t.num_classes == len(t.class_names) == len(set(t.class_names)) == count
  assert all(n == n.strip() and n for n in t.class_names)
  assert t.palette.shape == (count, 3) and t.palette.dtype == np.uint8
  assert len(np.unique(t.palette, axis=0)) == count
  assert (t.palette.max(-1) > 0).all()  # Black means ignored.


def test_the_names_in_order():
  assert camvid.TAXONOMY.class_names == (
      "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence",
      "car", "pedestrian", "bicyclist")
  ade = ade20k.TAXONOMY.class_names
  for index, name in {0: "wall", 1: "building", 2: "sky", 3: "floor",
                      12: "person", 20: "car", 76: "boat", 80: "bus",
                      127: "bicycle", 148: "clock", 149: "flag"}.items():
    assert ade[index] == name
  assert scenes.TAXONOMY.class_names[:2] == ("sky", "mountain")


def test_ade20ks_names_are_those_of_its_own_list(shared):
  lines = (shared / "data/ade20k_sample/ADEChallengeData2016"
           / "objectInfo150.txt").read_text().splitlines()[1:]
  listed = [line.split("\t")[-1].split(",")[0].strip() for line in lines]
  assert list(ade20k.TAXONOMY.class_names) == listed


@pytest.mark.parametrize(("index", "colour"), [
    (0, (0, 0, 0)), (1, (128, 0, 0)), (2, (0, 128, 0)), (3, (128, 128, 0)),
    (4, (0, 0, 128)), (5, (128, 0, 128)), (6, (0, 128, 128)),
    (7, (128, 128, 128)), (8, (64, 0, 0)), (9, (192, 0, 0)),
    (10, (64, 128, 0)), (11, (192, 128, 0)), (12, (64, 0, 128)),
    (13, (192, 0, 128)), (14, (64, 128, 128)), (15, (192, 128, 128)),
    (16, (0, 64, 0)), (17, (128, 64, 0)), (18, (0, 192, 0)),
    (19, (128, 192, 0)), (20, (0, 64, 128)), (255, (224, 224, 192))])
def test_the_palette_of_voc(index, colour):
  palette = taxonomy.voc_palette(256)
  assert tuple(palette[index]) == colour
  assert len(np.unique(palette, axis=0)) == 256


@pytest.mark.parametrize(
    ("first", "count", "ignored", "values"),
    [(0, 3, (), {0: 0, 2: 2, 3: -1, 254: -1, 255: 255}),
     (1, 2, (0,), {0: 255, 1: 0, 2: 1, 3: -1, 255: 255}),
     (5, 1, (9, 10), {4: -1, 5: 0, 6: -1, 9: 255, 10: 255, 255: 255}),
     (0, 2, (1,), {0: 0, 1: 255, 2: -1})])
def test_a_label_map_of_ones_own(first, count, ignored, values):
  label_map = taxonomy.make_label_map(first, count, ignored)
  assert {v: label_map[v] for v in values} == values
