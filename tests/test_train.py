"""Whole runs on a small made dataset, in this process."""

import json
import logging
import re
import shutil

import cv2
import jax
import numpy as np
import pytest
from board import images, read, scalars, texts, traced_steps
from PIL import Image

from psp_jax import checkpoint, evaluate, non_finite, train, train_step
from psp_jax.checkpoint import Checkpoints
from psp_jax.data import camvid, datasets, input_pipeline
from psp_jax.errors import ConfigError, DataError, NonFiniteError
from psp_jax.models import create_model


def _restore(config, workdir, step=None):
  model = create_model(config)
  like = jax.eval_shape(lambda: train_step.create_train_state(model, config))
  like = jax.tree.map(lambda s: jax.ShapeDtypeStruct(
      s.shape, s.dtype,
      sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])), like)
  return Checkpoints.existing(workdir).restore(like, step)


@pytest.fixture(scope="module")
def _run_once():
  """Filled by the first test that needs a finished run."""
  return {}


@pytest.fixture
def finished(tiny_config, tmp_path_factory, _run_once, capsys):
  """(workdir, console) of an undisturbed run of `tiny_config`."""
  if not _run_once:
    workdir = tmp_path_factory.mktemp("finished")
    train.train(tiny_config, workdir)
    _run_once.update(workdir=workdir, console=capsys.readouterr().out)
  return _run_once["workdir"], _run_once["console"]


def test_a_run_leaves_what_it_promises(finished, tiny_config):
  workdir, _ = finished
  result = json.loads((workdir / "eval.json").read_text())
  assert set(result) == {
      "dataset", "split", "miou", "mean_accuracy", "pixel_accuracy",
      "final_score", "per_class_iou", "per_class_accuracy", "num_images",
      "step", "protocol"}
  assert (result["dataset"], result["split"]) == ("camvid", "val")
  assert not (workdir / "predictions").exists()
  assert result["step"] == 6 and result["num_images"] == 4
  assert set(result["protocol"]) >= {"scales", "flip", "window"}
  assert len(result["per_class_iou"]) == 11
  assert cv2.imread(str(workdir / "contact_sheet.png")) is not None
  assert len((workdir / "confusion.csv").read_text().splitlines()) == 12
  training = [json.loads(line) for line in
              (workdir / "training.jsonl").read_text().splitlines()]
  assert [e["step"] for e in training] == [1, 2, 3, 4, 5, 6]
  stored = json.loads((workdir / "config.json").read_text())
  assert stored == json.loads(json.dumps(tiny_config.to_dict()))
  assert list(workdir.glob("events.out.tfevents.*"))
  assert (workdir / "checkpoints" / "6").is_dir()


def test_the_console_tells_what_runs_and_how_it_goes(finished):
  _, console = finished
  for word in ("camvid, 12 to train on", "parameters", "8 x cpu",
               "mesh data 8 x space 1", "batch      1 on each of 8",
               "float32 activations",
               "6 of 8 crops of 33x33", "s after the start (data",
               "step 6/6", "loss", "lr", "images/s", "left",
               "validation mIoU", "bicyclist", "mean accuracy",
               "pixel accuracy", "final score"):
    assert word in console, word


def test_tensorboard_has_the_run(finished, tiny_config):
  workdir, _ = finished
  found = read(workdir)
  curves = scalars(found)
  for name in ("loss", "main_loss", "aux_loss", "pixel_accuracy", "grad_norm",
               "learning_rate", "images_per_second"):
    assert list(curves.pop(f"train/{name}")) == [1, 2, 3, 4, 5, 6], name
  entry, = map(json.loads,
               (workdir / "validation.jsonl").read_text().splitlines())
  result = json.loads((workdir / "eval.json").read_text())
  for name in ("miou", "mean_accuracy", "pixel_accuracy"):
    assert curves.pop(f"validation/{name}") == {3: pytest.approx(entry[name])}
    assert curves.pop(f"eval/{name}") == {6: pytest.approx(result[name])}
  for name, iou in result["per_class_iou"].items():
    assert curves.pop(f"eval/iou/{name}") == {6: pytest.approx(iou)}
  known = [curves.pop(name)[3] for name in list(curves)
           if name.startswith("validation/iou/")]
  assert np.mean(known) == pytest.approx(entry["miou"])
  assert not curves
  (step, text), = texts(found)["config"]
  assert step == 1
  assert json.loads(text.removeprefix("```json").removesuffix("```")) == (
      json.loads((workdir / "config.json").read_text()))
  assert list(images(found)["validation/photos"]) == [3]


