"""The rendered scenes: does context, and only far context, name the objects?"""

import functools

import numpy as np
import pytest

from psp_jax.data import scene_renderer as scenes

SEEDS = range(60)
STRIP = (scenes.WATER, scenes.ROAD)
CONTEXTUAL = (scenes.BOAT, scenes.CAR, scenes.BUILDING, scenes.SKYSCRAPER)
HARBOUR_ONLY = (scenes.WATER, scenes.BOAT, scenes.BUILDING)
CITY_ONLY = (scenes.ROAD, scenes.CAR, scenes.SKYSCRAPER)
TO_CITY = dict(zip(HARBOUR_ONLY, CITY_ONLY, strict=True))


@functools.cache
def rendered(seed, kind=None):
  return scenes.render(seed, kind)


def test_names_and_colours_match_the_indices():
  assert len(scenes.CLASS_NAMES) == 12
  assert scenes.CLASS_NAMES.index("water") == scenes.WATER
  assert scenes.CLASS_NAMES.index("skyscraper") == scenes.SKYSCRAPER
  assert scenes.CLASS_NAMES.index("lamp") == scenes.LAMP
  assert scenes.PALETTE.shape == (12, 3)
  assert scenes.PALETTE.dtype == np.uint8
  assert len(np.unique(scenes.PALETTE, axis=0)) == 12


@pytest.mark.parametrize("kind", scenes.KINDS)
@pytest.mark.parametrize("size", [96, 192, 256])
def test_shapes_types_and_range(kind, size):
  image, label = scenes.render((3, 1), kind, size)
  assert image.shape == (size, size, 3)
  assert label.shape == (size, size)
  assert image.dtype == label.dtype == np.uint8
  assert label.max() < len(scenes.CLASS_NAMES)
  assert image.std() > 20


def test_equal_seeds_give_equal_scenes_and_others_do_not():
  for seed in (0, 7, (4, 2)):
    for first, again in zip(
      scenes.render(seed), scenes.render(seed), strict=True
    ):
      np.testing.assert_array_equal(first, again)
  assert (rendered(0)[0] != rendered(1)[0]).mean() > 0.5


def test_the_kind_that_the_seed_draws_is_the_one_that_can_be_asked_for():
  for seed in SEEDS[:10]:
    image, label = rendered(seed)
    kind = "harbour" if (label == scenes.WATER).any() else "city"
    np.testing.assert_array_equal(image, rendered(seed, kind)[0])
    np.testing.assert_array_equal(label, rendered(seed, kind)[1])


def test_an_unknown_kind_is_refused():
  with pytest.raises(ValueError, match="desert"):
    scenes.render(0, "desert")


def test_kinds_share_every_pixel_outside_the_strip():
  for seed in SEEDS:
    harbour, label = rendered(seed, "harbour")
    city, _ = rendered(seed, "city")
    strip = label == scenes.WATER
    np.testing.assert_array_equal(harbour[~strip], city[~strip])
    assert (harbour[strip] != city[strip]).any(1).mean() > 0.9


def test_kinds_differ_in_three_names_only():
  for seed in SEEDS:
    harbour, city = rendered(seed, "harbour")[1], rendered(seed, "city")[1]
    expected = harbour.copy()
    for before, after in TO_CITY.items():
      expected[harbour == before] = after
    np.testing.assert_array_equal(city, expected)
    assert not np.isin(harbour, CITY_ONLY).any()


def test_contextual_objects_are_far_from_the_strip():
  for seed in SEEDS:
    _, label = rendered(seed)
    strip = np.flatnonzero(np.isin(label, STRIP).any(1))
    objects = np.flatnonzero(np.isin(label, CONTEXTUAL).any(1))
    assert strip.max() <= scenes.STRIP_FLOOR
    assert objects.min() >= strip.max() + scenes.CONTEXT_GAP
    assert objects.min() >= scenes.STRIP_FLOOR + scenes.CONTEXT_GAP


def test_the_strip_spans_the_picture():
  for seed in SEEDS:
    strip = np.isin(rendered(seed)[1], STRIP)
    assert strip.any(0).mean() > 0.9
    assert 17 <= strip.sum(0).max() <= 28


def test_both_kinds_are_equally_likely():
  # A scene of 24 pixels takes a fraction of the time and draws the same kind.
  labels = [scenes.render((1, seed), size=24)[1] for seed in range(200)]
  harbours = np.mean([(label == scenes.WATER).any() for label in labels])
  cities = np.mean([(label == scenes.ROAD).any() for label in labels])
  assert harbours + cities == 1
  assert 0.4 < harbours < 0.6


@pytest.mark.parametrize(
  ("kind", "absent"), [("harbour", CITY_ONLY), ("city", HARBOUR_ONLY)]
)
def test_nearly_every_scene_shows_every_class(kind, absent):
  counts = [
    np.bincount(rendered(seed, kind)[1].ravel(), minlength=12) for seed in SEEDS
  ]
  shown = (np.array(counts) >= 20).mean(0)
  present = [c for c in range(12) if c not in absent]
  assert (shown[present] > 0.9).all()
  assert (shown[list(absent)] == 0).all()


def test_scenes_vary():
  labels = np.stack([rendered(seed, "city")[1] for seed in SEEDS])
  share = np.mean(np.isin(labels, CONTEXTUAL), axis=0)
  assert share.max() < 0.9  # no place always holds an object
  mean_colour = [rendered(seed)[0].mean((0, 1)) for seed in SEEDS]
  assert np.std(mean_colour, axis=0).min() > 5
