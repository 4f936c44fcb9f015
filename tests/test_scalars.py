"""TensorBoard events: written in a thread, errors not lost."""

import clu.metric_writers
import pytest

from psp_jax import scalars
from psp_jax.errors import StorageError


class _Writer:
  def __init__(self, fail=False):
    self.fail, self.written, self.closed = fail, [], False

  def write_scalars(self, step, values):
    if self.fail:
      raise OSError("no room")
    self.written.append((step, values))

  def close(self):
    self.closed = True


def test_all_is_written_in_order(monkeypatch, tmp_path):
  fake, made = _Writer(), []
  monkeypatch.setattr(clu.metric_writers, "create_default_writer",
                      lambda *args, **_: made.append(args) or fake)
  writer = scalars.ScalarWriter(tmp_path)
  assert not made  # Nothing before the first scalars.
  for step in range(5):
    writer.write_scalars(step, {"loss": step / 2})
  writer.close()
  assert made == [(str(tmp_path),)]
  assert fake.written == [(s, {"loss": s / 2}) for s in range(5)]
  assert fake.closed


def test_what_goes_wrong_is_raised(monkeypatch, tmp_path):
  monkeypatch.setattr(clu.metric_writers, "create_default_writer",
                      lambda *_, **__: _Writer(fail=True))
  writer = scalars.ScalarWriter(tmp_path)
  writer.write_scalars(1, {"loss": 1.0})
  with pytest.raises(StorageError, match="written .no room"):
    writer.close()


def test_nothing_written_is_no_file(tmp_path):
  scalars.ScalarWriter(tmp_path).close()
  assert not list(tmp_path.iterdir())
