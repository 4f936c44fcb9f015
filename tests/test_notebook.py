"""The Colab notebook, run from its first cell to its last."""

import base64
import os
import pathlib

import cv2
import nbformat
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
_FLAGS = ("--config.model.depth=10 --config.model.width_multiplier=0.0625 "
          "--config.data.crop_size=33 --config.global_batch_size=2 "
          "--config.model.auxiliary=False --config.model.pyramid.bins=(1,) "
          "--config.validation.every_steps=0 --config.eval.num_images=2")


def pictures(cell) -> list[np.ndarray]:
  """What a cell's outputs show."""
  found = []
  for output in cell.get("outputs", []):
    forms = output.get("data", {})  # Of one picture, there may be several.
    content = forms.get("image/png") or forms.get("image/jpeg")
    if content:
      data = np.frombuffer(base64.b64decode(content), np.uint8)
      found.append(cv2.imdecode(data, cv2.IMREAD_COLOR))
  return found


def test_it_is_committed_without_outputs():
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbformat.validate(notebook)
  for cell in notebook.cells:
    assert not cell.get("outputs") and cell.get("execution_count") is None
  assert "parameters" in notebook.cells[1].metadata.tags


def test_it_runs_and_shows_pictures(tmp_path, data_dir, monkeypatch):
  nbclient = pytest.importorskip("nbclient", reason="needs the extra [test]")
  (tmp_path / "configs").symlink_to(ROOT / "configs")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  monkeypatch.setenv("PSP_JAX_NOTEBOOK_STEPS", "2")
  monkeypatch.setenv("PSP_JAX_NOTEBOOK_FLAGS", _FLAGS)
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  assert os.environ["JAX_PLATFORMS"] == "cpu"

  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbclient.NotebookClient(
      notebook, timeout=900, kernel_name="python3",
      resources={"metadata": {"path": str(tmp_path)}}).execute()

  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  shown = {i: pictures(cell) for i, cell in enumerate(code)}
  assert [i for i, found in shown.items() if found] == [4, 5, 7, 10]
  assert len(shown[5]) == 3 and len(shown[10]) == 4
  for found in shown.values():
    for picture in found:
      assert picture.std() > 5  # Not one colour.

  # The drawn folder has its own classes, and the run that started from
  # `scenes` answers with them.
  classes = (tmp_path / "runs/labelled/classes.csv").read_text()
  assert [line.split(",")[1] for line in classes.splitlines()[1:]] == [
      "sky", "land", "way", "thing"]
  labels = cv2.imread(str(tmp_path / "runs/labelled/labels/000.png"),
                      cv2.IMREAD_UNCHANGED)
  assert labels.shape == (192, 192) and labels.max() < 4
