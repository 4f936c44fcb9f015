"""The table of figures: runs land in the row of what they did, or are marked.

The runs' files are written by the code that writes real ones.
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from psp_jax import evaluate, metrics, published, runs, sliding_window, tables
from psp_jax.data import camvid

ROOT = pathlib.Path(__file__).parent.parent
SIX_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# Rows that one run fills, as the paper's tables overlap.
SHARED_ROWS = [
    {"table1_baseline", "table2_aux_0.4", "table4_da_al"},
    {"table2_aux_none", "table4_da"},
    {"table1_b1236_average_dr", "table3_resnet50", "table4_psp"},
    {"table3_resnet269", "table4_269"},
    {"table3_resnet269_multiscale", "table4_multiscale"},
    # Test and validation figures; the split is a note's business.
    {"voc2012", "voc2012_resnet101_multiscale"}]


def row_config(name):
  spec = importlib.util.spec_from_file_location(
      "ablations", ROOT / "configs" / "ablations.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(name)
  config.model.pretrained = "backbone.npz"
  return config


def make_run(folder, config, miou=0.4123, num_images=2000, step=None,
             **eval_changes):
  """eval.json and config.json of a run in `folder`; the former's path.

  `eval_changes` are of the evaluation alone, as by --mode=eval.
  """
  folder.mkdir(parents=True, exist_ok=True)
  runs.save_config(config, folder)
  config = config.copy_and_resolve_references()
  config.eval.update(eval_changes)
  evaluate.write_results(
      folder, metrics.Scores(miou, 0.5234, 0.8045, np.zeros(11), np.zeros(11)),
      camvid.TAXONOMY, sliding_window.Protocol.from_config(config),
      num_images, config.num_train_steps if step is None else step, [],
      config.data.name, config.eval.split)
  return str(folder / "eval.json")


def cells(text):
  """The table as lists of cells, by first cell; a row may have several."""
  rows = {}
  for line in text.splitlines():
    if line.startswith("|"):
      line = [c.strip() for c in line.strip("|").split("|")]
      rows.setdefault(line[0], []).append(line[1:])
  return rows


def show(capsys, *paths):
  assert tables.main(list(paths)) == 0
  return capsys.readouterr().out


def test_without_runs_it_prints_what_was_published(capsys):
  text = show(capsys)
  rows = cells(text)
  assert set(rows) - {"row"} - {r for r in rows if set(r) <= {"-"}} == set(
      published.ROWS)
  assert rows["table3_resnet101_multiscale"] == [
      ["ade20k val", "43.29", "81.39", "44.15", "54.26", "81.72"] + [""] * 4]
  assert rows["voc2012_coco"] == [["voc2012 test", "85.4"] + [""] * 8]
  assert rows["cityscapes_resnet50"][0][:6] == [
      "cityscapes val", "", "", "77.30", "84.31", "95.97"]
  assert "Other runs" not in text and "[" not in text
  lines = text.splitlines()
  assert len({len(line) for line in lines}) == 1  # Aligned.
  assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("name", published.ROWS)
def test_a_run_of_a_row_lands_there(name, tmp_path):
  run = tables.read_run(make_run(tmp_path, row_config(name)))
  matched = {other for other, row in published.ROWS.items()
             if tables.is_of_row(run, row)}
  if published.ROWS[name].first_stage:
    assert name not in matched
  else:
    assert matched == next((s for s in SHARED_ROWS if name in s), {name})


def test_a_full_reproduction_has_no_mark(tmp_path, capsys):
  config = row_config("table3_resnet101")
  config.seed, config.mesh.data, config.data.manual_dir = 7, 4, "/elsewhere"
  path = make_run(tmp_path, config)
  text = show(capsys, path)
  assert cells(text)["table3_resnet101"] == [
      ["ade20k val", "41.96", "80.64", "43.10", "53.75", "81.07",
       "41.23", "52.34", "80.45", path]]
  assert text.count(path) == 1 and "[" not in text and "Other" not in text


def changed(field, value):
  def change(config):
    config.update_from_flattened_dict({field: value})
  return change


@pytest.mark.parametrize("change, how, words", [
    (None, {"num_images": 500}, "500 of 2,000 images"),
    (None, {"split": "train", "num_images": 20210},
     "train split, the published is of val"),
    (None, {"step": 5000}, "step 5,000 of 150,000"),
    (None, {"flip": False}, "eval.flip False, not True"),
    (None, {"window": "whole"}, "eval.window whole, not 473"),
    (changed("model.pretrained", ""), {}, "from random weights"),
    (changed("num_train_steps", 126_300), {},
     "num_train_steps 126300, not 150000"),
    (changed("model.stem", "7x7"), {}, "model.stem 7x7, not 64-64-128"),
    (changed("optimizer.base_lr", 0.02), {},
     "optimizer.base_lr 0.02, not 0.01"),
])
def test_what_is_no_full_reproduction_is_marked(
    change, how, words, tmp_path, capsys):
  config = row_config("table3_resnet152")
  if change:
    change(config)
  path = make_run(tmp_path, config, **how)
  text = show(capsys, path)
  (row,) = cells(text)["table3_resnet152"]
  assert row[6:] == ["41.23 [1]", "52.34 [1]", "80.45 [1]", path]
  assert text.splitlines()[-1].rstrip() == f"[1] {path}: {words}"


def test_reasons_add_up_and_each_has_its_note(tmp_path, capsys):
  a = make_run(tmp_path / "a", row_config("voc2012"), num_images=1449)
  b = make_run(tmp_path / "b", row_config("table2_aux_none"), num_images=9,
               step=10)
  text = show(capsys, a, b)
  rows = cells(text)
  assert rows["voc2012"][0][6] == "41.23 [2]"
  assert rows["voc2012_resnet101_multiscale"][0][6] == "41.23 [3]"
  for name in ("table2_aux_none", "table4_da"):  # One note for both.
    assert rows[name][0][6] == "41.23 [1]"
  notes = dict(re.findall(r"^\[(\d)\] (.*?) *$", text, re.M))
  assert notes == {
      "1": f"{b}: 9 of 2,000 images; step 10 of 150,000",
      "2": f"{a}: val split, the published is of test",
      "3": f"{a}: num_train_steps 30000, not 33050"}


def test_multiscale_scores_of_a_single_scale_workdir(tmp_path, capsys):
  """By the protocol in the JSON, whatever its name, not by config.json."""
  config = row_config("table3_resnet50")
  single = make_run(tmp_path, config, miou=0.41)
  kept = pathlib.Path(single).rename(tmp_path / "single.json")
  multi = make_run(tmp_path, config, miou=0.42, scales=SIX_SCALES)
  rows = cells(show(capsys, str(kept), multi))
  assert rows["table3_resnet50"][0][6::3] == ["41.00", str(kept)]
  assert rows["table3_resnet50_multiscale"][0][6::3] == ["42.00", multi]


def test_several_runs_of_a_row_have_a_line_each(tmp_path, capsys):
  paths = [make_run(tmp_path / str(i), row_config("table1_b1_max"), i / 10)
           for i in (3, 4)]
  rows = cells(show(capsys, *paths))["table1_b1_max"]
  assert [row[1] for row in rows] == ["39.94"] * 2
  assert [row[6] for row in rows] == ["30.00", "40.00"]


@pytest.mark.parametrize("field, value", [
    ("model.pyramid.bins", (1, 2, 3)), ("model.depth", 34),
    ("model.aux_loss_weight", 0.5), ("data.name", "camvid"),
    ("data.augment.mirror_probability", 0.0), ("eval.scales", (1.0, 1.5))])
def test_other_runs_are_listed_below(field, value, tmp_path, capsys):
  config = row_config("table4_psp")
  config.update_from_flattened_dict({field: value})
  path = make_run(tmp_path, config, num_images=12)
  text = show(capsys, path)
  assert text.index("Other runs:") < text.index(path)
  (row,) = cells(text)[path]
  images = "12" if field == "data.name" else "12 of 2,000"
  assert row == [config.data.name, "val", images, "150,000", "41.23", "52.34",
                 "80.45"]


def test_trained_on_one_dataset_and_scored_on_another_is_no_row(tmp_path):
  path = make_run(tmp_path, row_config("table4_psp"))
  runs.save_config(row_config("voc2012"), tmp_path)
  run = tables.read_run(path)
  assert not any(tables.is_of_row(run, r) for r in published.ROWS.values())


@pytest.mark.parametrize("name, field, value", [
    ("table1_baseline", "model.pyramid.pool", "max"),
    ("table1_baseline", "model.pyramid.reduce", False),
    ("table2_aux_none", "model.aux_loss_weight", 0.9),
    ("table4_baseline", "data.augment.rotate_degrees", 5.0)])
def test_fields_of_what_is_off_do_not_matter(
    name, field, value, tmp_path, capsys):
  config = row_config(name)
  config.update_from_flattened_dict({field: value})
  text = show(capsys, make_run(tmp_path, config))
  assert cells(text)[name][0][6] == "41.23" and "[" not in text


def test_a_field_that_an_older_run_did_not_have_is_no_difference(
    tmp_path, capsys):
  path = make_run(tmp_path, row_config("table4_psp"))
  stored = json.loads((tmp_path / "config.json").read_text())
  del stored["model"]["contract_dilation"]
  (tmp_path / "config.json").write_text(json.dumps(stored))
  assert "[" not in show(capsys, path)


def test_a_score_of_nothing_and_a_path_with_a_pipe(tmp_path, capsys):
  path = make_run(tmp_path / "a|b", row_config("table4_psp"), float("nan"))
  text = show(capsys, path)
  line = next(x for x in text.splitlines() if x.startswith("| table4_psp"))
  assert "| none " in line and "a\\|b" in line


def _break(folder, kind):
  """Spoils a run's files; which file the message should name."""
  eval_json, config_json = folder / "eval.json", folder / "config.json"
  result = json.loads(eval_json.read_text())
  if kind == "missing":
    eval_json.unlink()
  elif kind == "folder":
    return folder, folder
  elif kind == "binary":
    eval_json.write_bytes(b"\x89PNG\xff")
  elif kind == "not JSON":
    eval_json.write_text('{"miou": 0.4')
  elif kind == "a list":
    eval_json.write_text("[1]")
  elif kind == "a config":
    return config_json, config_json
  elif kind == "no split":
    eval_json.write_text(json.dumps(
        {k: v for k, v in result.items() if k != "split"}))
  elif kind == "a word for a score":
    eval_json.write_text(json.dumps(result | {"miou": "high"}))
  elif kind == "no scales":
    eval_json.write_text(json.dumps(result | {"protocol": {}}))
    return eval_json, eval_json
  elif kind == "no config":
    config_json.unlink()
    return eval_json, config_json
  elif kind == "config not JSON":
    config_json.write_text("model: 1")
    return eval_json, config_json
  elif kind == "another config":
    config_json.write_text('{"model": {"depth": 50}}')
    return eval_json, config_json
  return eval_json, eval_json


