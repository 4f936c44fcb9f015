"""Several processes as one program: JAX's own distributed runtime."""

import contextlib
import glob
import importlib.util
import os
import sys
from typing import Any

from psp_jax.errors import ConfigError

# Set by hand, or by a launcher that JAX does not know.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize(stop, peer_timeout_seconds: int) -> None:
  """Joins the other processes of this run, if there are any.

  They are found by the three variables, or as JAX finds them on Cloud TPUs,
  Slurm and Open MPI; else this process is the only one.

  Args:
    stop: a `stopping.Stop`, which then leaves SIGTERM to the runtime.
    peer_timeout_seconds: after which a silent process ends all others.

  Raises:
    ConfigError: some of the variables are set, but not all, or not rightly.
  """
  options: dict[str, Any] = dict(
      heartbeat_timeout_seconds=peer_timeout_seconds,
      shutdown_timeout_seconds=peer_timeout_seconds)
  given: dict[str, Any] = {name: os.environ.get(name) for name in _VARIABLES}
  if any(given.values()):
    try:
      options |= dict(
          coordinator_address=given[_VARIABLES[0]].strip(),
          num_processes=int(given[_VARIABLES[1]]),
          process_id=int(given[_VARIABLES[2]]))
    except (AttributeError, TypeError, ValueError) as error:
      shown = ", ".join(f"{k}={v}" for k, v in given.items())
      raise ConfigError(f"{shown}: set all three, as host:port and two "
                        "numbers, or none") from error
  elif not _on_a_cluster():
    return
  import jax  # Late: a mistake in a flag is told without it.
  from jax.experimental import multihost_utils
  stop.share()
  jax.distributed.initialize(**options)
  if jax.default_backend() == "cpu":
    _wake_without_preempting()
  # While all have just met: CPUs wait half a minute for a first message, which
  # else is that of the first step, and compiling takes some longer than others.
  multihost_utils.sync_global_devices("start")


def _wake_without_preempting() -> None:
  """Linux's scheduling policy for batch jobs, for all threads there are.

  Gloo's thread is woken by a message while the one that is sending holds the
  connection's lock. By the usual policy it may take over the core, and asks for
  the lock again and again until its slice of time is over: 4 ms for a message
  where a process has one core, 0.16 ms by this policy (docs/scale.md).
  """
  if not hasattr(os, "sched_setscheduler"):
    return  # Another system.
  for thread in map(int, os.listdir("/proc/self/task")):
    with contextlib.suppress(OSError):  # It has ended, or it may not.
      if os.sched_getscheduler(thread) == os.SCHED_OTHER:  # None was chosen.
        os.sched_setscheduler(thread, os.SCHED_BATCH, os.sched_param(0))


def are_several() -> bool:
  """Whether other processes may wait for this one."""
  jax = sys.modules.get("jax")
  return jax is not None and jax.process_count() > 1


def part() -> None:
  """Waits until all processes of this run are about to leave."""
  if are_several():
    sys.modules["jax"].distributed.shutdown()


def _on_a_cluster() -> bool:
  """Where `jax.distributed.initialize` finds out by itself."""
  if int(os.environ.get("SLURM_NTASKS") or 1) > 1:
    return "SLURM_PROCID" in os.environ  # Started by srun.
  if "OMPI_MCA_orte_hnp_uri" in os.environ:
    return True
  if os.environ.get("JAX_PLATFORMS", "tpu").startswith("cpu"):
    return False
  # On a TPU machine even one process gains: preemption notices reach it.
  return importlib.util.find_spec("libtpu") is not None and any(
      glob.glob(pattern) for pattern in ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
  )
