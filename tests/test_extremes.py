"""The best and the worst images, beside all of them sorted."""

import numpy as np
import pytest

from psp_jax import metrics
from psp_jax.extremes import Extremes


def images(count, seed):
  """(record, confusion) of drawn images; many have equal scores."""
  rng = np.random.default_rng(seed)
  for i in range(count):
    image = np.full((4, 6, 3), i, np.uint8)
    hits = rng.integers(0, 4)
    confusion = np.array([[hits, 3 - hits], [0, 2]])
    if rng.random() < 0.1:
      confusion[:] = 0  # All is ignored: it has no score.
    yield {"image": image, "label": image[..., 0], "name": str(i)}, confusion


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7, 60])
def test_they_are_the_ends_of_the_sorted_list(count, seed):
  extremes = Extremes(3, 640)
  for record, confusion in images(count, seed):
    extremes.add(record, confusion, lambda r=record: r["label"])
  scored = [(record["name"], metrics.scores(confusion).miou)
            for record, confusion in images(count, seed)]
  ranked = sorted((s for s in scored if s[1] == s[1]), key=lambda s: -s[1])
  best = ranked[:3] if len(ranked) > 6 else ranked[:-(-len(ranked) // 2)]
  worst = [s for s in ranked[-3:] if s not in best][::-1]
  assert [(e.name, e.miou) for e in extremes.best()] == best
  assert [(e.name, e.miou) for e in extremes.worst()] == worst
  assert extremes.num_images == count
  for e in extremes.best() + extremes.worst():
    assert (e.image == int(e.name)).all() and (e.truth == e.image[..., 0]).all()


def test_only_what_is_kept_is_fetched():
  fetched = []
  extremes = Extremes(1, 640)
  for name, hits in (("best", 9), ("worst", 0), ("middling", 5), ("same", 5),
                     ("better", 10)):
    label = np.zeros((2, 2), np.uint8)
    extremes.add({"image": np.zeros((2, 2, 3), np.uint8), "label": label,
                  "name": name}, np.array([[hits, 10 - hits], [0, 0]]),
                 lambda n=name, g=label: fetched.append(n) or g)
  assert fetched == ["best", "worst", "better"]
  assert [e.name for e in extremes.best()] == ["better"]


def test_pictures_are_shrunk_and_matrices_are_not():
  image = np.zeros((100, 200, 3), np.uint8)
  label = np.tile(np.repeat(np.array([3, 7], np.uint8), 100), (100, 1))
  extremes = Extremes(1, 50)
  confusion = np.eye(8, dtype=int)
  extremes.add({"image": image, "label": label, "name": "a"}, confusion,
               lambda: label)
  example, = extremes.best()
  assert example.image.shape == (25, 50, 3)
  np.testing.assert_array_equal(example.truth[0], [3] * 25 + [7] * 25)
  np.testing.assert_array_equal(example.prediction, example.truth)
  assert example.confusion is confusion and not extremes.worst()
