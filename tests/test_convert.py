"""Published checkpoints in and out, by their full lists of names and shapes.

Each family's file is made with exactly the names and shapes listed for it. The
oracle is the PyTorch reference with the same tensors, put in their places by
the tables below.
"""

import json
import pathlib
import re
import subprocess
import sys

import flax.traverse_util
import jax
import numpy as np
import parity
import pytest
from safetensors.numpy import load_file, save_file

from psp_jax import convert, pretrained, runs, saved_config
from psp_jax.errors import CheckpointError, ConfigError
from psp_jax.models import create_model
from psp_jax.pretrained import architecture, files, names, networks

ROOT = pathlib.Path(__file__).parent.parent
BN = {"0": "weight", "1": "bias", "2": "running_mean", "3": "running_var"}
DEEP, V1C, PLAIN = parity.DEEP, parity.V1C, parity.PLAIN
CONTRACTED = {"contract_dilation": True, "align_corners": False}
SMP = {"num_stages": 2, "bin1_norm": False, "fuse_size": 1,
       "classifier_size": 3, "aux_channels": 0}

# list -> (family, classes, options of the reference, fields recognised)
NETWORKS = {
    "semseg_pspnet50_ade20k": ("semseg", 150, {}, {}),
    "semseg_pspnet101_voc2012": ("semseg", 21, {"depth": 101}, {"depth": 101}),
    "semseg_pspnet152_cityscapes": ("semseg", 19, None, {"depth": 152}),
    "mmseg_pspnet_r50-d8_ade20k": (
        "mmseg", 150, {"stem": V1C, **CONTRACTED},
        {"stem": "32-32-64", **CONTRACTED}),
    "mmseg_pspnet_r101-d8_cityscapes": (
        "mmseg", 19, None, {"depth": 101, "stem": "32-32-64", **CONTRACTED}),
    "mmseg_pspnet_r50b-d8_cityscapes": (
        "mmseg_b", 19, {"stem": PLAIN, **CONTRACTED},
        {"stem": "7x7", **CONTRACTED}),
    "mit_semseg_resnet50dilated_encoder": (
        "mit_semseg", 150, {"aux_channels": 512, **CONTRACTED},
        {"aux_channels": 512, **CONTRACTED}),
    "smp_pspnet_resnet50_depth3_c150": (
        "smp", 150, {"stem": PLAIN, **SMP},
        {"stem": "7x7", "num_stages": 2, "classifier_size": 3,
         "head_channels": 512, "auxiliary": False}),
    "caffe_p50": ("caffe", 150, {"stride_in": "1x1", "aux_channels": 0},
                  {"stride_in": "1x1", "auxiliary": False}),
    "caffe_pspnet101_cityscapes_713": (
        "caffe", 19, {"depth": 101, "aux_channels": 0}, {"depth": 101}),
}
BACKBONES = {
    "torchvision_resnet50": {"stem": "7x7"},
    "timm_resnet50": {"stem": "7x7"},
    "timm_resnet101": {"depth": 101, "stem": "7x7"},
    "timm_resnet50c": {"stem": "32-32-64"},
    "timm_resnet101d": {"depth": 101, "stem": "32-32-64", "avg_down": True},
    "timm_resnet50d": {"stem": "32-32-64", "avg_down": True},
    "timm_resnet50s": {"stem": "64-64-128"},
    "timm_resnet101s": {"depth": 101, "stem": "64-64-128"},
    "semseg_initmodel_resnet50_v2": {"stem": "64-64-128"},
}

