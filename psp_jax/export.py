"""python -m psp_jax.export --workdir=RUN --output=FILE [--size=HxW]

Writes a run's network, its weights inside, as one file that needs no psp_jax:

  stablehlo  for any machine with JAX (`jax.export`), on CPU, GPU and TPU
  onnx       for ONNX Runtime and all else that reads ONNX (opset 18)

Input `images`: uint8 RGB (N, H, W, 3), not normalised. Output, with
--outputs=labels, `labels`: the class ids (N, H, W), uint8 (int32 beyond 256
classes); with --outputs=probabilities, `probabilities`: float32
(N, H, W, classes). Both formats have H and W fixed, for the pyramid's bins
depend on them, and N fixed or not (--batch=any). All is computed in float32, in
one piece: without the windows, scales and mirror images of --mode=eval.

FILE.json beside it says what goes in and comes out, and has the classes' names
and colours. Before FILE gets its name it is run and compared with the library's
own network; exit code 2 where fewer than 99.9 % of the pixels agree.
"""

import argparse
import functools
import json
import os
import pathlib
import re
import sys
from typing import Any

# XLA calls it an error that transforming a kernel once takes it a second.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from absl import logging  # noqa: E402

import psp_jax  # noqa: E402
from psp_jax import runs  # noqa: E402
from psp_jax.data.decode import decode_image  # noqa: E402
from psp_jax.data.normalize import normalize  # noqa: E402
from psp_jax.errors import (  # noqa: E402
  ConfigError,
  DataError,
  ExportError,
  StorageError,
  UserError,
)
from psp_jax.models import create_model  # noqa: E402
from psp_jax.workdir import write_text  # noqa: E402

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_DEFAULT_PLATFORMS = ("cpu", "cuda", "tpu")
AGREEMENT = 0.999  # Of the pixels' classes, at least.

_RUN_STABLEHLO = """\
import jax  # pip install jax flatbuffers
with open({path!r}, "rb") as file:
  run = jax.jit(jax.export.deserialize(bytearray(file.read())).call)
{output} = run(images)  # uint8 RGB {shape}"""
_RUN_ONNX = """\
import onnxruntime  # pip install onnxruntime
session = onnxruntime.InferenceSession(
    {path!r}, providers=["CPUExecutionProvider"])
{output}, = session.run(None, {{"images": images}})  # uint8 RGB {shape}"""


def inference(config, state, outputs: str = "labels"):
  """What is exported: uint8 RGB (N, H, W, 3) to `outputs`.

  Args:
    config: of the run.
    state: with params and batch_stats.
    outputs: "labels" or "probabilities".

  Returns:
    A function of (variables, images), pure, and the variables.
  """
  config = config.copy_and_resolve_references()
  config.model.layout, config.model.dtype = "plain", "float32"
  config.model.remat = False
  model: Any = create_model(config)
  # Out of reach of this machine's devices, which no exported program knows.
  variables = jax.device_get(
      {"params": state.params, "batch_stats": state.batch_stats})
  dtype = jnp.uint8 if model.num_classes <= 256 else jnp.int32

  def run(variables, images):
    logits = model.apply(variables, normalize(images), train=False)
    if outputs == "probabilities":
      return jax.nn.softmax(logits)
    return jax.lax.argmax(logits, 3, jnp.int32).astype(dtype)
  return run, variables


def to_stablehlo(function, images, output_name: str, platforms) -> bytes:
  """`jax.export`'s serialized program; each platform has its own forms."""
  del output_name  # The format has none.
  try:
    return bytes(jax.export.export(
        jax.jit(function), platforms=platforms)(images).serialize())
  except ImportError as error:
    raise _missing("stablehlo", error) from error


def run_stablehlo(path):
  exported = jax.export.deserialize(bytearray(path.read_bytes()))
  return jax.jit(exported.call)


def to_onnx(function, images, output_name: str, _) -> bytes:
  try:
    from psp_jax import onnx_graph
  except ImportError as error:
    raise _missing("onnx", error) from error
  try:
    return onnx_graph.to_model(
        function, images, "images", output_name).SerializeToString()
  except NotImplementedError as error:
    raise ExportError(f"--format=onnx: does not know {error}, which this "
                      "network has; use --format=stablehlo") from error


def run_onnx(path):
  import onnxruntime
  session = onnxruntime.InferenceSession(
      str(path), providers=["CPUExecutionProvider"])
  return lambda images: session.run(None, {"images": images})[0]