def test_the_end_is_told(finished):
  workdir, console = finished
  end = console[console.index("done  "):]
  entry = json.loads((workdir / "validation.jsonl").read_text())
  result = json.loads((workdir / "eval.json").read_text())
  assert f"validation mIoU {entry['miou']:.2%} at step 3" in end
  assert f"mIoU {result['miou']:.2%}" in end
  assert f"final score {result['final_score']:.2%}" in end
  for file in ("config.json", "checkpoints/", "validation.jsonl", "eval.json",
               "contact_sheet.png"):
    assert f" {workdir}/{file}\n" in end
  assert end.endswith(f"tensorboard --logdir={workdir}\n")
  assert "lock" not in end and "events" not in end


def test_a_log_file_has_times_of_day(finished):
  _, console = finished
  lines = console.splitlines()
  for start, count in (("step ", 6), ("validation mIoU", 1), ("done ", 1),
                       ("evaluation of step 6", 1), ("first step ", 1)):
    assert sum(bool(re.match(rf"\d\d:\d\d:\d\d {start}", line))
               for line in lines) == count, start


def test_resuming_changes_nothing(finished, tiny_config, tmp_path, capsys):
  workdir, _ = finished
  shutil.copytree(workdir, tmp_path / "cut")
  for step in (4, 6):  # As if it had been killed after step 3, validated.
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / str(step))
  train.train(tiny_config, tmp_path / "cut")
  assert "resumed    from the checkpoint of step 3" in capsys.readouterr().out
  jax.tree.map(np.testing.assert_array_equal,
               _restore(tiny_config, tmp_path / "cut"),
               _restore(tiny_config, workdir))


def test_a_finished_run_only_evaluates(finished, tiny_config, tmp_path,
                                       capsys):
  workdir, _ = finished
  shutil.copytree(workdir, tmp_path / "again")
  train.train(tiny_config, tmp_path / "again")
  assert "step 6/6" not in capsys.readouterr().out
  assert (tmp_path / "again" / "eval.json").read_text() == (
      workdir / "eval.json").read_text()


def test_eval_mode_scores_the_asked_step(finished, tiny_config, tmp_path):
  workdir, _ = finished
  shutil.copytree(workdir, tmp_path / "copy")
  (tmp_path / "copy" / "eval.json").unlink()
  train.evaluate_checkpoint(tiny_config, tmp_path / "copy")
  assert (tmp_path / "copy" / "eval.json").read_text() == (
      workdir / "eval.json").read_text()
  tiny_config.eval.step = 4
  train.evaluate_checkpoint(tiny_config, tmp_path / "copy")
  result = json.loads((tmp_path / "copy" / "eval.json").read_text())
  assert result["step"] == 4


def test_predictions_are_written_where_asked(finished, tiny_config, tmp_path,
                                             camvid_folder, capsys):
  workdir, _ = finished
  shutil.copytree(workdir, tmp_path / "copy")
  tiny_config.eval.write_predictions = True
  train.evaluate_checkpoint(tiny_config, tmp_path / "copy")
  assert "/copy/predictions/" in capsys.readouterr().out
  files = sorted((tmp_path / "copy" / "predictions").rglob("*"))
  assert [f.name for f in files] == [f"{i:03}.png" for i in range(4)]
  hits = counted = 0
  for file in files:
    truth = cv2.imread(str(camvid_folder / "valannot" / file.name), -1)
    known = truth != 11
    hits += (np.array(Image.open(file)) == truth)[known].sum()
    counted += known.sum()
  result = json.loads((workdir / "eval.json").read_text())
  assert hits / counted == result["pixel_accuracy"] > 0


def test_it_learns(tiny_config, tmp_path):
  tiny_config.num_train_steps = 60
  tiny_config.model.width_multiplier = 0.25
  tiny_config.validation.every_steps = 0
  tiny_config.checkpoint.every_steps = 60
  tiny_config.eval.split = "train"
  train.train(tiny_config, tmp_path)
  result = json.loads((tmp_path / "eval.json").read_text())
  assert result["pixel_accuracy"] > 0.4  # Chance is 1 in 11.