_STAGES = (r"^(?:backbone|encoder)\.(layer\d)", r"\1")
RENAMES = {
    "semseg": [],
    "mmseg": [
        (r"^backbone\.stem", "layer0"), (r"^backbone\.conv1", "layer0.0"),
        (r"^backbone\.bn1", "layer0.1"), _STAGES,
        (r"^decode_head\.psp_modules\.(\d)\.1\.conv", r"ppm.features.\1.1"),
        (r"^decode_head\.psp_modules\.(\d)\.1\.bn", r"ppm.features.\1.2"),
        (r"^decode_head\.bottleneck\.conv", "cls.0"),
        (r"^decode_head\.bottleneck\.bn", "cls.1"),
        (r"^decode_head\.conv_seg", "cls.4"),
        (r"^auxiliary_head\.convs\.0\.conv", "aux.0"),
        (r"^auxiliary_head\.convs\.0\.bn", "aux.1"),
        (r"^auxiliary_head\.conv_seg", "aux.4")],
    "mit_semseg": [
        (r"^conv1\.", "layer0.0."), (r"^bn1\.", "layer0.1."),
        (r"^conv2\.", "layer0.3."), (r"^bn2\.", "layer0.4."),
        (r"^conv3\.", "layer0.6."), (r"^bn3\.", "layer0.7."),
        (r"^ppm\.(\d)\.", r"ppm.features.\1."),
        (r"^conv_last_deepsup", "aux.4"),
        (r"^conv_last\.", "cls."), (r"^cbr_deepsup\.", "aux.")],
    "smp": [
        (r"^encoder\.conv1", "layer0.0"), (r"^encoder\.bn1", "layer0.1"),
        _STAGES, (r"^decoder\.psp\.blocks\.(\d)\.pool\.1\.0",
                  r"ppm.features.\1.1"),
        (r"^decoder\.psp\.blocks\.(\d)\.pool\.1\.1", r"ppm.features.\1.2"),
        (r"^decoder\.conv\.", "cls."), (r"^segmentation_head\.0", "cls.4")],
}
RENAMES["mmseg_b"] = RENAMES["mmseg"]


def listed(shared, name) -> dict[str, tuple[int, ...]]:
  """The names and shapes of one list; Caffe's are worked out from layers."""
  folder = shared / "reference" / "checkpoint_keys"
  lines = [line for line in (folder / f"{name}.txt").read_text().splitlines()
           if line and not line.startswith("#")]
  if name.startswith("caffe"):
    return dict(_caffe_blobs(lines))
  return {key: tuple(json.loads(f"[{shape}]")) for key, shape in (
      re.fullmatch(r"(\S+) \[(.*)\]", line).groups() for line in lines)}


def _caffe_blobs(lines):
  outputs, inputs = {}, {}
  previous = 3
  for line in lines:
    layer, kind, *rest = line.split()
    if kind == "BN":
      channels = outputs[layer.removesuffix("/bn")]
      yield from ((f"{layer}/{i}", (1, channels, 1, 1)) for i in range(4))
      continue
    options = dict(item.split("=") for item in rest)
    out, size = int(options["out"]), int(options["k"])
    if layer.endswith("1x1_reduce"):
      inputs["block"] = previous
    into = previous
    if layer.endswith("1x1_proj"):
      into = inputs["block"]
    elif layer.startswith("conv5_3_pool"):
      into = 2048
    elif layer == "conv5_4":
      into = 4096
    yield f"{layer}/0", (out, into, size, size)
    if layer == "conv6":
      yield f"{layer}/1", (out,)
    outputs[layer], previous = out, out


def made(shared, name) -> dict[str, np.ndarray]:
  shapes = listed(shared, name)
  if name.endswith("_encoder"):
    shapes |= listed(shared, "mit_semseg_ppm_deepsup_decoder")
  out = {}
  for key, shape in shapes.items():
    plain = key.removeprefix("module.")
    if name.startswith("caffe") and "/bn/" in key:
      layer, field = key.split("/bn/")
      # The last gain of a block is small, as in parity.value_of.
      small = ".bn3" if layer.endswith("increase") else ""
      plain = f"{layer}{small}.{BN[field]}"
    elif name.startswith("caffe"):
      plain = f"{key[:-2]}.{'bias' if key.endswith('1') else 'weight'}"
    value = parity.value_of(
        plain, shape[1:2] if shape[:1] == (1,) else shape).reshape(shape)
    out[key] = (np.zeros(shape, np.int64) if "num_batches" in key else value)
  return out


def as_reference(family, tensors) -> dict[str, np.ndarray]:
  """The tensors under the reference's names, in its order of channels."""
  if family == "caffe":
    return _caffe_as_reference(tensors)
  out = {}
  for name, value in tensors.items():
    if re.search(r"num_batches|_tmp_|_running_iter|^encoder\.layer[34]", name):
      continue
    name = name.removeprefix("module.")
    for pattern, to in RENAMES[family]:
      name = re.sub(pattern, to, name)
    out[name] = value
  if family == "smp":  # [bins, features] there.
    k = out["cls.0.weight"]
    out["cls.0.weight"] = np.concatenate([k[:, 512:], k[:, :512]], 1)
  return out


