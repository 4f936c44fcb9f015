"""A user's mistakes on the real command lines, from `--help` to a prediction.

Each ends with exit code 2, no traceback, and a last message that names the
option or the file. All of them run as children of one process that has imported
everything, which takes seconds instead of minutes; tests/test_main.py and
others have some in processes of their own.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from psp_jax import checkpoint, default_config, runs, train_step
from psp_jax.data import camvid, datasets
from psp_jax.models import create_model

ROOT = pathlib.Path(__file__).parent.parent
RUN_ALL = """
import json, os, runpy, signal, sys, traceback
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
import jax
from absl import logging
from psp_jax import (cityscapes_scores, compile_tpu, convert, main, predict,
                     prepare, segmenter, serve, tables, train)
jax.config.update("jax_num_cpu_devices", 2)
with_flags = {"main": main.main, "compile_tpu": compile_tpu.run}

def become(program, args):
  sys.argv = [f"psp_jax/{program}.py", *args]
  if program in with_flags:
    main.run(with_flags[program])
  else:
    runpy.run_path(f"psp_jax/{program}.py", run_name="__main__")

def start(case, output):
  pid = os.fork()
  if pid:
    return pid
  signal.alarm(120)
  fd = os.open(output, os.O_CREAT | os.O_WRONLY)
  os.dup2(fd, 2)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  code = 0
  try:
    become(*case)
  except SystemExit as left:
    code = left.code or 0
    if isinstance(code, str):
      print(code, file=sys.stderr)
      code = 1
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stderr.flush()
  os._exit(code)

folder, cases = json.load(sys.stdin)
running, codes = {}, {}
for number, case in enumerate(cases):
  while len(running) >= 2:
    pid, status = os.wait()
    codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
  running[start(case, f"{folder}/stderr{number}")] = number
while running:
  pid, status = os.wait()
  codes[running.pop(pid)] = os.waitstatus_to_exitcode(status)
