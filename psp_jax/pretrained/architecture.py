"""Which family and which network a file of weights holds.

Read off names and shapes alone. One array that is missing or misshapen must
not mislead it, so sizes are voted on by all the arrays that show them.
"""

import collections
import re

from psp_jax.errors import CheckpointError
from psp_jax.models.resnet import ARCHITECTURES
from psp_jax.pretrained.names import BACKBONES

Shapes = dict[str, tuple[int, ...]]

# A family is the first whose pattern some name matches.
_SIGNS = (
    ("caffe", r"conv\d_\d+_(3x3|1x1_\w+)(_s2)?/.*"),
    ("mmseg", r"backbone\.stem\..*"),
    ("mmseg_b", r"decode_head\..*"),
    ("smp", r"decoder\.psp\..*|segmentation_head\..*"),
    ("mit_semseg", r"(ppm\.\d|conv_last|cbr_deepsup).*"),
    ("semseg", r"(layer0|cls|ppm\.features)\..*"),
    ("timm_d", r"layer\d\.0\.downsample\.2\..*"),
    ("timm_deep", r"conv1\.\d\..*"),
    ("imagenet_v2", r"conv[23]\.weight"),
    ("imagenet", r"conv1\.weight"),
)
# Where each family keeps what counts classes, auxiliary and head channels.
_CLASSIFIERS = {
    "semseg": r"(cls|aux)\.4\.(weight|bias)",
    "mmseg": r"(decode|auxiliary)_head\.conv_seg\.(weight|bias)",
    "mit_semseg": r"(conv_last\.4|conv_last_deepsup)\.(weight|bias)",
    "smp": r"segmentation_head\.0\.(weight|bias)",
    "caffe": r"conv6/[01]"}
_AUX = {"semseg": r"aux\.[01]\.\w+", "mmseg": r"auxiliary_head\.convs\.0\..*",
        "mit_semseg": r"cbr_deepsup\.[01]\.\w+"}
_BRANCH = {"semseg": r"ppm\.features\.(\d+)\.1\.weight",
           "mmseg": r"decode_head\.psp_modules\.(\d+)\.1\.conv\.weight",
           "mit_semseg": r"ppm\.(\d+)\.1\.weight",
           "smp": r"decoder\.psp\.blocks\.(\d+)\.pool\.1\.0\.weight",
           "caffe": r"conv5_3_pool(\d+)_conv/0"}


def recognise(shapes: Shapes, family: str = "auto",
              bins: tuple[int, ...] | None = None) -> tuple[str, dict]:
  """The family, and the fields of `config.model` that describe the network.

  For an ImageNet backbone those are of the backbone alone. `bins` names the
  sizes of a pyramid that has not four.

  Raises:
    CheckpointError: it is none that is known, or a size cannot be told.
  """
  if family == "auto":
    found = next((name for name, sign in _SIGNS
                  if any(re.fullmatch(sign, key) for key in shapes)), None)
    if found is None:
      some = ", ".join(sorted(shapes)[:6])
      raise CheckpointError(
          f"of no family that is known (semseg, mmseg, mit_semseg, smp, caffe, "
          f"torchvision, timm, Keras); it has {len(shapes)} arrays: {some}, "
          "...")
    family = found
  fields = _backbone(shapes, family)
  if family in BACKBONES:
    return family, fields
  kind = "mmseg" if family == "mmseg_b" else family
  fields["num_classes"] = _vote(shapes, _CLASSIFIERS[kind], "class count")
  aux = _AUX.get(kind)
  fields["auxiliary"] = False
  if aux and any(re.fullmatch(aux, key) for key in shapes):
    fields["auxiliary"] = True
    fields["aux_channels"] = _vote(shapes, aux, "width of the auxiliary head")
  branches = {m[1] for key in shapes if (m := re.fullmatch(_BRANCH[kind], key))}
  fields["pyramid.bins"] = bins or _bins(branches)
  fields["align_corners"] = kind not in ("mmseg", "mit_semseg")
  fields["contract_dilation"] = kind in ("mmseg", "mit_semseg")
  if family == "smp":
    fields.update({
        "num_stages": 2, "pyramid.bin1_norm": False, "pyramid.fuse_size": 1,
        "classifier_size": 3, "dropout": 0.2, "head_channels": _vote(
            shapes, r"decoder\.conv\.[01]\.\w+", "width of the head")})
  # The released PSPNet50 strides in the 1x1, the 101s in the 3x3; their
  # arrays are the same.
  if family == "caffe" and fields["depth"] == 50:
    fields["stride_in"] = "1x1"
  return family, fields


