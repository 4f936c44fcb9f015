"""TensorBoard events: written in a thread, errors not lost, read back."""

import json
import threading
import time

import clu.metric_writers
import numpy as np
import pytest
from board import images, read, scalars, texts

from psp_jax import default_config, events, metrics
from psp_jax.errors import Stopped, StorageError


class _Writer:
  def __init__(self, fail=False):
    self.fail, self.written, self.closed = fail, [], False

  def write_scalars(self, step, values):
    if self.fail:
      raise OSError("no room")
    self.written.append((step, values))

  def flush(self):
    self.written.append("flushed")

  def close(self):
    self.closed = True


def test_all_is_written_in_order(monkeypatch, tmp_path):
  fake, made = _Writer(), []
  monkeypatch.setattr(clu.metric_writers, "create_default_writer",
                      lambda *args, **_: made.append(args) or fake)
  writer = events.EventWriter(tmp_path)
  assert not made  # Nothing before the first scalars.
  for step in range(5):
    writer.write_scalars(step, "train", {"loss": step / 2})
  writer.close()
  assert made == [(str(tmp_path),)]
  assert fake.written[::2] == [(s, {"train/loss": s / 2}) for s in range(5)]
  assert fake.written[1::2] == ["flushed"] * 5
  assert fake.closed


def test_what_goes_wrong_is_raised(monkeypatch, tmp_path):
  monkeypatch.setattr(clu.metric_writers, "create_default_writer",
                      lambda *_, **__: _Writer(fail=True))
  writer = events.EventWriter(tmp_path)
  writer.write_scalars(1, "train", {"loss": 1.0})
  with pytest.raises(StorageError, match="written .no room"):
    writer.close()


def test_nothing_written_is_no_file(tmp_path):
  events.EventWriter(tmp_path).close()
  assert not list(tmp_path.iterdir())


def test_other_processes_write_nothing(monkeypatch, tmp_path):
  monkeypatch.setattr(events.jax, "process_index", lambda: 1)
  with events.EventWriter(tmp_path) as writer:
    writer.write_scalars(1, "train", {"loss": 1.0})
    writer.write_config(1, default_config.get_config())
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("imported", [False, True])
def test_told_to_stop_it_waits_for_what_is_written_not_for_an_import(
    monkeypatch, tmp_path, imported):
  fake, import_ends = _Writer(), threading.Event()

  def create(*_, **__):
    import_ends.wait(30)
    return fake

  monkeypatch.setattr(clu.metric_writers, "create_default_writer", create)
  began = time.monotonic()
  with pytest.raises(Stopped), events.EventWriter(tmp_path) as writer:
    writer.write_scalars(1, "train", {"loss": 1.0})
    if imported:
      import_ends.set()
      while not fake.written:
        time.sleep(0.01)
      writer.write_scalars(2, "train", {"loss": 2.0})
    raise Stopped("SIGTERM")
  assert time.monotonic() - began < 15
  assert fake.closed == imported
  assert ((2, {"train/loss": 2.0}) in fake.written) == imported
  import_ends.set()


def test_tensorboard_reads_what_was_written(tmp_path):
  config = default_config.get_config()
  names = ("sky", "traffic light", "door; gate", "never seen")
  scores = metrics.scores(np.array([
      [3, 1, 0, 0], [0, 4, 0, 0], [0, 2, 2, 0], [0, 0, 0, 0]]))
  picture = np.zeros((30, 40, 3), np.uint8)
  with events.EventWriter(tmp_path) as writer:
    writer.write_config(1, config)
    writer.write_scalars(1, "train", {"loss": 2.5, "grad_norm": 0.5})
    writer.write_scalars(2, "train", {"loss": 1.5})
    writer.write_scores(2, "validation", scores, names)
    writer.write_image(2, "validation/photos", picture)
  found = read(tmp_path)
  assert scalars(found) == {
      "train/loss": {1: 2.5, 2: 1.5}, "train/grad_norm": {1: 0.5},
      "validation/miou": {2: pytest.approx((3 / 4 + 4 / 7 + 2 / 4) / 3)},
      "validation/mean_accuracy": {2: pytest.approx((3 / 4 + 1 + 1 / 2) / 3)},
      "validation/pixel_accuracy": {2: pytest.approx(9 / 12)},
      "validation/iou/sky": {2: pytest.approx(3 / 4)},
      "validation/iou/traffic light": {2: pytest.approx(4 / 7)},
      "validation/iou/door; gate": {2: pytest.approx(2 / 4)}}
  (step, text), = texts(found)["config"]
  assert step == 1 and text.startswith("```json\n") and text.endswith("\n```")
  assert json.loads(text[8:-4]) == json.loads(json.dumps(config.to_dict()))
  png = images(found)["validation/photos"][2]
  assert png.startswith(b"\x89PNG") and len(images(found)) == 1
