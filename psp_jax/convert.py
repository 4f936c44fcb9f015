"""python -m psp_jax.convert SRC [SRC2] DST: published checkpoints in and out.

A whole PSPNet (semseg, mmsegmentation, mit_semseg as encoder and decoder, SMP,
Caffe as .npz) becomes a run's folder with its config: evaluate it, or train
on from it. An ImageNet backbone becomes an .npz that needs no PyTorch. A run's
folder becomes a checkpoint for hszhao/semseg (.pth, .safetensors).

  python -m psp_jax.convert train_epoch_100.pth runs/ade20k
  python -m psp_jax.convert resnet50_v2.pth resnet50.npz
  python -m psp_jax.convert runs/mine mine.pth
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import ml_collections  # noqa: E402
import numpy as np  # noqa: E402
from absl import logging  # noqa: E402

from psp_jax import checkpoint, pretrained, runs, train_step  # noqa: E402
from psp_jax.errors import (  # noqa: E402
  CheckpointError,
  StorageError,
  UserError,
  check_folder,
)
from psp_jax.pretrained import (  # noqa: E402
  architecture,
  files,
  networks,
)
from psp_jax.pretrained.names import BACKBONES, FAMILIES  # noqa: E402

# What a class count tells of the dataset, and how each is scored.
_DATASETS = {150: ("ade20k", 473, 512), 21: ("voc2012", 473, 512),
             19: ("cityscapes", 713, 2048)}


def import_network(sources, workdir, family="auto", num_classes=None,
                   bins=None) -> tuple[str, ml_collections.ConfigDict]:
  """Makes `workdir` a run at step 0 of a published PSPNet.

  Args:
    sources: its file, or files (mit_semseg has two).
    workdir: a folder without checkpoints.
    family: of `names.FAMILIES`; "auto" recognises it.
    num_classes: keeps everything but the classifiers, which start anew.
    bins: of the pyramid, where they are not (1, 2, 3, 6).

  Returns:
    The family and the config written.

  Raises:
    CheckpointError: what does not fit, every array by its name.
  """
  workdir = pathlib.Path(workdir)
  if (workdir / "checkpoints").exists():
    raise CheckpointError(f"{workdir}: holds a run already; name a new folder")
  tensors = {}
  for source in sources:
    found = files.read(source)
    if twice := sorted(tensors.keys() & found.keys()):
      raise CheckpointError(f"{source}: has {twice[0]} once more; name the "
                            "files of one network")
    tensors |= found
  shapes = {name: value.shape for name, value in tensors.items()}
  try:
    family, fields = architecture.recognise(shapes, family, bins)
    if family in BACKBONES:
      raise CheckpointError("an ImageNet backbone, not a PSPNet; convert it to "
                            "a file, DST.npz")
    variables = networks.to_variables(tensors, family, fields)
  except CheckpointError as error:
    named = ", ".join(map(str, sources))
    raise CheckpointError(f"{named}: {error}") from error
  if num_classes is not None:
    variables = networks.with_new_classifiers(variables, num_classes)
    fields["num_classes"] = num_classes
  config = networks.config_of(fields)
  config.model.dtype = "auto"
  _set_protocol(config, family)
  state = train_step.create_train_state(None, config, variables)
  workdir.mkdir(parents=True, exist_ok=True)
  runs.save_config(config, workdir)
  runs.save_classes(runs.load_classes(config, workdir), workdir)
  checkpoints = checkpoint.Checkpoints(workdir)
  checkpoints.save(jax.tree.map(jax.numpy.asarray, state))
  checkpoints.close()
  return family, config


def export_semseg(workdir, path) -> int:
  """Writes a run's last state for hszhao/semseg; returns its step."""
  config, state = runs.load(workdir)
  step = int(state.step)
  arrays = networks.to_semseg(
      {"params": state.params, "batch_stats": state.batch_stats}, config, step)
  # semseg loads with strict=False into DataParallel: without this prefix
  # nothing would be loaded, in silence.
  arrays = {f"module.{name}": value for name, value in arrays.items()}
  if pathlib.Path(path).suffix == ".safetensors":
    from safetensors import SafetensorError
    from safetensors.numpy import save_file
    try:
      save_file(arrays, path)
    except SafetensorError as error:
      raise StorageError(f"{path}: cannot be written ({error})") from error
    return step
  try:
    import torch
  except ImportError as error:
    raise CheckpointError(f"{path}: writing .pth needs PyTorch: pip install -e "
                          "'.[torch]'; or name a .safetensors file") from error
  tensors = {name: torch.from_numpy(np.array(v)) for name, v in arrays.items()}
  try:
    torch.save({"epoch": 0, "state_dict": tensors}, path)
  except RuntimeError as error:  # For an OSError.
    raise StorageError(f"{path}: cannot be written ({error})") from error
  return step