def test_nan_stops_before_a_checkpoint_holds_it(tiny_config, tmp_path):
  tiny_config.optimizer.base_lr = 1e18
  tiny_config.checkpoint.every_steps = 1
  tiny_config.validation.every_steps = 0
  with pytest.raises(NonFiniteError, match=r"at step \d, learning rate"):
    train.train(tiny_config, tmp_path)
  state = _restore(tiny_config, tmp_path, step=1)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))
  assert "6" not in {p.name for p in (tmp_path / "checkpoints").iterdir()}


@pytest.mark.parametrize("change, error, words", [
    ({"global_batch_size": 12}, ConfigError,
     ["global_batch_size=12", "8 data-parallel devices", "multiple of 8"]),
    ({"mesh.data": 3}, ConfigError, ["mesh.data=3", "8 device"]),
    ({"loss.normalizer": "mean"}, ConfigError,
     ["loss.normalizer='mean'", "'global', 'per_replica', 'all_pixels'"]),
    ({"loss.normalizer": "per_replica", "loss.num_replicas": 3}, ConfigError,
     ["global_batch_size=8", "loss.num_replicas=3", "change"]),
    ({"model.num_classes": 12}, ConfigError, ["num_classes=12", "11 classes"]),
    ({"model.depth": 51}, ConfigError, ["model.depth=51", "50"]),
    ({"model.stem": "5x5"}, ConfigError, ["model.stem='5x5'", "7x7"]),
    ({"data.name": "camvd"}, ConfigError, ["data.name='camvd'", "camvid"]),
    ({"profile": "3:9"}, ConfigError, ["profile='3:9'", "num_train_steps=6"]),
    ({"profile": "3"}, ConfigError, ["profile='3'", "FIRST:LAST"]),
    ({"eval.window": "tiled"}, ConfigError, ["eval.window='tiled'", "whole"]),
    ({"data.train_split": "trian"}, ConfigError, ["'trian'", "'train'"]),
    ({"data.manual_dir": "/nowhere"}, DataError, ["/nowhere", "manual_dir"]),
    ({"model.pretrained": "/no.npz"}, Exception, ["/no.npz", "no such file"]),
], ids=lambda value: str(value) if isinstance(value, dict) else "")
def test_mistakes_are_named_before_anything_is_written(
    tiny_config, tmp_path, change, error, words):
  for field, value in change.items():
    tiny_config.update_from_flattened_dict({field: value})
  with pytest.raises(error) as raised:
    train.train(tiny_config, tmp_path / "run")
  for word in words:
    assert word in str(raised.value)
  assert not (tmp_path / "run").exists()


def test_ade20k_samples_train_and_evaluate(tmp_path, shared):
  """The three real pairs through the path of configs/ade20k.py."""
  from psp_jax import default_config
  c = default_config.get_config()
  c.model.depth, c.model.width_multiplier = 10, 0.0625
  c.data.manual_dir = str(shared / "data/ade20k_sample/ADEChallengeData2016")
  c.data.data_dir = str(tmp_path)
  c.data.allow_partial = True
  c.data.train_split = "val"
  c.data.crop_size = 65
  c.data.num_threads = 2
  c.global_batch_size, c.num_train_steps = 8, 2
  c.eval.window_size, c.eval.window_batch, c.eval.base_size = 129, 1, 160
  train.train(c, tmp_path / "run")
  result = json.loads((tmp_path / "run" / "eval.json").read_text())
  assert result["num_images"] == 3 and 0 <= result["pixel_accuracy"] <= 1


