"""Real processes that share a run: they do what one does."""

import csv
import json

import numpy as np
import pytest
from runner import starting, two_processes


@pytest.fixture
def runs(tiny_flags, tmp_path):
  with starting([*tiny_flags, "--config.num_train_steps=6",
                 "--config.checkpoint.every_steps=0",
                 "--config.validation.every_steps=0", "--config.eval.split="
                 "val", "--config.eval.num_images=3"], tmp_path) as run:
    yield run


def end_of(run) -> str:
  out, _ = run.communicate(timeout=180)
  assert run.returncode == 0, run.told()
  return out


def losses(workdir):
  lines = (workdir / "training.jsonl").read_text().splitlines()
  return [json.loads(line)["loss"] for line in lines]


def confusion(workdir):
  rows = list(csv.reader((workdir / "confusion.csv").open()))
  return np.array([row[1:] for row in rows[1:]], int)


def test_two_processes_train_and_score_as_one(runs, tmp_path):
  """On two devices each, which share the rows of an image."""
  end_of(runs(f"--workdir={tmp_path / 'one'}"))
  expected = losses(tmp_path / "one")
  assert len(expected) == 6 and len(set(expected)) == 6
  both = [runs(f"--workdir={tmp_path / 'two'}", "--config.mesh.space=2",
               JAX_NUM_CPU_DEVICES="2", **environment)
          for environment in two_processes()]
  first, _ = (end_of(run) for run in both)
  assert "batch      2 on each 2 of 4 devices, 17 rows of an image" in first
  np.testing.assert_allclose(losses(tmp_path / "two"), expected, rtol=1e-4)

  # Three images by two processes, of the same checkpoint: nothing is left out
  # or counted twice.
  scored = confusion(tmp_path / "one")
  (tmp_path / "one" / "confusion.csv").unlink()
  for run in [runs(f"--workdir={tmp_path / 'one'}", "--mode=eval",
                   **environment) for environment in two_processes()]:
    end_of(run)
  np.testing.assert_array_equal(confusion(tmp_path / "one"), scored)