def _caffe_as_reference(tensors):
  out = {}
  branch = {"1x1_reduce": "1", "3x3": "2", "1x1_increase": "3"}
  for name, value in tensors.items():
    layer, _, field = name.rpartition("/")
    norm = layer.endswith("/bn")
    layer = layer.removesuffix("/bn")
    if match := re.fullmatch(r"conv([2-5])_(\d+)_(.*)", layer):
      stage, block, kind = match.groups()
      place = f"layer{int(stage) - 1}.{int(block) - 1}"
      if kind == "1x1_proj":
        place = f"{place}.downsample.{int(norm)}"
      elif kind.startswith("pool"):
        at = "1236".index(kind[4])
        place = f"ppm.features.{at}.{1 + norm}"
      else:
        place = f"{place}.{'bn' if norm else 'conv'}{branch[kind]}"
    elif match := re.fullmatch(r"conv1_(\d)_3x3(?:_s2)?", layer):
      place = f"layer0.{3 * (int(match[1]) - 1) + norm}"
    else:
      place = {"conv5_4": f"cls.{int(norm)}", "conv6": "cls.4"}[layer]
    if norm:
      out[f"{place}.{BN[field]}"] = value.reshape(-1)
    else:
      out[f"{place}.{'weight' if field == '0' else 'bias'}"] = value
  k = out["cls.0.weight"]
  order = [(0, 2048), (3584, 4096), (3072, 3584), (2560, 3072), (2048, 2560)]
  out["cls.0.weight"] = np.concatenate([k[:, a:b] for a, b in order], 1)
  return out


def converted(tensors):
  shapes = {name: value.shape for name, value in tensors.items()}
  family, fields = architecture.recognise(shapes)
  return family, fields, networks.to_variables(tensors, family, fields)


def read_back(tmp_path, tensors):
  """Through a file, as a user's would come."""
  path = tmp_path / "weights.safetensors"
  save_file(tensors, path)
  return files.read(path)


# ---- Whole networks.


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_converts_and_answers_as_pytorchs(name, shared, tmp_path):
  family, classes, options, expected = NETWORKS[name]
  tensors = made(shared, name)
  found, fields, variables = converted(read_back(tmp_path, tensors))
  assert found == family
  config = networks.config_of(fields)
  flat = config.model.to_dict()
  assert flat["num_classes"] == classes
  defaults = {"depth": 50, "stem": "64-64-128", "stride_in": "3x3",
              "contract_dilation": False, "align_corners": True,
              "num_stages": 4, "classifier_size": 1}
  for field, value in {**defaults, **expected}.items():
    assert flat[field] == value, field
  if options is None:  # Names and shapes alone: time is dear.
    return
  torch = pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")
  model = parity.reference(
      {"num_classes": classes, **options},
      as_reference(family, tensors)).eval()
  size = (64, 96) if family == "smp" else (65, 89)
  photo = parity.photo(1, *size, 3)
  theirs = photo
  if family == "caffe":  # BGR minus a mean, and no division.
    rgb = photo * [58.395, 57.12, 57.375] + [123.675, 116.28, 103.53]
    theirs = (rgb[..., ::-1] - [103.939, 116.779, 123.68]).astype("f4")
  with torch.no_grad():
    theirs = model(torch.from_numpy(theirs.copy()).permute(0, 3, 1, 2))
  theirs = theirs[0].permute(1, 2, 0).numpy()
  ours = np.asarray(jax.jit(create_model(config).apply)(variables, photo))[0]
  largest = np.abs(theirs).max()
  assert theirs.std() > 0.05 * largest
  # Caffe's mean and ours are 0.005 grey levels apart outside the image.
  tolerance = 1e-3 if family == "caffe" else 1e-4
  assert np.abs(ours - theirs).max() <= tolerance * largest
  share = (ours.argmax(-1) == theirs.argmax(-1)).mean()
  assert share >= (0.998 if family == "caffe" else 0.9999)