print(json.dumps([codes[number] for number in range(len(cases))]))
"""

SCENES = "--config=configs/scenes.py"
TINY = ("--config=configs/camvid.py:cpu", "--config.data.allow_partial=True",
          "--config.data.manual_dir={camvid}", "--config.data.data_dir={data}",
          "--config.global_batch_size=4", "--config.data.crop_size=33",
          "--config.num_train_steps=2", "--config.model.depth=10",
          "--config.model.width_multiplier=0.0625")
RUN, TO = "--workdir={run}", "--output={new}"
LEFT_OUT = ["--input={text}"]
MISTAKES = [  # (program, its arguments, what the message names)
    # A config that is not there, or not one.
    ("main", [], "--config"),
    ("main", ["--config=configs/nope.py"], "configs/nope.py"),
    ("main", ["--config=configs/camvid.py:gpu"], "camvid.py:gpu"),
    ("main", ["--config=configs/ablations.py:table5"], ":table5"),
    ("main", ["--config={text}"], "{text}"),
    ("main", ["--config={broken}"], "{broken}"),
    ("main", ["--config={empty}"], "{empty}"),
    ("main", ["--config="], "--config"),
    # Flags.
    ("main", [SCENES, "--mode=tset"], "mode"),
    ("main", [SCENES, "--wrkdir=x"], "wrkdir"),
    ("main", [SCENES, "-wrkdir=x"], "wrkdir"),
    ("main", [SCENES, "eval"], "'eval'"),
    ("main", [SCENES, "--workdir"], "workdir"),
    # Fields of no config, values of another type.
    ("main", [SCENES, "--config.foo=1"], "'foo'"),
    ("main", [SCENES, "--config.model.depht=10"], "'depht'"),
    ("main", [*TINY, "--config.num_train_steps=ten"], "num_train_steps"),
    ("main", [*TINY, "--config.data.crop_size=32.5"], "crop_size"),
    ("main", [*TINY, "--config.eval.flip=maybe"], "flip"),
    ("main", [*TINY, "--config.model.pyramid.bins="], "bins"),
    ("main", [*TINY, "--config.eval.scales=one"], "scales"),
    # Values that cannot work.
    ("main", [*TINY, "--config.global_batch_size=3"], "global_batch_size=3"),
    ("main", [*TINY, "--config.global_batch_size=0"], "global_batch_size=0"),
    ("main", [*TINY, "--config.data.crop_size=0"], "crop_size=0"),
    ("main", [*TINY, "--config.data.crop_size=-33"], "crop_size=-33"),
    ("main", [*TINY, "--config.model.pyramid.bins=(1,-2)"],
     "bins=(1, -2)"),
    ("main", [*TINY, "--config.model.pyramid.bins=(1,1)"], "bins=(1, 1)"),
    ("main", [*TINY, "--config.model.dtype=float16"], "model.dtype"),
    ("main", [*TINY, "--config.model.depth=33"], "model.depth=33"),
    ("main", [*TINY, "--config.model.num_classes=7"], "num_classes=7"),
    ("main", [*TINY, "--config.model.num_classes=-1"], "num_classes=-1"),
    ("main", [*TINY, "--config.model.width_multiplier=0"], "width_multiplier"),
    ("main", [*TINY, "--config.model.width_multiplier=-1"],
     "width_multiplier"),
    ("main", [*TINY, "--config.model.dropout=1.5"], "dropout"),
    ("main", [*TINY, "--config.mesh.data=3"], "mesh"),
    ("main", [*TINY, "--config.mesh.space=0"], "mesh.space"),
    ("main", [*TINY, "--config.num_train_steps=-5"], "num_train_steps=-5"),
    ("main", [*TINY, "--config.optimizer.base_lr=-0.01"], "base_lr=-0.01"),
    ("main", [*TINY, "--config.optimizer.base_lr=nan"], "base_lr"),
    ("main", [*TINY, "--config.optimizer.momentum=1.5"], "momentum"),
    ("main", [*TINY, "--config.optimizer.weight_decay=-1"], "weight_decay"),
    ("main", [*TINY, "--config.loss.normalizer=batch"], "loss.normalizer"),
    ("main", [*TINY, "--config.data.num_threads=0"], "num_threads=0"),
    ("main", [*TINY, "--config.data.workers=fibres"], "data.workers"),
    ("main", [*TINY, "--config.data.augment.scale=(2.0,0.5)"],
     "augment.scale"),
    ("main", [*TINY, "--config.data.augment.mirror_probability=2"],
     "mirror_probability"),
    ("main", [*TINY, "--config.eval.scales=(0.0,)"], "eval.scales"),
    ("main", [*TINY, "--config.eval.scales=()"], "eval.scales"),
    ("main", [*TINY, "--config.eval.scales=(-1.0,)"], "eval.scales"),
    ("main", [*TINY, "--config.eval.window=hole"], "eval.window"),
    ("main", [*TINY, "--config.eval.window_size=-1"], "eval.window_size=-1"),
    ("main", [*TINY, "--config.eval.window_batch=0"], "eval.window_batch=0"),
    ("main", [*TINY, "--config.eval.stride_fraction=0"], "stride_fraction"),
    ("main", [*TINY, "--config.eval.base_size=-1"], "eval.base_size=-1"),
    ("main", [*TINY, "--config.eval.num_images=-1"], "eval.num_images=-1"),
    ("main", [*TINY, "--config.checkpoint.keep=0"], "checkpoint.keep=0"),
    ("main", [*TINY, "--config.seed=-1"], "seed=-1"),
    ("main", [*TINY, "--config.non_finite=ignore"], "non_finite"),
    # Datasets.
    ("main", [*TINY, "--config.data.name=cityscape"], "data.name='cityscape'"),
    ("main", [*TINY, "--config.eval.split=vall"], "'vall'"),
    ("main", [*TINY, "--config.data.train_split=train+none"], "'train+none'"),
    ("main", [*TINY, "--config.data.manual_dir=/no/dataset"], "/no/dataset"),
    ("main", [*TINY, "--config.data.manual_dir={text}"], "{text}"),
    ("main", [*TINY, "--config.data.manual_dir={maskless}"],
     "{maskless}/trainannot/000.png"),
    ("main", [*TINY, "--config.data.data_dir={text}"], "{text}"),
    # Weights.
    ("main", [*TINY, "--config.model.pretrained=/no/w.npz"], "/no/w.npz"),
    ("main", [*TINY, "--config.model.pretrained={notnpz}"], "{notnpz}"),
    # Folders of runs.
    ("main", [*TINY, "--workdir={text}"], "{text}"),
    ("main", [*TINY, "--workdir={text}/run"], "{text}/run"),
    ("main", [*TINY, "--workdir=/proc/run"], "/proc/run"),
    ("main", ["--mode=eval", "--workdir=/no/run"], "--config"),
    ("main", [SCENES, "--mode=eval", "--workdir={nothing}"], "{nothing}"),
    ("main", ["--mode=eval", RUN, "--config.eval.step=7"], "7"),
    ("main", ["--mode=eval", RUN, "--config.model.depth=18"], "{run}"),
    ("main", ["--mode=eval", "--workdir={badrun}"], "{badrun}/config.json"),
    # predict.
    ("predict", ["--input={photo}"], "--workdir"),
    ("predict", [RUN], "--input"),
    ("predict", [RUN, "--input=/no/*.jpg"], "--input=/no/*.jpg"),
    ("predict", [RUN, "--input={nothing}"], "--input={nothing}"),
    ("predict", ["--workdir=/no/run", "--input={photo}"], "/no/run"),
    ("predict", ["--workdir={nothing}", "--input={photo}"], "{nothing}"),
    ("predict", ["--workdir={text}", "--input={photo}"], "{text}"),
    ("predict", ["--workdir={badrun}", "--input={photo}"], "{badrun}"),
    ("predict", [RUN, *LEFT_OUT, TO], "{text}"),
    ("predict", [RUN, "--input={photo}", "--step=7"], "7"),
    ("predict", [RUN, "--input={photo}", "--step=last"], "--step"),
    ("predict", [RUN, "--input={photo}", "--opacity=2"], "--opacity=2"),
    ("predict", [RUN, "--input={photo}", "--opacity=nan"], "--opacity"),
    ("predict", [RUN, "--input={photo}", TO, "--scales=0"], "scales"),
    ("predict", [RUN, "--input={photo}", TO, "--scales="], "scales=()"),
    ("predict", [RUN, "--input={photo}", "--scales=one"], "--scales"),
    ("predict", [RUN, "--input={photo}", TO, "--window=big"], "window='big'"),
    ("predict", [RUN, "--input={photo}", TO, "--window=-3"], "window"),
    ("predict", [RUN, "--input={photo}", TO, "--window=0"], "window"),
    ("predict", [RUN, "--input={photo}", TO, "--base_size=-1"], "base_size"),
    ("predict", [RUN, "--input={photo}", "--output={text}"], "{text}"),
    ("predict", [RUN, "--input={photo}", "--output=/proc/out"], "/proc/out"),
    ("predict", [RUN, "--input={photo}", "--flop"], "--flop"),
    # serve.
    ("serve", [], "--workdir"),
    ("serve", ["--workdir=/no/run"], "/no/run"),
    ("serve", ["--workdir={text}"], "{text}"),
    ("serve", [RUN, "--step=7"], "7"),
    ("serve", [RUN, "--port=http"], "--port"),
    ("serve", [RUN, "--port=99999"], "--port"),
    ("serve", [RUN, "--host=no.such.host.invalid"], "no.such.host.invalid"),
    ("serve", [RUN, "--max_megabytes=0"], "--max_megabytes"),
    # prepare.
    ("prepare", [], "--dataset"),
    ("prepare", ["--dataset=camvit"], "data.name='camvit'"),
    ("prepare", ["--dataset=camvid", "--manual_dir=/nowhere"], "/nowhere"),
    ("prepare", ["--dataset=camvid", "--manual_dir={camvid}",
                 "--data_dir={text}", "--allow_partial"], "{text}"),
    ("prepare", ["--dataset=camvid", "--manual_dir={camvid}", "--check",
                 "--allow_partial", "--output={text}"], "--output"),
    ("prepare", ["--dataset=camvid", "--chek"], "--chek"),
    # convert.
    ("convert", [], "SRC"),
    ("convert", ["/no/net.pth", "{new}"], "/no/net.pth"),
    ("convert", ["{text}", "{new}"], "{text}"),
    ("convert", ["{notnpz}", "{new}"], "{notnpz}"),
    ("convert", ["{notnpz}", "{new}.npz"], "{notnpz}"),
    ("convert", ["{notpth}", "{new}"], "{notpth}"),
    ("convert", ["{run}", "{new}"], "{new}"),
    ("convert", ["{nothing}", "{new}.safetensors"], "{nothing}"),
    ("convert", ["{run}", "{text}/mine.safetensors"], "{text}"),
    ("convert", ["{run}", "/proc/mine.safetensors"], "/proc/mine.safetensors"),
    ("convert", ["{notnpz}", "{run}"], "{run}"),
    ("convert", ["{notnpz}", "{new}", "--bins=one"], "--bins"),
    ("convert", ["{notnpz}", "{new}", "--num_classes=0"], "--num_classes"),
    ("convert", ["{notnpz}", "{new}", "--family=vgg"], "--family"),
    # tables, and Cityscapes' scores.
    ("tables", ["/no/eval.json"], "/no/eval.json"),
    ("tables", ["{text}"], "{text}"),
    ("tables", ["{nothing}"], "{nothing}"),
    ("tables", ["{run}/config.json"], "{run}/config.json"),
    ("tables", ["--jsn"], "--jsn"),
    ("cityscapes_scores", ["{nothing}"], "GROUND_TRUTH_DIR"),
    ("cityscapes_scores", ["{nothing}", "/no/truth"], "/no/truth"),
    # compile_tpu.
    ("compile_tpu", [SCENES], "--topology"),
    ("compile_tpu", ["--topology=v5e:2x4"], "--config"),
    ("compile_tpu", [SCENES, "--topology=v9:2x4"], "v9"),
    ("compile_tpu", [SCENES, "--topology=v5e:two"], "v5e:two"),
    ("compile_tpu", [SCENES, "--topology=v4-7"], "v4-7"),
    ("compile_tpu", [SCENES, "--topology=v5e:2x4", "--top=-1"], "top"),
    ("compile_tpu", [SCENES, "--topology=v5e:2x4", "--config.foo=1"], "'foo'"),
]


@pytest.fixture(scope="module")
def names(camvid_folder, data_dir, tmp_path_factory):
  """What {words} in the arguments stand for."""
  folder = tmp_path_factory.mktemp("mistakes")
  places = {name: folder / name for name in (
      "text", "nothing", "run", "badrun", "new", "photo", "maskless")}
  places |= {"camvid": camvid_folder, "data": data_dir,
             "broken": folder / "broken.py", "empty": folder / "empty.py",
             "notnpz": folder / "not.npz", "notpth": folder / "not.pth"}
  places["text"].write_text("hello\n")
  places["broken"].write_text("def get_config(:\n")
  places["empty"].write_text("# Nothing.\n")
  for name in ("notnpz", "notpth"):
    places[name].write_text("no weights\n")
  places["nothing"].mkdir()
  places["photo"] = camvid_folder / "val" / "000.png"
  places["badrun"].mkdir()
  (places["badrun"] / "config.json").write_text("{")
  for part in camvid_folder.rglob("*.png"):
    copy = places["maskless"] / part.relative_to(camvid_folder)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(part.read_bytes())
  (places["maskless"] / "trainannot" / "000.png").unlink()

  config = default_config.get_config()
  config.update_from_flattened_dict({
      "data.name": "camvid", "data.manual_dir": str(camvid_folder),
      "data.data_dir": str(data_dir), "data.allow_partial": True,
      "data.crop_size": 33, "model.num_classes": 11, "model.depth": 10,
      "model.width_multiplier": 0.0625})
  datasets.prepare(config)
  places["run"].mkdir()
  runs.save_config(config, places["run"])
  runs.save_classes(runs.Classes(camvid.TAXONOMY, (48, 64)), places["run"])
  checkpoints = checkpoint.Checkpoints(places["run"])
  checkpoints.save(jax.jit(lambda: train_step.create_train_state(
      create_model(config), config))())
  checkpoints.close()
  return {name: str(path) for name, path in places.items()}


def _named(text, names):
  for name, path in names.items():
    text = text.replace("{" + name + "}", path)
  return text


@pytest.fixture(scope="module")
def outcomes(names, tmp_path_factory):
  """(exit code, stderr) of each."""
  folder = tmp_path_factory.mktemp("stderr")
  cases = [(program, [_named(a, names) for a in args])
           for program, args, _ in MISTAKES]
  # Those that name no folder would make runs/NAME here.
  for number, (program, args) in enumerate(cases):
    if program == "main" and not any("workdir" in a for a in args):
      args.append(f"--workdir={folder / f'run{number}'}")
  done = subprocess.run(
      [sys.executable, "-c", RUN_ALL], input=json.dumps([str(folder), cases]),
      cwd=ROOT, capture_output=True, text=True, timeout=600,
      env=os.environ | {"COLUMNS": "80", "XDG_CACHE_HOME": str(folder)})
  assert done.returncode == 0, done.stderr
  return [(code, (folder / f"stderr{number}").read_text())
          for number, code in enumerate(json.loads(done.stdout))]


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[
    f"{program} {' '.join(args)[-40:]}" for program, args, _ in MISTAKES])
def test_mistakes(number, names, outcomes):
  code, said = outcomes[number]
  program, args, word = MISTAKES[number]
  assert "Traceback" not in said, said
  # A photograph that is none does not keep others from being labelled.
  assert code == (1 if (program, args[1:2]) == ("predict", LEFT_OUT) else 2)
  # The last line, with those that it counts up.
  last = re.split("^(?:python -m .*: )?(?:error|left out): ", said,
                  flags=re.MULTILINE)[-1]
  assert _named(word, names) in last, said
