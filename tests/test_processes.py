"""Who are the other processes of a run, if any."""

import os
import subprocess
import sys
import types

import pytest
from runner import two_processes

from psp_jax import processes, stopping
from psp_jax.errors import ConfigError

_ALL = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "3"}


@pytest.fixture
def joined(monkeypatch):
  """What `jax.distributed.initialize` is called with."""
  calls = []
  jax = types.SimpleNamespace(distributed=types.SimpleNamespace(
      initialize=lambda **options: calls.append(options)),
      default_backend=lambda: "tpu")
  meeting = types.SimpleNamespace(sync_global_devices=calls.append)
  monkeypatch.setitem(sys.modules, "jax", jax)
  monkeypatch.setitem(sys.modules, "jax.experimental",
                      types.SimpleNamespace(multihost_utils=meeting))
  for name in (*_ALL, "SLURM_NTASKS", "SLURM_PROCID",
               "OMPI_MCA_orte_hnp_uri"):
    monkeypatch.delenv(name, raising=False)
  return calls


def test_one_process_is_by_itself(joined):
  processes.initialize(stopping.Stop(), 100)
  assert not joined


def test_the_variables_name_the_others(joined, monkeypatch):
  for name, value in _ALL.items():
    monkeypatch.setenv(name, value)
  processes.initialize(stopping.Stop(), 7)
  assert joined == [{
      "coordinator_address": "host:1234", "num_processes": 4, "process_id": 3,
      "heartbeat_timeout_seconds": 7, "shutdown_timeout_seconds": 7},
      "start"]  # They meet before one of them compiles longer than others.


@pytest.mark.parametrize("change", [
    {"JAX_PROCESS_ID": None}, {"JAX_NUM_PROCESSES": "four"},
    {"JAX_COORDINATOR_ADDRESS": None}])
def test_some_of_them_are_not_enough(joined, monkeypatch, change):
  for name, value in (_ALL | change).items():
    if value is not None:
      monkeypatch.setenv(name, value)
  with pytest.raises(ConfigError, match="set all three, as host:port"):
    processes.initialize(stopping.Stop(), 100)
  assert not joined


@pytest.mark.parametrize(("environment", "expected"), [
    ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, True),
    ({"SLURM_NTASKS": "2"}, False),  # In the batch script, not in srun.
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, False),
    ({"OMPI_MCA_orte_hnp_uri": "1;tcp://10.0.0.1:2"}, True)])
def test_launchers_that_jax_knows(joined, monkeypatch, environment, expected):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  processes.initialize(stopping.Stop(), 100)
  assert bool(joined) == expected


_JOINS = """
import os
from psp_jax import processes, stopping
processes.initialize(stopping.Stop(), 60)
import jax
from jax.experimental import multihost_utils
assert multihost_utils.process_allgather(jax.process_index()).sum() == 1
print({os.sched_getscheduler(int(thread))
       for thread in os.listdir("/proc/self/task")})
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="needs Linux")
def test_no_thread_of_theirs_takes_the_core_when_woken():
  """The connection's lock may be held by the one it takes the core from."""
  both = [subprocess.Popen(
      [sys.executable, "-c", _JOINS], stdout=subprocess.PIPE, text=True,
      env=os.environ | environment) for environment in two_processes()]
  for process in both:
    out, _ = process.communicate(timeout=180)
    # Gloo writes there as well.
    assert out.splitlines()[-1] == str({os.SCHED_BATCH}), out