def _set_protocol(config, family) -> None:
  """How this family trains and scores, as far as the config can say."""
  name, crop, base = _DATASETS.get(
      config.model.num_classes, (config.data.name, 473, 512))
  config.data.name, config.data.crop_size = name, crop
  config.eval.base_size = base
  config.eval.absent_classes = "zero"
  if family in ("mmseg", "mmseg_b", "mit_semseg", "smp"):
    config.data.crop_size = -(-crop // 32) * 32
    config.eval.window = "whole"
    config.eval.flip = False
    config.eval.absent_classes = "skip"
    config.eval.base_side = "short"
    config.eval.base_size = 1024 if name == "cityscapes" else 512
  if family in ("mmseg", "mmseg_b"):
    config.eval.average = "logits"
    config.loss.normalizer = "all_pixels"


def _positive(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}: name a number, 1 or more")
  return int(text)


def _bins(text: str) -> tuple[int, ...]:
  return tuple(map(_positive, text.split(",")))


def _arguments():
  parser = argparse.ArgumentParser(
      prog="python -m psp_jax.convert",
      description=__doc__.partition("\n\n")[2],
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("src", nargs="+", metavar="SRC",
                      help="checkpoint file(s), or a run's folder")
  parser.add_argument("dst", metavar="DST", help="a new run's folder; DST.npz "
                      "for a backbone; DST.pth or DST.safetensors for semseg")
  parser.add_argument("--family", default="auto", choices=["auto", *FAMILIES],
                      metavar="NAME", help="whose names it has, where that is "
                      f"not seen: {', '.join(FAMILIES)}")
  parser.add_argument("--num_classes", type=_positive, metavar="N",
                      help="start new classifiers, keep all the rest")
  parser.add_argument("--bins", type=_bins, metavar="N,N",
                      help="pyramid sizes, where there are not four: 1,2,4")
  return parser.parse_args()


def main() -> None:
  args = _arguments()
  suffix = pathlib.Path(args.dst).suffix
  check_folder("DST", args.dst)
  pathlib.Path(args.dst).parent.mkdir(parents=True, exist_ok=True)
  if pathlib.Path(args.src[0]).is_dir():
    if suffix not in (".pth", ".safetensors"):
      raise CheckpointError(f"{args.dst}: a run's folder is converted to a "
                            ".pth or .safetensors file for semseg")
    step = export_semseg(args.src[0], args.dst)
    print(f"{args.dst}: step {step:,} of {args.src[0]}, for hszhao/semseg")
  elif suffix == ".npz":
    arrays, needs = pretrained.read_backbone(args.src[0])
    pretrained.write_backbone(args.dst, arrays, needs)
    flags = " ".join(f"--config.model.{k}={v}" for k, v in needs.items())
    print(f"{args.dst}: {len(arrays)} arrays; train from it with "
          f"--config.model.pretrained={args.dst} {flags}")
  else:
    family, config = import_network(
        args.src, args.dst, args.family, args.num_classes, args.bins)
    m = config.model
    print(f"{args.dst}: {family}, PSPNet-{m.depth}, stem {m.stem}, "
          f"{m.num_classes} classes, align_corners={m.align_corners}, "
          f"contract_dilation={m.contract_dilation}\n"
          f"evaluate: python -m psp_jax.main --mode=eval --workdir={args.dst}")


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  try:
    main()
  except (UserError, OSError) as error:  # An OSError names its file.
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