def test_a_folder_of_camvid_trains_and_scores_as_camvid(
    finished, tiny_config, camvid_folder, tmp_path):
  """The same files in the layout for one's own, and no more."""
  reference, _ = finished
  root = tmp_path / "mine"
  for split in ("train", "val", "test"):
    shutil.copytree(camvid_folder / split, root / "images" / split)
    shutil.copytree(camvid_folder / f"{split}annot", root / "masks" / split)
  names = camvid.TAXONOMY.class_names
  rows = [f"{i},{name}" for i, name in enumerate((*names, "ignore"))]
  (root / "classes.csv").write_text("\n".join(["id,name", *rows]) + "\n")
  tiny_config.data.name, tiny_config.data.manual_dir = "folder", str(root)
  tiny_config.data.allow_partial = False
  tiny_config.model.num_classes = 0
  train.train(tiny_config, tmp_path / "run")
  ours, theirs = (json.loads((workdir / "eval.json").read_text())
                  for workdir in (tmp_path / "run", reference))
  assert ours.pop("dataset") == "folder" and theirs.pop("dataset") == "camvid"
  assert ours == theirs
  assert json.loads((tmp_path / "run" / "config.json").read_text())[
      "model"]["num_classes"] == 11
  tiny_config.model.num_classes = 11
  jax.tree.map(np.testing.assert_array_equal,
               _restore(tiny_config, tmp_path / "run"),
               _restore(tiny_config, reference))


# ---- Reliability, in this process; of real signals see test_stopping.py.


def _recording(monkeypatch):
  """step -> the bits of its metrics, of all runs from now on."""
  seen = {}
  check = non_finite.Guard.check

  def record(self, step, metrics):
    seen[step] = {k: np.asarray(v).tobytes() for k, v in metrics.items()}
    return check(self, step, metrics)

  monkeypatch.setattr(non_finite.Guard, "check", record)
  return seen


def test_twenty_steps_are_ten_and_ten(
    tiny_config, tmp_path, monkeypatch, caplog):
  """No bit differs: of the whole state, of every step's metrics."""
  tiny_config.checkpoint.every_steps = 5
  tiny_config.validation.every_steps = 10
  tiny_config.num_train_steps = 20
  seen = _recording(monkeypatch)
  train.train(tiny_config, tmp_path / "straight")
  straight = dict(seen)
  seen.clear()

  real = train_step.compiled_step

  def ten_then_told(*args):
    step = real(*args)

    def run(state, batch):
      if int(state.step) == 10 and not seen.get("again"):
        raise RuntimeError("gone")
      return step(state, batch)
    return run

  monkeypatch.setattr(train_step, "compiled_step", ten_then_told)
  with pytest.raises(RuntimeError, match="gone"):
    train.train(tiny_config, tmp_path / "halves")
  assert max(seen) == 10
  monkeypatch.setattr(train_step, "compiled_step", real)
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    train.train(tiny_config, tmp_path / "halves")
  # Weights that the checkpoint replaces are not drawn.
  assert "Compiling jit(train_step)" in caplog.text
  assert "Compiling jit(init_fn)" not in caplog.text  # The optimizer's.
  assert seen == straight and set(seen) == set(range(1, 21))
  one, other = (_restore(tiny_config, tmp_path / name)
                for name in ("straight", "halves"))
  assert checkpoint.digests(one) == checkpoint.digests(other)
  for file in ("training.jsonl", "validation.jsonl", "eval.json"):
    assert (tmp_path / "straight" / file).read_text() == (
        tmp_path / "halves" / file).read_text()


def test_a_validation_that_was_disturbed_is_done_again(
    finished, tiny_config, tmp_path, monkeypatch):
  run = evaluate.Evaluator.run

  def gone(*args, what="evaluation", **options):
    if what == "validation":
      raise RuntimeError("gone")
    return run(*args, what=what, **options)

  monkeypatch.setattr(evaluate.Evaluator, "run", gone)
  with pytest.raises(RuntimeError, match="gone"):
    train.train(tiny_config, tmp_path)
  assert Checkpoints.existing(tmp_path).steps()[-1] == 3
  assert not (tmp_path / "validation.jsonl").exists()
  monkeypatch.setattr(evaluate.Evaluator, "run", run)
  train.train(tiny_config, tmp_path)
  for file in ("validation.jsonl", "eval.json"):
    assert (tmp_path / file).read_text() == (finished[0] / file).read_text()


@pytest.mark.parametrize("asynchronous", [True, False])
def test_training_goes_on_during_a_save_or_waits(
    tiny_config, tmp_path, monkeypatch, asynchronous):
  """Looked at when step 3 begins, right after the save of step 2."""
  tiny_config.checkpoint.asynchronous = asynchronous
  tiny_config.validation.every_steps = 0
  tiny_config.num_train_steps = 3
  writing, managers, step = [], [], train_step.compiled_step
  save = checkpoint.Checkpoints.save

  def saving(self, state):
    managers.append(self._manager)
    save(self, state)

  def looking(*args):
    compiled = step(*args)

    def run(state, batch):
      if int(state.step) == 2:
        writing.append(managers[0].is_saving_in_progress())
      return compiled(state, batch)
    return run

  monkeypatch.setattr(checkpoint.Checkpoints, "save", saving)
  monkeypatch.setattr(train_step, "compiled_step", looking)
  train.train(tiny_config, tmp_path)
  assert writing == [asynchronous]


