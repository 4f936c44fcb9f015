"""A trace of the steps that were asked for."""

import jax
import jax.numpy as jnp
import pytest
from board import traced_steps

from psp_jax import profiling
from psp_jax.errors import ConfigError


@pytest.mark.parametrize("text, steps", [
    ("", None), ("10:13", (10, 13)), ("1:1", (1, 1)), ("20:20", (20, 20))])
def test_steps_are_a_range(text, steps):
  assert profiling.parse(text, 20) == steps


@pytest.mark.parametrize("text, words", [
    ("10", "FIRST:LAST"), ("10-13", "FIRST:LAST"), ("10:13:2", "FIRST:LAST"),
    (":13", "FIRST:LAST"), ("a:b", "FIRST:LAST"), (" 1:2", "FIRST:LAST"),
    ("0:3", "1 to config.num_train_steps=20"), ("13:10", "no later"),
    ("19:21", "num_train_steps=20")])
def test_what_is_no_range_is_told(text, words):
  with pytest.raises(ConfigError, match=words) as error:
    profiling.parse(text, 20)
  assert f"config.profile={text!r}" in str(error.value)


def _run(profile, steps, fail_at=None):
  double = jax.jit(lambda x: 2 * x)
  for step in steps:
    with profile.step(step):
      result = double(jnp.ones(3))
    if step == fail_at:
      raise KeyError
    profile.started(step, result)


def test_the_trace_holds_those_steps_and_no_other(tmp_path):
  _run(profiling.Profile((3, 5), tmp_path), range(1, 9))
  assert sorted(traced_steps(tmp_path)) == [3, 4, 5]


def test_a_start_after_the_first_traces_what_is_left(tmp_path):
  _run(profiling.Profile((3, 5), tmp_path), range(5, 9))
  assert sorted(traced_steps(tmp_path)) == [5]


@pytest.mark.parametrize("steps", [None, (3, 5)])
def test_none_is_written_without_its_steps(tmp_path, steps):
  profile = profiling.Profile(steps, tmp_path)
  _run(profile, range(6, 9))
  profile.close()
  assert not list(tmp_path.iterdir())


def test_a_run_that_ends_within_leaves_what_there_is(tmp_path):
  profile = profiling.Profile((2, 5), tmp_path)
  with pytest.raises(KeyError):
    _run(profile, range(1, 9), fail_at=3)
  profile.close()
  assert sorted(traced_steps(tmp_path)) == [2, 3]
  profile.close()  # Once is enough.


def test_other_processes_trace_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  _run(profiling.Profile((3, 5), tmp_path), range(1, 9))
  assert not list(tmp_path.iterdir())
