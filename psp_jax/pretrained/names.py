"""What each published family calls the arrays of our parameter tree.

A family is a function from a place in our tree, such as ("backbone",
"layer1_0", "conv1") or ("pyramid", "bin6"), to the names of its convolution
and its BatchNorm there.
"""

import re

Path = tuple[str, ...]

_TORCH_FIELDS = {("params", "scale"): "weight", ("params", "bias"): "bias",
                 ("batch_stats", "mean"): "running_mean",
                 ("batch_stats", "var"): "running_var"}
# Blobs of Caffe's BN layer, in its order.
_CAFFE_FIELDS = {("params", "scale"): "0", ("params", "bias"): "1",
                 ("batch_stats", "mean"): "2", ("batch_stats", "var"): "3"}
# Buffers that carry nothing: counters, and mit_semseg's own accumulators.
DROPPABLE = re.compile(
    r".*\.(num_batches_tracked|_tmp_running_mean|_tmp_running_var"
    r"|_running_iter)")


def source_name(family: str, path: Path, bins: tuple[int, ...]) -> str:
  """The family's name of one array.

  Args:
    family: a key of FAMILIES.
    path: (collection, module, ..., field) in our tree.
    bins: of the pyramid, whose order numbers its branches.
  """
  collection, *place, field = path
  norm = place[-1] == "bn"
  if place[-1] in ("bn", "conv"):
    place = place[:-1]
  conv, bn = FAMILIES[family](tuple(place), bins)
  if family == "caffe":
    if norm:
      return f"{bn}/{_CAFFE_FIELDS[collection, field]}"
    return f"{conv}/{'0' if field == 'kernel' else '1'}"
  if norm:
    return f"{bn}.{_TORCH_FIELDS[collection, field]}"
  return f"{conv}.{'weight' if field == 'kernel' else 'bias'}"


def _block(place: Path, downsample: int = 0) -> tuple[str, str]:
  """torchvision's names in the stages, which all PyTorch families share."""
  _, layer, branch = place
  prefix = layer.replace("_", ".")
  if branch == "downsample":
    return (f"{prefix}.downsample.{downsample}",
            f"{prefix}.downsample.{downsample + 1}")
  return f"{prefix}.{branch}", f"{prefix}.bn{branch[-1]}"


def _stem_number(place: Path) -> int | None:
  """1 of ("backbone", "stem_conv1"); None where it is not the stem."""
  if place[:1] == ("backbone",) and place[1].startswith("stem_conv"):
    return int(place[1][-1])
  return None


def _is_branch(place: Path) -> bool:
  return place[0] == "pyramid" and len(place) == 2


def _index(place: Path, bins) -> int:
  return bins.index(int(place[1].removeprefix("bin")))


def _semseg(place, bins):
  if number := _stem_number(place):
    at = 3 * (number - 1)
    return f"layer0.{at}", f"layer0.{at + 1}"
  if place[0] == "backbone":
    return _block(place)
  if _is_branch(place):
    branch = f"ppm.features.{_index(place, bins)}"
    return f"{branch}.1", f"{branch}.2"
  return {"pyramid": ("cls.0", "cls.1"), "classifier": ("cls.4", ""),
          "aux": ("aux.0", "aux.1"), "aux_classifier": ("aux.4", "")}[place[0]]


def _mmseg(place, bins, stem="stem.{}"):
  if number := _stem_number(place):
    if not stem:
      return "backbone.conv1", "backbone.bn1"
    at = 3 * (number - 1)
    return f"backbone.stem.{at}", f"backbone.stem.{at + 1}"
  if place[0] == "backbone":
    return tuple(f"backbone.{name}" for name in _block(place))
  if _is_branch(place):
    branch = f"decode_head.psp_modules.{_index(place, bins)}.1"
    return f"{branch}.conv", f"{branch}.bn"
  return {
      "pyramid": ("decode_head.bottleneck.conv", "decode_head.bottleneck.bn"),
      "classifier": ("decode_head.conv_seg", ""),
      "aux": ("auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn"),
      "aux_classifier": ("auxiliary_head.conv_seg", "")}[place[0]]


def _mmseg_b(place, bins):
  return _mmseg(place, bins, stem="")


def _mit_semseg(place, bins):
  if place[0] == "backbone":
    return _imagenet_v2(place, bins)
  if _is_branch(place):
    branch = f"ppm.{_index(place, bins)}"
    return f"{branch}.1", f"{branch}.2"
  return {"pyramid": ("conv_last.0", "conv_last.1"),
          "classifier": ("conv_last.4", ""),
          "aux": ("cbr_deepsup.0", "cbr_deepsup.1"),
          "aux_classifier": ("conv_last_deepsup", "")}[place[0]]


def _smp(place, bins):
  if _stem_number(place):
    return "encoder.conv1", "encoder.bn1"
  if place[0] == "backbone":
    return tuple(f"encoder.{name}" for name in _block(place))
  if _is_branch(place):
    branch = f"decoder.psp.blocks.{_index(place, bins)}.pool.1"
    return f"{branch}.0", f"{branch}.1"
  return {"pyramid": ("decoder.conv.0", "decoder.conv.1"),
          "classifier": ("segmentation_head.0", "")}[place[0]]


def _caffe(place, bins):
  if number := _stem_number(place):
    name = f"conv1_{number}_3x3" + ("_s2" if number == 1 else "")
  elif place[0] == "backbone":
    stage, block = place[1].removeprefix("layer").split("_")
    kind = {"conv1": "1x1_reduce", "conv2": "3x3", "conv3": "1x1_increase",
            "downsample": "1x1_proj"}[place[2]]
    name = f"conv{int(stage) + 1}_{int(block) + 1}_{kind}"
  elif _is_branch(place):
    name = f"conv5_3_pool{place[1].removeprefix('bin')}_conv"
  else:
    name = {"pyramid": "conv5_4", "classifier": "conv6"}[place[0]]
  return name, f"{name}/bn"


def _imagenet(place, bins):
  """torchvision, and timm's plain resnets."""
  return ("conv1", "bn1") if _stem_number(place) else _block(place)


def _imagenet_v2(place, bins):
  """semseg's initmodels with the deep stem, and mit_semseg's encoder."""
  number = _stem_number(place)
  return (f"conv{number}", f"bn{number}") if number else _block(place)


def _timm_deep(place, bins, downsample=0):
  """timm's c and s nets; the third BatchNorm of the stem is bn1."""
  number = _stem_number(place)
  if not number:
    return _block(place, downsample)
  at = 3 * (number - 1)
  return f"conv1.{at}", "bn1" if number == 3 else f"conv1.{at + 1}"


def _timm_d(place, bins):
  return _timm_deep(place, bins, downsample=1)


# Whole networks, then ImageNet backbones.
FAMILIES = {
    "semseg": _semseg, "mmseg": _mmseg, "mmseg_b": _mmseg_b,
    "mit_semseg": _mit_semseg, "smp": _smp, "caffe": _caffe,
    "imagenet": _imagenet, "imagenet_v2": _imagenet_v2,
    "timm_deep": _timm_deep, "timm_d": _timm_d,
}
BACKBONES = ("imagenet", "imagenet_v2", "timm_deep", "timm_d")