@pytest.mark.parametrize("kind", [
    "missing", "folder", "binary", "not JSON", "a list", "a config",
    "no split", "a word for a score", "no scales", "no config",
    "config not JSON", "another config"])
def test_what_is_no_run_is_named_and_refused(kind, tmp_path, capsys):
  good = make_run(tmp_path / "good", row_config("table4_psp"))
  make_run(tmp_path / "bad", row_config("table4_psp"))
  given, named = _break(tmp_path / "bad", kind)
  assert tables.main([good, str(given)]) == 2
  out, err = capsys.readouterr()
  assert not out and len(err.splitlines()) == 1
  assert err.startswith("error: ") and str(named) in err


def test_the_command(tmp_path):
  path = make_run(tmp_path, row_config("table4_da"), num_images=3)

  def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "psp_jax.tables", *args], cwd=ROOT,
        capture_output=True, text=True, timeout=120)

  done = command(path)
  assert done.returncode == 0, done.stderr
  assert cells(done.stdout)["table4_da"][0][6] == "41.23 [1]"
  assert "3 of 2,000 images" in done.stdout
  done = command(str(tmp_path / "nothing.json"))
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert done.stderr.startswith(f"error: {tmp_path / 'nothing.json'}: ")


def test_figures_are_those_of_the_reference(shared):
  """Every number of the notes' section on them, in order."""
  text = (shared / "reference" / "pspnet.md").read_text()
  text = text[text.index("## 3.2"):text.index("mmseg PSPNet")]
  rows = published.ROWS

  def pairs(prefix, multiscale=False):
    return ["/".join(row.paper) for name, row in rows.items()
            if name.startswith(prefix)
            and name.endswith("multiscale") is multiscale]

  def line(start):
    found = next(x for x in text.splitlines() if x.strip().startswith(start))
    return re.findall(r"\d\d\.\d\d/\d\d\.\d\d", found)

  assert line("T1") == pairs("table1")
  assert line("T2") == pairs("table2")
  assert line("T3") == pairs("table3") + pairs("table3", True)
  assert line("T4") == pairs("table4") + pairs("table4", True)
  scores = next(x for x in text.splitlines() if x.strip().startswith("VOC12"))
  assert re.findall(r"\d\d\.\d", scores) == [rows[name].paper[0] for name in (
      "voc2012", "voc2012_coco", "cityscapes", "cityscapes_coarse")]
  for label, name in (("ADE", "table3"), ("VOC", "voc2012"),
                      ("City", "cityscapes")):
    for depth in (50, 101):
      found = next(x for x in text.splitlines()
                   if x.startswith(f"|{label} PSPNet{depth}|"))
      figures = [f"{float(x) * 100:.2f}"
                 for x in re.findall(r"\.\d{4}", found)]
      row = f"{name}_resnet{depth}"
      assert figures == [*rows[row].semseg, *rows[f"{row}_multiscale"].semseg]