# format -> (its writer, what runs a file, the same as text).
FORMATS = {"stablehlo": (to_stablehlo, run_stablehlo, _RUN_STABLEHLO),
           "onnx": (to_onnx, run_onnx, _RUN_ONNX)}


def _missing(format_, error) -> ExportError:
  return ExportError(f"--format={format_}: needs {error.name}, which is not "
                     "installed: pip install 'psp_jax[export]'")


def check(run, forward, images, outputs: str):
  """How far the file's answers are the library's.

  Args:
    run: the file's, by its own runtime.
    forward: the library's.
    images: uint8 RGB (N, H, W, 3).
    outputs: "labels" or "probabilities".

  Returns:
    The share of pixels whose class is the same, how many classes appear, and
    for probabilities the largest difference of any, else None.
  """
  found, expected = (np.asarray(f(images)) for f in (run, forward))
  if found.shape != expected.shape or found.dtype != expected.dtype:
    raise ExportError(f"the file's answer is {found.dtype} {found.shape}, not "
                      f"{expected.dtype} {expected.shape}")
  largest = None
  if outputs == "probabilities":
    largest = float(np.abs(found - expected).max())
    found, expected = found.argmax(-1), expected.argmax(-1)
  return float((found == expected).mean()), len(np.unique(expected)), largest


def _test_images(count, height, width, photo):
  """Random shapes in random colours, or a photograph and its mirror image."""
  if photo:
    try:
      image = decode_image(photo.read_bytes(), str(photo))
    except OSError as error:
      raise DataError(f"--image={photo}: cannot be read ({error.strerror})"
                      ) from error
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.stack([image[:, ::-1] if i % 2 else image for i in range(count)])
  rng = np.random.default_rng(0)
  images = []
  for _ in range(count):
    cells = rng.integers(0, 256, (6, 8, 3)).astype(np.float32)
    image = cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
    image = image + rng.normal(0, 8, image.shape)
    images.append(np.clip(image, 0, 255).astype(np.uint8))
  return np.stack(images)


def export(args) -> None:
  """Writes the file and its .json; prints what was written.

  Raises:
    UserError: the run, the size or the output will not do, a package is
      missing, or the file's answers are not the library's.
  """
  if not args.output.parent.is_dir():
    raise StorageError(f"--output={args.output}: there is no folder "
                       f"{args.output.parent}; make it first")
  if args.output.is_dir():
    raise StorageError(f"--output={args.output}: is a folder; name a file")
  write, run, snippet = FORMATS[args.format]
  photos, said = None, "none"
  config, state = runs.load(args.workdir, args.step)
  height, width = args.size or (config.data.crop_size,) * 2
  least = config.model.output_stride
  if min(height, width) < least:
    raise ConfigError(f"--size={height}x{width}: below what the network sees "
                      f"as one pixel; use {least}x{least} or more")
  forward, variables = inference(config, state, args.outputs)
  function = functools.partial(forward, variables)
  batch = args.batch or jax.export.symbolic_shape("N")[0]
  images = jax.ShapeDtypeStruct((batch, height, width, 3), jnp.uint8)
  if not args.no_check:  # Of any batch, one that nothing is traced with.
    photos = _test_images(args.batch or 2, height, width, args.image)
  content = write(function, images, args.outputs, args.platforms)
  part = args.output.with_name(f".{args.output.name}.part")
  try:
    part.write_bytes(content)
    if photos is not None:
      said = _checked(run, part, functools.partial(
          jax.jit(forward), variables), photos, args)
    part.replace(args.output)
  except OSError as error:
    raise StorageError(f"--output={args.output}: cannot be written "
                       f"({error.strerror})") from error
  finally:
    part.unlink(missing_ok=True)
  answer = jax.eval_shape(function, images)
  taxonomy = runs.load_classes(config, args.workdir).taxonomy
  shown = [["N" if not isinstance(d, int) else d for d in a.shape]
           for a in (images, answer)]
  platforms = list(args.platforms) if args.format == "stablehlo" else None
  beside = args.output.with_name(args.output.name + ".json")
  write_text(beside, json.dumps({
      "format": args.format, "platforms": platforms,
      "input": {"name": "images", "dtype": "uint8", "shape": shown[0],
                "channels": "RGB, 0 to 255, not normalised"},
      "output": {"name": args.outputs, "dtype": str(answer.dtype),
                 "shape": shown[1]},
      "class_names": list(taxonomy.class_names),
      "palette": taxonomy.palette.tolist(), "step": int(state.step),
      "psp_jax": psp_jax.__version__, "jax": jax.__version__,
      "config": config.to_dict()}, indent=2) + "\n")
  shapes = ["({})".format(", ".join(map(str, s))) for s in shown]
  size = len(content) / 1e6
  print(f"written   {args.output}, {size:.1f} MB, and {beside.name}",
        f"network   step {int(state.step):,} of {args.workdir}",
        f"input     images: uint8 RGB {shapes[0]}, not normalised",
        f"output    {args.outputs}: {answer.dtype} {shapes[1]}",
        *([f"platforms {', '.join(platforms)}"] if platforms else []),
        f"check     {said}", "", snippet.format(
            path=str(args.output), output=args.outputs, shape=shapes[0]),
        sep="\n", flush=True)