def _middle(tensors):
  """A convolution and a BatchNorm array from the middle of the network."""
  kernels = [n for n, v in tensors.items() if v.ndim == 4 and min(v.shape) > 1]
  vectors = [n for n in tensors if n.endswith(("running_var", "/bn/3"))
             and "layer4" not in n and "layer3" not in n]
  return kernels[len(kernels) // 3], vectors[len(vectors) // 2]


# One of each family; the deeper ones differ in nothing but length.
WRONG = [n for n in [*NETWORKS, *BACKBONES]
         if "101" not in n and "152" not in n]


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_array_is_reported_by_its_name(name, shared):
  tensors = made(shared, name)
  kernel, vector = _middle(tensors)

  def problems(changed):
    with pytest.raises(CheckpointError) as error:
      converted({n.removeprefix("module."): v for n, v in changed.items()})
    return str(error.value).splitlines()[1:]

  short = {n.removeprefix("module."): n for n in (kernel, vector)}
  for plain, full in short.items():
    gone = {n: v for n, v in tensors.items() if n != full}
    assert [plain in line and "missing" in line
            for line in problems(gone)] == [True]
    bent = {**tensors, full: tensors[full][..., :-1, :]
            if tensors[full].ndim == 4 and tensors[full].shape[2] > 1
            else tensors[full][..., :-1] if tensors[full].ndim == 1
            else np.zeros((7, *tensors[full].shape[1:]), "f4")}
    assert [plain in line and "shape" in line
            for line in problems(bent)] == [True]
    renamed = {**gone, f"{full}x": tensors[full]}
    lines = problems(renamed)
    assert len(lines) == 2
    assert f"missing: {plain} " in lines[0] and f"{plain}x" in lines[1]
  both = {n: v for n, v in tensors.items() if n not in short.values()}
  both["stranger"] = np.zeros(3, "f4")
  assert len(problems(both)) == 3


# ---- Backbones.


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_converts(name, shared, tmp_path):
  tensors = made(shared, name)
  family, fields, variables = converted(read_back(tmp_path, tensors))
  expected = {"depth": 50, "avg_down": False, **BACKBONES[name]}
  assert {k: fields[k] for k in expected} == expected
  # Each array of the stages is where semseg's (torchvision's) names say.
  flat = flax.traverse_util.flatten_dict(variables)
  assert all(path[1] == "backbone" for path in flat)
  for path, value in flat.items():
    source = names.source_name("semseg", path, ())
    if family == "timm_d":
      source = re.sub(r"downsample\.(\d)", lambda m: "downsample."
                      f"{int(m[1]) + 1}", source)
    if source.startswith("layer0"):
      continue
    theirs = tensors[source]
    if theirs.ndim == 4:
      theirs = theirs.transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(value, theirs)
  # And the stem's by its shapes and order.
  stem = [k for k, v in tensors.items() if not k.startswith(("layer", "fc"))
          and v.ndim == 4]
  for i, key in enumerate(stem, start=1):
    np.testing.assert_array_equal(
        flat["params", "backbone", f"stem_conv{i}", "conv", "kernel"],
        tensors[key].transpose(2, 3, 1, 0))
  means = [v for k, v in tensors.items() if k.endswith("running_mean")
           and not k.startswith("layer")]
  for i, mean in enumerate(means, start=1):
    np.testing.assert_array_equal(
        flat["batch_stats", "backbone", f"stem_conv{i}", "bn", "mean"], mean)


# ---- Round trip, the run that a conversion makes, and the command.

SMALL = {"depth": 14, "width_multiplier": 0.125, "num_classes": 11}


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
  """A converted small PSPNet of semseg's make."""
  folder = tmp_path_factory.mktemp("converted")
  tensors = parity.tensors_of(SMALL)
  save_file({f"module.{n}": v for n, v in tensors.items()},
            folder / "semseg.safetensors")
  convert.import_network([folder / "semseg.safetensors"], folder / "run")
  return folder, tensors


def test_out_to_semseg_and_back_is_bit_identical(small_run, tmp_path):
  folder, tensors = small_run
  convert.export_semseg(folder / "run", tmp_path / "out.safetensors")
  out = load_file(tmp_path / "out.safetensors")
  assert set(out) == {f"module.{n}" for n in tensors} | {
      f"module.{n[:-len('running_var')]}num_batches_tracked"
      for n in tensors if n.endswith("running_var")}
  for name, value in tensors.items():
    np.testing.assert_array_equal(out[f"module.{name}"], value)
  convert.import_network([tmp_path / "out.safetensors"], tmp_path / "again")
  _, first = runs.load(folder / "run")
  _, second = runs.load(tmp_path / "again")
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_pth_is_written_for_semseg_and_read_again(small_run, tmp_path):
  torch = pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")
  folder, tensors = small_run
  convert.export_semseg(folder / "run", tmp_path / "out.pth")
  saved = torch.load(tmp_path / "out.pth", weights_only=True)
  assert set(saved) == {"epoch", "state_dict"}
  # As semseg loads it: strictly, into DataParallel.
  from torch_pspnet import PSPNet
  model = torch.nn.DataParallel(PSPNet(11, 14, width=0.125))
  model.load_state_dict(saved["state_dict"], strict=True)
  np.testing.assert_array_equal(
      model.module.cls[4].weight.detach().numpy(), tensors["cls.4.weight"])
  found = files.read(tmp_path / "out.pth")
  for name, value in tensors.items():
    np.testing.assert_array_equal(found[name], value)


def test_a_file_that_would_run_code_is_refused(tmp_path):
  torch = pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")

  class Trap:
    def __reduce__(self):
      return (open, (str(tmp_path / "ran"), "w"))

  torch.save({"state_dict": {"a": torch.zeros(2)}, "x": Trap()},
             tmp_path / "trap.pth")
  with pytest.raises(CheckpointError, match="would have to run code"):
    files.read(tmp_path / "trap.pth")
  assert not (tmp_path / "ran").exists()


def test_parameters_are_read_and_sparse_tensors_refused(tmp_path):
  torch = pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")
  weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
  torch.save({"a": weight, "b": weight.to(torch.bfloat16)},
             tmp_path / "good.pth")
  found = files.read(tmp_path / "good.pth")
  for name in "ab":
    np.testing.assert_array_equal(found[name], np.arange(6.0).reshape(2, 3))
  torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
  with pytest.raises(CheckpointError, match="not plain tensors"):
    files.read(tmp_path / "sparse.pth")


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "npz", "h5"])
@pytest.mark.parametrize("data", [b"", b"<html>404</html>", b"PK\x03\x04junk"])
def test_files_of_another_kind_are_refused(suffix, data, tmp_path):
  if suffix == "pth":
    pytest.importorskip("torch", reason="needs PyTorch: '.[parity]'")
  path = tmp_path / f"weights.{suffix}"
  path.write_bytes(data)
  with pytest.raises(CheckpointError, match=f"weights.{suffix}"):
    files.read(path)


