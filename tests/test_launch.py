"""The launch script's commands, against a stand-in `gcloud` that records."""

import os
import pathlib
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "launch" / "tpu_vm.sh"


def _run(verb, tmp_path, **env):
  calls = tmp_path / "calls"
  stub = tmp_path / "gcloud"
  stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {calls}\n')
  stub.chmod(0o755)
  path = f"{tmp_path}:{os.environ['PATH']}"
  done = subprocess.run(
      [SCRIPT, *verb], env={**os.environ, "PATH": path, **env},
      capture_output=True, text=True)
  return done, calls.read_text().splitlines() if calls.exists() else []


def test_create_asks_for_the_settings(tmp_path):
  done, call = _run(["create"], tmp_path, TPU_NAME="mine", ZONE="z1",
                    TYPE="v4-8", SPOT="1")
  assert done.returncode == 0, done.stderr
  assert call[:5] == ["compute", "tpus", "tpu-vm", "create", "mine"]
  assert call[call.index("--zone") + 1] == "z1"
  assert call[call.index("--accelerator-type") + 1] == "v4-8"
  assert "--spot" in call


def test_train_runs_the_command_of_the_readme(tmp_path):
  _, call = _run(["train"], tmp_path, CONFIG="configs/scenes.py")
  command = call[call.index("--command") + 1]
  assert "-m psp_jax.main --config='configs/scenes.py'" in command


@pytest.mark.parametrize("verb", ["create", "install", "train", "logs",
                                  "delete"])
def test_dry_run_prints_and_calls_nothing(verb, tmp_path):
  done, calls = _run([verb], tmp_path, DRY_RUN="1")
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("gcloud compute tpus tpu-vm ")
  assert not calls


def test_without_a_verb_explains_itself(tmp_path):
  done, calls = _run([], tmp_path)
  assert done.returncode == 2
  assert "create | install | train" in done.stdout
  assert not calls
