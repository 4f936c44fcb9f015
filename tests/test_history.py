"""Validations are remembered as long as their steps are."""

import math

import pytest

from psp_jax import history, metrics


def scores(miou):
  return metrics.Scores(*[
      {"miou": miou, "per_class_iou": [miou], "per_class_accuracy": [miou]}
      .get(f, 0.5) for f in metrics.Scores.__dataclass_fields__])


def test_it_is_read_again_up_to_the_step_that_is_restored(tmp_path):
  h = history.History(tmp_path, 0)
  assert h.best_step() is None
  for step, miou in ((5, 0.1), (10, 0.3), (15, math.nan), (20, 0.4),
                     (25, 0.4)):
    h.add(step, scores(miou))
  assert h.best_step() == 20
  assert history.History(tmp_path, 25).best_step() == 20
  again = history.History(tmp_path, 19)
  assert again.best_step() == 10
  again.add(20, scores(0.2))
  text = (tmp_path / "validation.jsonl").read_text()
  assert len(text.splitlines()) == 4 and "NaN" not in text
  assert history.History(tmp_path, 30).best_step() == 10


@pytest.mark.parametrize("content", ["", "{", "[]", "7", '{"step": 1}',
                                     '{"step": "1", "miou": 0.1}', "\0"])
def test_what_is_not_ours_is_no_history(tmp_path, content):
  (tmp_path / "validation.jsonl").write_text(content)
  assert history.History(tmp_path, 9).best_step() is None
