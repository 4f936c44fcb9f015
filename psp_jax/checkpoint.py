"""Checkpoints of the train state, through Orbax, each with its digests.

Only this module knows Orbax, whose API still moves. A save is a folder that
gets its name when all of it is written. It holds the state and, of every array,
a SHA-256: what is read back is compared, and of a damaged checkpoint the one
before it is taken.
"""

import concurrent.futures
import contextlib
import hashlib
import logging
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from psp_jax import progress
from psp_jax.errors import CheckpointError

# That a folder is only read is what we asked for, and nothing to warn of.
logging.getLogger("absl").addFilter(
    lambda record: not str(record.msg).startswith(
        "Given directory is read only"))


class _Damaged(Exception):
  """What is wrong with a checkpoint, in words."""


class Checkpoints:
  """The checkpoints in `workdir`/checkpoints; saves run in the background."""

  def __init__(self, workdir, keep: int | None = None, keep_every: int = 0,
               best=lambda: None, read_only: bool = False):
    """Opens, and unless `read_only` makes, the folder.

    Args:
      workdir: of the run.
      keep: the last so many stay; None: all.
      keep_every: so do those of multiples of this; 0: of none.
      best: () -> a step that stays as well, or None.
      read_only: nothing is saved; another process may be at work here.
    """
    self._path = pathlib.Path(workdir).absolute() / "checkpoints"
    options = dict(
        # As it is told by Orbax otherwise, with a warning for each.
        read_only=True, save_interval_steps=0, create=False
        ) if read_only else dict(
        preservation_policy=_Policy(keep, keep_every, best))
    if not read_only and jax.process_index() == 0:
      for unfinished in self._path.glob("*.orbax-checkpoint-tmp*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    self._manager = ocp.CheckpointManager(
        self._path, options=ocp.CheckpointManagerOptions(**options),
        item_handlers={"state": ocp.StandardCheckpointHandler(),
                       "digests": ocp.JsonCheckpointHandler()})

  @classmethod
  def existing(cls, workdir) -> "Checkpoints":
    """Those of a run, to read; raises CheckpointError if there are none."""
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
      raise CheckpointError(f"{workdir}: no run with checkpoints here; train "
                            "first, or name the --workdir of a run")
    return cls(workdir, read_only=True)

  def steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def save(self, state) -> None:
    """Starts to save `state`; a step already saved is left as it is.

    Raises:
      CheckpointError: this, or the save before it, cannot be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    with self._written(step):
      self._manager.save(step, args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          digests=ocp.args.JsonSave(digests(state))))

  def restore(self, like, step: int | None = None, repair: bool = False):
    """The state of `step` (None: the last good one), sharded as `like`.

    Args:
      like: a train state, or its shapes, of the architecture expected.
      step: which.
      repair: moves damaged checkpoints to `workdir`/damaged, so that their
        steps can be saved again.

    Raises:
      CheckpointError: there is none, none is whole, or it is of another
        architecture.
    """
    steps = self.steps()
    wanted = steps[::-1] if step is None else [step]
    if not wanted or wanted[0] not in steps:
      has = f"it has steps {steps}" if steps else "it has none"
      of = "" if step is None else f" of step {step}"
      raise CheckpointError(f"{self._path}: no checkpoint{of}; {has}. "
                            "Train first, or name the --workdir of a run")
    damaged = []
    for each in wanted:
      try:
        state = self._restore(like, each)
        break
      except _Damaged as error:
        progress.say(f"warning: {self._path / str(each)} is damaged: {error}")
        damaged.append(each)
    else:
      raise CheckpointError(
          f"{self._path}: " + (f"the checkpoint of step {step} is damaged; it "
                               f"has steps {steps}" if step is not None else
                               "every checkpoint is damaged; to start anew, "
                               "use another --workdir"))
    if repair and damaged:
      self._set_aside(damaged)
    return state

  def _restore(self, like, step):
    try:
      known = dict(self._manager.restore(step, args=ocp.args.Composite(
          digests=ocp.args.JsonRestore()))["digests"])
      shapes = {name: tuple(each["shape"]) for name, each in known.items()}
    except Exception as error:  # Orbax raises whatever the disk made it meet.
      raise _Damaged(f"its digests cannot be read ({_first_line(error)})"
                     ) from error
    self._check_architecture(like, step, shapes)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      state = self._manager.restore(step, args=ocp.args.Composite(
          state=ocp.args.StandardRestore(abstract)))["state"]
    except Exception as error:
      raise _Damaged(f"it cannot be read ({_first_line(error)})") from error
    found = digests(state)
    changed = [name for name in known if found.get(name) != known[name]]
    if changed or found.keys() != known.keys():
      more = f" and {len(changed) - 3} more" if changed[3:] else ""
      raise _Damaged("not the values that were saved: "
                     f"{', '.join(changed[:3])}{more}")
    return state

  def _check_architecture(self, like, step, saved):
    ours = {name: tuple(leaf.shape) for name, leaf in _named(like)}
    saved, ours = ({k: v for k, v in shapes.items()
                    if k.startswith(("params/", "batch_stats/"))}
                   for shapes in (saved, ours))
    problems = [f"{k}: {saved.get(k, 'absent')} in the checkpoint, "
                f"{ours.get(k, 'absent')} in the model"
                for k in sorted(saved.keys() | ours.keys(), key=lambda k: (
                    not k.startswith("params/"), k))
                if saved.get(k) != ours.get(k)]
    if problems:
      shown = "\n  ".join(problems[:8])
      more = f"\n  ... and {len(problems) - 8} more" if problems[8:] else ""
      raise CheckpointError(
          f"{self._path}/{step} is a checkpoint of another architecture. Use "
          "the config it was trained with (config.json beside it), or another "
          f"--workdir:\n  {shown}{more}")

  def _set_aside(self, steps):
    folder = self._path.with_name("damaged")
    if jax.process_index() == 0:
      folder.mkdir(exist_ok=True)
      for step in steps:
        shutil.rmtree(folder / str(step), ignore_errors=True)
        (self._path / str(step)).rename(folder / str(step))
      progress.say(f"warning: moved to {folder}: "
                   f"{', '.join(map(str, steps))}")
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged checkpoints are moved")
    self._manager.reload()

  def wait(self) -> None:
    """Until the save under way is on disk.

    Raises:
      CheckpointError: it cannot be written.
    """
    with self._written():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, as `wait`, and lets go."""
    try:
      self.wait()
    finally:
      with contextlib.suppress(Exception):  # What is wrong has been told.
        self._manager.close()

  @contextlib.contextmanager
  def _written(self, step=None):
    try:
      yield
    except Exception as error:
      what = "a checkpoint" if step is None else f"a checkpoint by step {step}"
      raise CheckpointError(
          f"{self._path}: {what} could not be written ({_first_line(error)}). "
          "Those before it are untouched: make room or mend the disk, and "
          "start the same command again") from error


