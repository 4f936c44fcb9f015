"""Checkpoints come back bit for bit, and only into their own architecture."""

import jax
import numpy as np
import pytest

from psp_jax import train_step
from psp_jax.checkpoint import Checkpoints
from psp_jax.errors import CheckpointError
from psp_jax.models import create_model


def _state(config, seed=0):
  """A state of random numbers: zeros would hide a mixed up restore."""
  model = create_model(config)
  shapes = jax.eval_shape(lambda: train_step.create_train_state(model, config))
  rng = np.random.default_rng(seed)
  state = jax.tree.map(
      lambda s: jax.numpy.asarray(rng.normal(size=s.shape), s.dtype), shapes)
  return state.replace(step=jax.numpy.int32(seed))


def test_round_trip_is_bit_identical(tiny_config, tmp_path):
  first, second = _state(tiny_config, 3), _state(tiny_config, 5)
  checkpoints = Checkpoints(tmp_path, keep=2)
  checkpoints.save(first)
  checkpoints.save(second)
  checkpoints.close()

  for step, expected in ((None, second), (3, first)):
    restored = Checkpoints.existing(tmp_path).restore(first, step)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)


def test_keeps_the_last(tiny_config, tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  for step in (1, 2, 3):
    checkpoints.save(_state(tiny_config, step))
  checkpoints.close()
  names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert {"2", "3"} <= names and "1" not in names


def test_another_architecture_is_refused_and_named(tiny_config, tmp_path):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(_state(tiny_config, 1))
  checkpoints.close()
  tiny_config.model.pyramid.bins = (1, 2)
  with pytest.raises(CheckpointError) as error:
    Checkpoints.existing(tmp_path).restore(_state(tiny_config))
  text = str(error.value)
  assert "another architecture" in text and "config.json" in text
  assert ("params/pyramid/bin1/conv/kernel: (1, 1, 32, 8) in the checkpoint, "
          "(1, 1, 32, 16) in the model") in text
  assert ("params/pyramid/bin3/bn/bias: (8,) in the checkpoint, absent in the "
          "model") in text
  assert "backbone" not in text  # Which is the same.


def test_absent_checkpoints_are_errors_and_make_no_folder(
    tiny_config, tmp_path):
  with pytest.raises(CheckpointError, match="no run with checkpoints"):
    Checkpoints.existing(tmp_path / "nothing")
  assert not (tmp_path / "nothing").exists()

  checkpoints = Checkpoints(tmp_path)
  state = _state(tiny_config, 1)
  with pytest.raises(CheckpointError, match="it has none"):
    checkpoints.restore(state)
  checkpoints.save(state)
  checkpoints.close()
  with pytest.raises(CheckpointError, match=r"of step 7; it has steps \[1\]"):
    Checkpoints.existing(tmp_path).restore(state, 7)