def _checked(run, path, forward, photos, args) -> str:
  here = jax.default_backend()
  here = {"gpu": "cuda"}.get(here, here)
  if args.format == "stablehlo" and here not in args.platforms:
    return f"none: written for {', '.join(args.platforms)}, this is a {here}"
  try:
    agreement, classes, largest = check(
        run(path), forward, photos, args.outputs)
  except ImportError as error:
    raise _missing(args.format, error) from error
  said = (f"{100 * agreement:.4g} % of {photos.size // 3:,} pixels have the "
          f"library's class, of {classes} that appear")
  if agreement < AGREEMENT:
    raise ExportError(f"{args.output}: not written: only {said}; "
                      f"{100 * AGREEMENT:g} % are asked for")
  if largest is not None:
    said += f", probabilities differ by {largest:.1e} at most"
  return said


def _size(text: str) -> tuple[int, int]:
  found = re.fullmatch(r"(\d+)x(\d+)", text)
  if not found:
    raise argparse.ArgumentTypeError(f"{text!r}: use HEIGHTxWIDTH, as 473x473")
  return int(found[1]), int(found[2])


def _batch(text: str) -> int | None:
  if text == "any":
    return None
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r}: use a number from 1, or any")
  return int(text)


def _platforms(text: str) -> tuple[str, ...]:
  names = tuple(dict.fromkeys(text.split(",")))
  if unknown := [name for name in names if name not in PLATFORMS]:
    raise argparse.ArgumentTypeError(
        f"{unknown[0]!r}: choose from {', '.join(PLATFORMS)}")
  return names


def _arguments(argv):
  parser = argparse.ArgumentParser(
      prog="python -m psp_jax.export", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, metavar="RUN",
                      help="a run's folder, trained or converted")
  parser.add_argument("--output", required=True, metavar="FILE",
                      type=pathlib.Path)
  parser.add_argument("--format", choices=FORMATS,
                      help="by FILE's suffix, .onnx or other, if left out")
  parser.add_argument("--step", type=int, help="of the checkpoint (the last)")
  parser.add_argument("--size", type=_size, metavar="HxW",
                      help="of the images (the run's crop size)")
  for side in ("height", "width"):
    parser.add_argument(f"--{side}", type=int, help="instead of --size")
  parser.add_argument("--batch", type=_batch, default="any", metavar="N|any",
                      help="images at a time (any)")
  parser.add_argument("--outputs", choices=["labels", "probabilities"],
                      default="labels")
  parser.add_argument("--platforms", type=_platforms, metavar="P,P",
                      default=_DEFAULT_PLATFORMS,
                      help=f"of stablehlo: {', '.join(PLATFORMS)} (cpu,cuda,"
                      "tpu); fewer make no faster program")
  parser.add_argument("--image", type=pathlib.Path, metavar="PHOTO",
                      help="to check with, instead of a random one")
  parser.add_argument("--no_check", action="store_true")
  args = parser.parse_args(argv)
  sides = args.height, args.width
  if sides != (None, None):
    if None in sides or args.size:
      parser.error("--height and --width go together, or --size=HxW alone")
    args.size = sides
  args.format = args.format or (
      "onnx" if args.output.suffix == ".onnx" else "stablehlo")
  return args


def main(argv=None) -> int:
  args = _arguments(argv)
  logging.set_verbosity(logging.WARNING)
  try:
    export(args)
  except (UserError, OSError) as error:  # An OSError names its file.
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