class _Policy:
  """Which checkpoints stay when one more has been written."""

  def __init__(self, keep, keep_every, best):
    self._keep, self._every, self._best = keep, keep_every, best

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    del context
    return kept([c.step for c in checkpoints], self._keep, self._every,
                self._best())


def kept(steps, keep: int | None, keep_every: int, best: int | None):
  """Of steps in order, whether each stays."""
  last = set(steps if keep is None else steps[-keep:] if keep else ())
  return [step in last or step == best
          or (keep_every > 0 and step % keep_every == 0) for step in steps]


def digests(tree) -> dict[str, dict]:
  """Name -> {"shape", "dtype", "sha256"} of every array, by its bytes.

  Arrays lie whole on every process.
  """
  named = _named(tree)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    found = pool.map(_digest, (leaf for _, leaf in named))
    return dict(zip((name for name, _ in named), found, strict=True))


def _digest(leaf):
  if isinstance(leaf, jax.Array):
    leaf = leaf.addressable_data(0)
  array = np.ascontiguousarray(leaf)
  return {"shape": list(np.shape(leaf)), "dtype": str(array.dtype),
          "sha256": hashlib.sha256(
              array.reshape(-1).view(np.uint8).data).hexdigest()}


def _named(tree):
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
          for path, leaf in leaves]


def _first_line(error) -> str:
  line = (str(error) or type(error).__name__).strip().splitlines()[0]
  return line[:800]  # Paths are long, and the cause comes after them.
