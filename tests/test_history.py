"""Steps and validations are remembered as long as their checkpoints are."""

import json
import math

import pytest

from psp_jax import history, metrics
from psp_jax.errors import StorageError


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


def metrics_of(step):
  return {"loss": 1 / step, "pixel_accuracy": 1 - 1 / 3**step,
          "learning_rate": 0.1 / step, "grad_norm": 7.0}


def test_logged_steps_end_as_if_nothing_had_disturbed_the_run(tmp_path):
  straight, cut = tmp_path / "straight", tmp_path / "cut"
  for folder in (straight, cut):
    folder.mkdir()
    h = history.History(folder, 0)
    for step in (1, 10, 20, 30):
      h.add_step(step, metrics_of(step))
  with open(cut / "training.jsonl", "a") as file:
    file.write('{"step": 40, "lo')  # Killed while it wrote.
  again = history.History(cut, 15)  # The last checkpoint.
  assert [e["step"] for e in history.curves(cut)[0]] == [1, 10]
  for step in (20, 30):
    again.add_step(step, metrics_of(step))
  text = (cut / "training.jsonl").read_text()
  assert text == (straight / "training.jsonl").read_text()
  assert json.loads(text.splitlines()[1]) == {
      "step": 10, "loss": 0.1, "pixel_accuracy": 1 - 1 / 3**10,
      "learning_rate": 0.1 / 10}  # To the last bit.


def test_json_has_no_nan_and_curves_have_both_files(tmp_path):
  assert history.curves(tmp_path) == ([], [])
  h = history.History(tmp_path, 0)
  assert not list(tmp_path.iterdir())
  h.add_step(3, metrics_of(3) | {"loss": math.inf})
  h.add(5, scores(0.25))
  training, validation = history.curves(tmp_path)
  assert training[0]["loss"] is None and validation[0]["miou"] == 0.25
  assert "Inf" not in (tmp_path / "training.jsonl").read_text()


def test_a_file_that_cannot_be_written_is_named(tmp_path):
  h = history.History(tmp_path, 0)
  (tmp_path / "training.jsonl").mkdir()
  with pytest.raises(StorageError, match="training.jsonl: cannot be written"):
    h.add_step(1, metrics_of(1))