@pytest.fixture
def poisoned(monkeypatch):
  """A function (steps) that makes those steps' losses infinite."""
  def poison(*steps):
    real = train_step.train_step

    def step(state, batch, **options):
      bad = jax.numpy.isin(state.step + 1, jax.numpy.array(steps))
      params = dict(state.params)
      classifier = jax.tree.map(
          lambda p: jax.numpy.where(bad, np.nan, p), params["classifier"])
      spoilt = state.replace(params=params | {"classifier": classifier})
      after, metrics = real(spoilt, batch, **options)
      if options["config"].non_finite == "skip":
        kept = jax.tree.map(
            lambda new, old: jax.numpy.where(bad, old, new),
            after.params, state.params)
        after = after.replace(params=kept)
      return after, metrics

    monkeypatch.setattr(train_step, "train_step", step)
  return poison


def test_nan_between_log_steps_is_found_before_any_save(
    tiny_config, tmp_path, poisoned):
  tiny_config.num_train_steps = 40
  tiny_config.log_every_steps = 100
  tiny_config.checkpoint.every_steps = 5
  tiny_config.validation.every_steps = 0
  poisoned(13)
  with pytest.raises(NonFiniteError, match="at step 13, learning rate"):
    train.train(tiny_config, tmp_path)
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
      "10", "5"]
  state = _restore(tiny_config, tmp_path)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  report = json.loads((tmp_path / "non_finite.json").read_text())
  assert report["step"] == 13 and report["loss"] == "nan"
  assert "params" not in report["arrays_whose_gradient_is_not_finite"]
  assert "classifier/conv/kernel" in (
      report["arrays_whose_gradient_is_not_finite"])
  # The batch of step 13, by what the reader would read for it.
  split = datasets.open_split(tiny_config, "train")
  names = []

  class Reading(type(split)):
    def __getitem__(self, index):
      record = super().__getitem__(index)
      names.append(record["name"])
      return record

  split.__class__ = Reading
  input_pipeline.train_dataset(split, tiny_config)[12]
  assert sorted(report["records"]) == sorted(names) and len(names) == 8


def test_steps_that_are_not_finite_can_be_skipped_but_not_for_ever(
    tiny_config, tmp_path, poisoned, capsys):
  tiny_config.non_finite = "skip"
  tiny_config.max_skipped_steps = 2
  tiny_config.num_train_steps = 8
  tiny_config.validation.every_steps = 0
  poisoned(3, 4, 6)
  train.train(tiny_config, tmp_path / "skips")
  assert capsys.readouterr().out.count("skipped    loss is nan at step") == 3
  state = _restore(tiny_config, tmp_path / "skips")
  assert int(state.step) == 8
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  poisoned(3, 4, 5)
  with pytest.raises(NonFiniteError, match="at step 5"):
    train.train(tiny_config, tmp_path / "stops")


def test_a_run_compiles_one_step_and_one_evaluation(
    tiny_config, tmp_path, caplog):
  tiny_config.num_train_steps = 50
  tiny_config.validation.every_steps = 20
  tiny_config.checkpoint.every_steps = 25
  tiny_config.eval.window = "sliding"
  tiny_config.profile = "30:33"
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    train.train(tiny_config, tmp_path)
  compiled = re.findall(r"Compiling jit\((\w+)\)", caplog.text)
  assert compiled.count("train_step") == 1
  assert compiled.count("forward") == 1
  assert sorted(traced_steps(tmp_path)) == [30, 31, 32, 33]
  # Of both validations the same photographs, and what was made of them.
  first, second = (
      cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
      for png in images(read(tmp_path))["validation/photos"].values())
  third = first.shape[1] // 3
  np.testing.assert_array_equal(first[:, :2 * third], second[:, :2 * third])
  assert (first[:, 2 * third:] != second[:, 2 * third:]).any()
