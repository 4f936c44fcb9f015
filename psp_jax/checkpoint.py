"""Checkpoints of the train state, through Orbax.

Only this module knows Orbax, whose API still moves.
"""

import pathlib

import jax
import orbax.checkpoint as ocp

from psp_jax.errors import CheckpointError


class Checkpoints:
  """The checkpoints in `workdir`/checkpoints; saves run in the background."""

  def __init__(self, workdir, keep: int | None = None):
    self._path = pathlib.Path(workdir).absolute() / "checkpoints"
    self._manager = ocp.CheckpointManager(
        self._path, options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        item_handlers=ocp.StandardCheckpointHandler())

  @classmethod
  def existing(cls, workdir) -> "Checkpoints":
    """Those of a run; raises CheckpointError, and makes no folder, if none."""
    if not (pathlib.Path(workdir) / "checkpoints").is_dir():
      raise CheckpointError(f"{workdir}: no run with checkpoints here; train "
                            "first, or name the --workdir of a run")
    return cls(workdir)

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(self, state) -> None:
    """Starts to save `state`; a step already saved is left as it is."""
    step = int(state.step)
    if step not in self._manager.all_steps():
      self._manager.save(step, args=ocp.args.StandardSave(state))

  def restore(self, like, step: int | None = None):
    """The state of `step` (None: the last), with the sharding of `like`.

    Args:
      like: a train state, or its shapes, of the architecture expected.
      step: which.

    Raises:
      CheckpointError: there is none, or it is of another architecture.
    """
    steps = sorted(self._manager.all_steps())
    if step is None:
      step = self.latest_step()
    if step not in steps:
      has = f"it has steps {steps}" if steps else "it has none"
      wanted = "" if step is None else f" of step {step}"
      raise CheckpointError(f"{self._path}: no checkpoint{wanted}; {has}. "
                            "Train first, or name the --workdir of a run")
    self._check_architecture(like, step)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    return self._manager.restore(
        step, args=ocp.args.StandardRestore(abstract))

  def _check_architecture(self, like, step):
    saved = _shapes(self._manager.item_metadata(step).tree)
    ours = _shapes({"params": like.params, "batch_stats": like.batch_stats})
    saved = {k: v for k, v in saved.items() if k[0] in
             ("params", "batch_stats")}
    problems = [f"{'/'.join(k)}: {saved.get(k, 'absent')} in the checkpoint, "
                f"{ours.get(k, 'absent')} in the model"
                for k in sorted(saved.keys() | ours.keys(),
                                key=lambda k: (k[0] != "params", k))
                if saved.get(k) != ours.get(k)]
    if problems:
      shown = "\n  ".join(problems[:8])
      more = f"\n  ... and {len(problems) - 8} more" if problems[8:] else ""
      raise CheckpointError(
          f"{self._path}/{step} is a checkpoint of another architecture. Use "
          "the config it was trained with (config.json beside it), or another "
          f"--workdir:\n  {shown}{more}")

  def close(self) -> None:
    """Waits for the save under way."""
    self._manager.wait_until_finished()
    self._manager.close()


def _shapes(tree) -> dict[tuple[str, ...], tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(
      tree, is_leaf=lambda x: hasattr(x, "shape"))
  return {tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path):
          tuple(leaf.shape) for path, leaf in leaves
          if getattr(leaf, "shape", None) is not None}
