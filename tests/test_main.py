"""The command line, in real processes."""

import os
import pathlib
import subprocess
import sys

import pytest

from psp_jax import (
  convert,
  predict,
  prepare,
  runs,
  saved_config,
  segmenter,
  train,
)
from psp_jax.data import datasets
from psp_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parent.parent


def _command(*args):
  return [sys.executable, "-m", "psp_jax.main", *map(str, args)]


def _main(*args):
  return subprocess.run(_command(*args), cwd=ROOT, capture_output=True,
                        text=True, timeout=300)


@pytest.mark.parametrize("args, words", [
    ([], ["--config=configs/scenes.py"]),
    (["--config=configs/nope.py"], ["configs/nope.py", "no such file"]),
    (["--config=configs/scenes.py", "--config.foo=1"], ["'foo'"]),
    (["--config=configs/scenes.py", "--config.model.depht=1"],
     ["'depht'", "did you mean depth"]),
    (["--config=configs/scenes.py", "--config.seed=x"], ["seed", "'x'"]),
    (["--config=configs/camvid.py:gpu"], ["camvid.py:gpu", ":cpu"]),
    (["--config=configs/scenes.py", "--mode=tset"], ["mode", "train|eval"]),
    (["--config=configs/scenes.py", "--wrkdir=x"], ["wrkdir", "workdir"]),
    (["--config=configs/scenes.py", "eval"], ["'eval'", "not a flag"]),
    (["--config=configs/scenes.py", "--mode=eval", "--workdir=/no/run"],
     ["/no/run", "train first"]),
    (["--mode=eval", "--workdir=/no/run"], ["--config="]),
    # Each row in a folder of its own: one would resume another's run.
    (["--config=configs/ablations.py:table2_aux_0.3", "--mode=eval"],
     ["runs/ablations_table2_aux_0.3: no run"]),
    (["--config=configs/ablations.py:table5"], [":table5", "table4_psp"]),
], ids=lambda value: " ".join(value)[-30:] or "nothing")
def test_mistakes_are_one_line_and_exit_2(args, words):
  done = _main(*args)
  assert done.returncode == 2
  last = done.stderr.strip().splitlines()[-1]
  assert last.startswith("error: ")
  assert "Traceback" not in done.stderr
  for word in words:
    assert word in last


_BUCKETS = {"--workdir": "gs://b/r", "--config.data.manual_dir": "gs://b/d",
            "--config.data.data_dir": "s3://b/d"}


@pytest.mark.parametrize("flag", _BUCKETS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_bucket_is_refused_before_anything_is_made(mode, flag, tmp_path):
  done = subprocess.run(
      _command(f"--config={ROOT / 'configs/scenes.py'}", f"--mode={mode}",
               f"{flag}={_BUCKETS[flag]}"),
      cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
      capture_output=True, text=True, timeout=300)
  assert done.returncode == 2
  (last,) = done.stderr.splitlines()
  assert last.startswith(f"error: {flag}={_BUCKETS[flag]}: ")
  assert "gcsfuse b " in last and "gcloud storage rsync" in last
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command, args, flag", [
    (prepare._main, ["--dataset=scenes", "--data_dir=gs://b/d"], "--data_dir"),
    (prepare._main, ["--dataset=camvid", "--manual_dir=gs://b/d"],
     "--manual_dir"),
    (prepare._main, ["--dataset=scenes", "--check", "--output=gs://b/d"],
     "--output=gs:/b/d"),
    (predict.main, ["--workdir=run", "--input=.", "--output=gs://b/o"],
     "--output=gs:/b/o"),
    (convert.main, ["weights.pth", "gs://b/r"], "DST=gs://b/r"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_other_commands_refuse_buckets_too(command, args, flag, tmp_path,
                                           monkeypatch, capsys):
  (tmp_path / "photo.png").touch()  # That there is something to predict.
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", ["command", *args])
  with pytest.raises((ConfigError, SystemExit)) as ended:
    command()
  last = (str(ended.value) if ended.type is ConfigError
          else capsys.readouterr().err.strip().splitlines()[-1])
  assert flag in last and "gcsfuse b " in last
  assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]


def test_a_bucket_in_the_environment_is_refused_too(tiny_config, monkeypatch):
  tiny_config.data.data_dir = ""
  monkeypatch.setenv("TFDS_DATA_DIR", "gs://b/d")
  with pytest.raises(ConfigError, match="TFDS_DATA_DIR=gs://b/d"):
    datasets.find_builder(tiny_config)
  with pytest.raises(ConfigError, match="--workdir=gs://b/r"):
    segmenter.load("gs://b/r")
  with pytest.raises(ConfigError, match="--workdir=gs:/b/r"):
    train.train(tiny_config, pathlib.Path("gs://b/r"))


def test_a_cache_that_cannot_be_written_is_done_without():
  done = _main("--config=configs/scenes.py", "--mode=eval", "--workdir=/no/run",
               "--compilation_cache=/dev/null/cache")
  warning, error = done.stderr.strip().splitlines()[-2:]
  assert warning.startswith("warning: the compilation cache /dev/null/cache")
  assert error.startswith("error: /no/run")


_READS_RECORDS = """
import sys
from psp_jax import main, runs, saved_config, events, train
from psp_jax.data import datasets, input_pipeline
config = saved_config.get_config(sys.argv[1])
split = datasets.open_split(config, "train")
writer = events.EventWriter(sys.argv[1])
with_reader = input_pipeline.train_batches(split, config, 0)
assert next(with_reader)["image"].shape == (8, 33, 33, 3)
with_reader.close()
late = {"tensorflow", "clu", "tensorboard", "keras", "torch", "h5py",
        "matplotlib", "pandas"} & set(sys.modules)
assert not late, late
"""


def test_tensorflow_is_not_there_before_the_first_step(tiny_config, tmp_path):
  """It takes seconds to import, and the first step needs none of it."""
  datasets.prepare(tiny_config)
  runs.save_config(tiny_config, tmp_path)
  done = subprocess.run([sys.executable, "-c", _READS_RECORDS, str(tmp_path)],
                        cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr


def test_a_runs_folder_is_enough_to_score_it_again_or_otherwise(
    tiny_flags, tmp_path):
  run = tmp_path / "run"
  done = _main(*tiny_flags, "--config.num_train_steps=5", f"--workdir={run}")
  assert done.returncode == 0, done.stderr
  first = (run / "eval.json").read_text()
  for flip in ("True", "False"):
    scored = _main("--mode=eval", f"--workdir={run}",
                   f"--config.eval.flip={flip}")
    assert scored.returncode == 0, scored.stderr
    same = (run / "eval.json").read_text() == first
    assert same == (flip == str(saved_config.get_config(run).eval.flip))
