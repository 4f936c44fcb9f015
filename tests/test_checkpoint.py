"""Checkpoints come back bit for bit, and only into their own architecture."""

import shutil

import jax
import numpy as np
import pytest

from psp_jax import checkpoint, sharding, train_step
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


# ---- Damage.


@pytest.fixture
def two(tiny_config, tmp_path):
  """(workdir, state) with checkpoints of the steps 1 and 2."""
  state = _state(tiny_config, 1)
  checkpoints = Checkpoints(tmp_path / "run")
  checkpoints.save(state)
  checkpoints.save(_state(tiny_config, 2))
  checkpoints.close()
  return tmp_path / "run", state


def _chunk(folder):
  """The file with most of the arrays' bytes."""
  return max((p for p in (folder / "state").rglob("*") if p.is_file()),
             key=lambda p: p.stat().st_size)


def _truncate(folder):
  chunk = _chunk(folder)
  chunk.write_bytes(chunk.read_bytes()[:chunk.stat().st_size // 2])


def _flip(folder):
  chunk = _chunk(folder)
  content = bytearray(chunk.read_bytes())
  content[len(content) // 3] ^= 1
  chunk.write_bytes(content)


def _unfinished(folder):
  shutil.rmtree(folder)
  (folder / "state").mkdir(parents=True)


@pytest.mark.parametrize(("damage", "words"), [
    (_truncate, "it cannot be read"),
    (_flip, "not the values that were saved: "),
    (lambda folder: shutil.rmtree(folder / "state"), '"state" was not found'),
    (lambda folder: shutil.rmtree(folder / "digests"),
     "its digests cannot be read"),
    (lambda folder: (folder / "state" / "_METADATA").unlink(),
     "it cannot be read"),
    (_unfinished, "its digests cannot be read"),
], ids=["truncated", "flipped", "no state", "no digests", "no metadata",
        "unfinished"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken(
    two, damage, words, capsys):
  workdir, first = two
  damage(workdir / "checkpoints" / "2")
  # Who only reads changes nothing.
  restored = Checkpoints.existing(workdir).restore(first)
  assert int(restored.step) == 1
  said = capsys.readouterr().err
  assert f"{workdir / 'checkpoints' / '2'} is damaged" in said
  assert words in said
  assert (workdir / "checkpoints" / "2").exists()
  with pytest.raises(CheckpointError, match="of step 2 is damaged"):
    Checkpoints.existing(workdir).restore(first, 2)

  checkpoints = Checkpoints(workdir)
  restored = checkpoints.restore(first, repair=True)
  jax.tree.map(np.testing.assert_array_equal, restored, first)
  assert (workdir / "damaged" / "2").exists() and checkpoints.steps() == [1]
  checkpoints.save(first.replace(step=jax.numpy.int32(2)))  # Its turn again.
  checkpoints.close()
  again = Checkpoints.existing(workdir).restore(first)
  assert int(again.step) == 2


def test_where_none_is_whole_nothing_is_begun_anew(two):
  workdir, state = two
  for step in "12":
    _truncate(workdir / "checkpoints" / step)
  with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
    Checkpoints(workdir).restore(state, repair=True)
  assert len(list((workdir / "checkpoints").iterdir())) == 2


def test_a_save_that_was_cut_off_is_no_checkpoint(two):
  workdir, state = two
  shutil.copytree(workdir / "checkpoints" / "2",
                  workdir / "checkpoints" / "3.orbax-checkpoint-tmp")
  assert Checkpoints.existing(workdir).steps() == [1, 2]
  assert int(Checkpoints.existing(workdir).restore(state).step) == 2
  Checkpoints(workdir).close()  # A run takes it away, a reader does not.
  assert not list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.parametrize(("keep", "every", "best", "expected"), [
    (2, 0, None, [5, 6]), (1, 3, None, [3, 6]), (1, 0, 2, [2, 6]),
    (None, 0, None, [1, 2, 3, 4, 5, 6]), (0, 4, 1, [1, 4]),
    (2, 2, 5, [2, 4, 5, 6])])
def test_which_checkpoints_stay(keep, every, best, expected):
  steps = [1, 2, 3, 4, 5, 6]
  stays = checkpoint.kept(steps, keep, every, best)
  assert [s for s, stay in zip(steps, stays, strict=True) if stay] == expected


def test_the_best_stays_while_it_is_the_best(tiny_config, tmp_path):
  best = [1]
  checkpoints = Checkpoints(tmp_path, 1, 0, lambda: best[0])
  for step in (1, 2, 3):
    checkpoints.save(_state(tiny_config, step))
    checkpoints.wait()
  assert checkpoints.steps() == [1, 3]
  best[0] = 3
  checkpoints.save(_state(tiny_config, 4))
  checkpoints.wait()
  assert checkpoints.steps() == [3, 4]
  checkpoints.close()


# ---- Devices.


def test_another_mesh_reads_the_same_bits_and_goes_on_alike(
    tiny_config, tmp_path):
  devices, model = jax.devices(), create_model(tiny_config)
  rng = np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
           "label": rng.integers(0, 11, (8, 32, 32), np.uint8)}

  def on(data, space):
    return sharding.create_mesh(data, space, devices[:data * space])

  def next_loss(state, mesh):
    # Of the step, whose other results are not even computed.
    loss = jax.jit(lambda state, batch: train_step.train_step(
        state, batch, model=model, config=tiny_config)[1]["loss"])
    return float(loss(
        state, jax.device_put(batch, sharding.batch_sharding(mesh))))

  state = train_step.create_train_state(
      model, tiny_config, train_step.initialize(model, tiny_config))
  state = jax.device_put(state, sharding.replicated(on(4, 1)))
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state)
  checkpoints.close()
  loss = next_loss(state, on(4, 1))
  for shape in [(1, 1), (2, 1), (2, 2)]:
    replicated = sharding.replicated(on(*shape))
    like = jax.device_put(_state(tiny_config, 9), replicated)
    restored = Checkpoints.existing(tmp_path).restore(like)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert all(x.sharding == replicated for x in jax.tree.leaves(restored))
    assert abs(next_loss(restored, on(*shape)) - loss) <= 1e-4 * loss, shape