def test_the_config_of_a_converted_network_builds_it_again(small_run):
  folder, _ = small_run
  config = saved_config.get_config(folder / "run")
  assert config.model.pyramid.bins == (1, 2, 3, 6)
  assert config.eval.absent_classes == "zero"
  config, state = runs.load(folder / "run")
  assert int(state.step) == 0
  tree = {"params": state.params, "batch_stats": state.batch_stats}
  back = networks.to_semseg(tree, config)
  np.testing.assert_array_equal(
      back["layer3.0.conv2.weight"],
      parity.tensors_of(SMALL)["layer3.0.conv2.weight"])


def test_new_classes_keep_everything_but_the_classifiers(small_run, tmp_path):
  folder, tensors = small_run
  convert.import_network([folder / "semseg.safetensors"], tmp_path / "run",
                         num_classes=4)
  config, state = runs.load(tmp_path / "run")
  assert config.model.num_classes == 4
  back = networks.to_semseg(
      {"params": state.params, "batch_stats": state.batch_stats}, config)
  for name, value in tensors.items():
    if name.startswith(("cls.4", "aux.4")):
      assert back[name].shape == (4, *value.shape[1:])
      assert 0 < np.abs(back[name]).max() <= back[name.replace(
          "bias", "weight")].shape[1]**-0.5
    else:
      np.testing.assert_array_equal(back[name], value)


@pytest.mark.parametrize("fields", [
    {"contract_dilation": True}, {"stem": "32-32-64"}, {"align_corners": False},
    {"pyramid.pool": "max"}, {"stride_in": "1x1"}])
def test_what_semseg_cannot_compute_is_not_written(fields):
  config = networks.config_of({**SMALL, **fields})
  with pytest.raises(ConfigError, match=next(iter(fields))):
    networks.to_semseg({"params": {}, "batch_stats": {}}, config)


def command(*args):
  return subprocess.run(
      [sys.executable, "-m", "psp_jax.convert", *map(str, args)], cwd=ROOT,
      capture_output=True, text=True)


