"""Shared by all tests: 8 simulated devices, one compilation cache a session.

CPU compilations are most of the suite's time; subprocesses read the same
cache through the environment.
"""

import os
import pathlib

import pytest

_CACHE = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402  After the environment is set.

jax.config.update("jax_num_cpu_devices", 8)

SHARED = pathlib.Path(__file__).parent.parent.parent / "shared"


@pytest.fixture
def shared():
  """The folder of real data beside the checkout; skips where it is not."""
  if not SHARED.is_dir():
    pytest.skip("needs ../shared (CamVid, ADE20K samples, ImageNet weights), "
                "which is not part of the project")
  return SHARED