def _backbone(shapes: Shapes, family: str) -> dict:
  if family == "caffe":
    block = r"conv([2-5])_(\d+)_(3x3)/0"
    convs = sum(bool(re.fullmatch(r"conv1_\d_3x3(_s2)?/0", k)) for k in shapes)
    inner, first = r"conv2_\d+_(1x1_reduce|3x3)/.*", 2
  else:
    block, first = r"(?:\w+\.)?layer([1-4])\.(\d+)\.conv(\d)\.weight", 1
    convs = sum(bool(re.fullmatch(
        r"(backbone\.|encoder\.)?(layer0\.[036]|stem\.[036]|conv1\.[036]"
        r"|conv[123])\.weight", key)) for key in shapes)
    inner = r"(?:\w+\.)?layer1\.\d+\.(conv|bn)[12]\..*"
  counts, deepest = collections.Counter(), 0
  for key in shapes:
    if match := re.fullmatch(block, key):
      stage = int(match[1]) - first
      counts[stage] = max(counts[stage], int(match[2]) + (first == 1))
      deepest = max(deepest, int(match[3][0]))
  blocks = tuple(counts[stage] for stage in range(4))
  kind = "bottleneck" if deepest == 3 else "basic"
  depth = next((d for d, found in ARCHITECTURES.items()
                if found == (blocks, kind)), None)
  if depth is None:
    known = ", ".join(map(str, ARCHITECTURES))
    raise CheckpointError(f"a {kind} ResNet with {blocks} blocks a stage is "
                          f"none of ResNet-{known}")
  width = _vote(shapes, inner, "width of layer1") / 64
  if convs < 2:
    stem = "7x7"
  else:
    first_conv = _vote(
        shapes, r"(backbone\.)?(layer0\.[014]|stem\.[014]|conv1\.[014]"
        r"|conv[12]|bn1|bn2)\.(weight|bias|running_\w+)"
        r"|conv1_[12]_3x3(_s2)?/(bn/)?\d", "width of the stem", axis=0)
    stem = "64-64-128" if first_conv >= 64 * width else "32-32-64"
  return {"depth": depth, "stem": stem, "stride_in": "3x3",
          "width_multiplier": width, "avg_down": family == "timm_d"}


def _vote(shapes: Shapes, pattern: str, what: str, axis: int = 0) -> int:
  """The size that most arrays of the pattern have along `axis`."""
  sizes = collections.Counter(
      max(shape) if len(shape) == 4 and shape[0] == 1 else shape[axis]
      for key, shape in shapes.items()
      if re.fullmatch(pattern, key) and len(shape) > axis)
  if not sizes:
    raise CheckpointError(f"the {what} cannot be told: no array is named like "
                          f"{pattern}")
  return sizes.most_common(1)[0][0]


def _bins(branches: set[str]) -> tuple[int, ...]:
  """Sizes do not show in the weights: four are the paper's."""
  try:
    return {4: (1, 2, 3, 6), 1: (1,), 0: ()}[len(branches)]
  except KeyError:
    raise CheckpointError(
        f"a pyramid of {len(branches)} branches: their sizes are not in the "
        "file, name them with --bins=1,2,3,6") from None