def test_the_command_says_what_it_made_and_what_is_wrong(small_run, tmp_path):
  folder, _ = small_run
  done = command(folder / "semseg.safetensors", tmp_path / "run")
  assert done.returncode == 0, done.stderr
  assert "semseg, PSPNet-14" in done.stdout
  assert (tmp_path / "run" / "config.json").is_file()
  again = command(folder / "semseg.safetensors", tmp_path / "run")
  assert again.returncode == 2 and "holds a run already" in again.stderr
  absent = command(tmp_path / "none.pth", tmp_path / "other")
  assert absent.returncode == 2 and "no such file" in absent.stderr
  save_file({"a": np.zeros(3, "f4")}, tmp_path / "strange.safetensors")
  strange = command(tmp_path / "strange.safetensors", tmp_path / "other")
  assert strange.returncode == 2 and "strange.safetensors" in strange.stderr
  assert not (tmp_path / "other").exists()
  (tmp_path / "file").touch()
  nowhere = command(folder / "run", tmp_path / "file" / "out.safetensors")
  assert nowhere.returncode == 2 and str(tmp_path / "file") in nowhere.stderr
  for done in (again, absent, strange, nowhere):
    assert "Traceback" not in done.stderr


# ---- Where a run starts from: config.model.pretrained.


def start(path, **fields):
  """(variables before, variables after) of a small net that starts there."""
  config = networks.config_of({**SMALL, **fields})
  model = create_model(config)
  before = jax.tree.map(
      lambda s: np.full(s.shape, 7, s.dtype), jax.eval_shape(
          lambda: model.init(jax.random.key(0), np.zeros((1, 65, 65, 3)),
                             True)))
  return before, pretrained.load(str(path), before, config)


@pytest.mark.parametrize("classes", [11, 4])
def test_a_run_may_start_from_another_run(small_run, classes):
  folder, tensors = small_run
  before, after = start(folder / "run", num_classes=classes)
  config = networks.config_of({**SMALL, "num_classes": classes})
  back = networks.to_semseg(after, config)
  for name, value in tensors.items():
    if name.startswith(("cls.4", "aux.4")) and classes == 4:
      assert (back[name] == 7).all()  # As it was: drawn by the run.
    else:
      np.testing.assert_array_equal(back[name], value)


def test_another_network_is_no_start(small_run):
  folder, _ = small_run
  with pytest.raises(CheckpointError, match="pyramid/bin1") as error:
    start(folder / "run", **{"pyramid.bins": (2,)})
  assert "config.model.pretrained=" in str(error.value)


def test_a_backbone_of_our_own_needs_no_pytorch(shared, tmp_path):
  tensors = made(shared, "timm_resnet50d")
  save_file(tensors, tmp_path / "timm.safetensors")
  arrays, needs = pretrained.read_backbone(tmp_path / "timm.safetensors")
  pretrained.write_backbone(tmp_path / "own.npz", arrays, needs)
  again, needs_again = pretrained.read_backbone(tmp_path / "own.npz")
  assert needs_again == needs and needs["avg_down"] is True
  assert arrays.keys() == again.keys()
  for key, value in arrays.items():
    np.testing.assert_array_equal(again[key], value)
  with pytest.raises(CheckpointError) as error:
    start(tmp_path / "own.npz", depth=50, width_multiplier=1.0)
  assert "--config.model.stem=32-32-64" in str(error.value)
  assert "--config.model.avg_down=True" in str(error.value)


def test_a_whole_network_is_converted_before_it_is_a_start(small_run):
  folder, _ = small_run
  with pytest.raises(CheckpointError, match="psp_jax.convert"):
    start(folder / "semseg.safetensors")


# ---- The config that a run's folder carries.


def test_a_saved_config_is_the_one_that_was_saved(tmp_path):
  config = networks.config_of({**SMALL, "pyramid.bins": (1, 3)})
  config.eval.scales = (0.5, 1.0)
  runs.save_config(config, tmp_path)
  assert saved_config.get_config(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(("text", "message"), [
    ("{", "not readable JSON"), ('{"nonsense": 1}', "nonsense"),
    ('{"num_train_steps": "many"}', "not a config of this version"),
    (None, "no such file")])
def test_a_config_that_is_none_is_refused(text, message, tmp_path):
  if text is not None:
    (tmp_path / "config.json").write_text(text)
  with pytest.raises(ConfigError, match=message) as error:
    saved_config.get_config(tmp_path)
  assert str(tmp_path) in str(error.value)
