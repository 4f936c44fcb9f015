"""python -m benchmarks.evaluate [--depth=50] [--crop=233] [--rounds=5]

Sliding-window, multi-scale, mirrored evaluation: seconds an image of semseg's
test program in PyTorch (a window and its mirror image at a time, float64 sums
and cv2 on the host; NCHW or channels_last, whichever is faster here) beside
`evaluate.Evaluator`, with the same weights and images, on the same cores.
Photographs are those in ../shared/data, or made where that is missing. The two
take turns; prints medians, ratios within rounds, and the pixels on which they
disagree.
The tests restate both the network (tests/torch_pspnet.py) and the program
(tests/semseg_protocol.py).
"""

import functools
import os
import pathlib
import sys
import time
import types

import cv2
import numpy as np
from PIL import Image

from benchmarks import machine

ROOT = pathlib.Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
CLASSES = 150
LAYOUTS = ("NCHW", "channels_last")
THEIRS, OURS = "semseg in PyTorch", "psp_jax"


# ---- Images.


def photographs(count: int):
  """Records of image, label and name: ADE20K's, CamVid's, or made ones."""
  ade = sorted((SHARED / "ade20k_sample").rglob("images/validation/*.jpg"))
  camvid = sorted((SHARED / "CamVid" / "test").glob("*.png"))
  found = [(p, pathlib.Path(str(p).replace("images", "annotations"))
            .with_suffix(".png")) for p in ade]
  found += [(p, p.parent.with_name("testannot") / p.name)
            for p in camvid[::max(1, len(camvid) // count)]]
  if not found:
    print("made images, for ../shared/data is not there", file=sys.stderr)
    return made_photographs(count)
  records = []
  for i in range(count):
    image, label = found[i % len(found)]
    records.append({
        "image": np.array(Image.open(image).convert("RGB")),
        # Stored 0 is unlabelled in ADE20K; CamVid's values are as good here.
        "label": np.array(Image.open(label)) - np.uint8(1),
        "name": image.stem.encode()})
  return records


def made_photographs(count: int):
  from psp_jax.data import scene_renderer
  records = []
  for i in range(count):
    size = [(683, 512), (500, 364), (400, 300)][i % 3]
    image, label = scene_renderer.render(i)
    records.append({
        "image": cv2.resize(image, size),
        "label": cv2.resize(label, size, interpolation=cv2.INTER_NEAREST),
        "name": str(i).encode()})
  return records


class Split(list):
  """Records in memory: decoding is in neither figure."""
  taxonomy = None


# ---- The two programs.


class PyTorch:
  """semseg's, by tests/semseg_protocol.py: one window and its mirror image."""

  def __init__(self, tensors, args, layout):
    import parity
    import torch
    self._torch, self._args = torch, args
    self._format = (torch.channels_last if layout == "channels_last"
                    else torch.contiguous_format)
    self.network = parity.reference(
        {"num_classes": CLASSES, "depth": args.depth}, tensors).eval().to(
            memory_format=self._format)
    self.in_network = 0.0

  def logits(self, batch):
    """(N, 3, h, w) numpy to (N, classes, h, w)."""
    torch = self._torch
    with torch.inference_mode():
      x = torch.from_numpy(batch).to(memory_format=self._format)
      began = time.perf_counter()
      answer = self.network(x)
      self.in_network += time.perf_counter() - began
      return answer

  def _window(self, unused_network, crop, flip):
    """tool/test.py's net_process."""
    import semseg_protocol
    crop = ((crop - semseg_protocol.MEAN) / semseg_protocol.STD).astype("f4")
    views = [crop, crop[:, ::-1]] if flip else [crop]
    answer = self._torch.softmax(self.logits(
        np.ascontiguousarray(np.stack(views).transpose(0, 3, 1, 2))), 1)
    if flip:
      answer = (answer[0] + answer[1].flip(2)) / 2
    else:
      answer = answer[0]
    return answer.numpy().transpose(1, 2, 0)

  def predict(self, record):
    import semseg_protocol
    args = self._args
    found = semseg_protocol.semseg_probabilities(
        None, record["image"], args.scales, args.base_size, args.crop,
        not args.no_flip, self._window).argmax(-1).astype(np.uint8)
    semseg_protocol.intersection_and_union(found, record["label"], CLASSES)
    return found


def weights(args, record):
  """Drawn from names; the classifier so that answers vary over classes."""
  import parity
  import semseg_protocol
  tensors = parity.tensors_of({"depth": args.depth}, CLASSES)
  crop = semseg_protocol.resize(record["image"], args.crop, args.crop)
  crop = ((crop - semseg_protocol.MEAN) / semseg_protocol.STD).astype("f4")
  logits = PyTorch(tensors, args, LAYOUTS[0]).logits(
      crop.transpose(2, 0, 1)[None])[0].numpy()
  gain = 2 / logits.std((1, 2))
  tensors["cls.4.weight"] *= gain[:, None, None, None].astype("f4")
  tensors["cls.4.bias"] = (
      (tensors["cls.4.bias"] - logits.mean((1, 2))) * gain).astype("f4")
  return tensors


class Ours:
  """The Evaluator, and the network without what surrounds it."""

  def __init__(self, tensors, args):
    import jax

    from psp_jax import evaluate
    from psp_jax.models import create_model, prepack
    from psp_jax.pretrained import networks
    fields = {"depth": args.depth, "num_classes": CLASSES}
    config = networks.config_of(fields)
    config.data.crop_size, config.data.num_threads = args.crop, 1
    config.eval.update({"scales": args.scales, "base_size": args.base_size,
                        "flip": not args.no_flip})
    if args.window_batch:
      config.eval.window_batch = args.window_batch
    model = create_model(config)
    variables = jax.device_put(
        networks.to_variables(tensors, "semseg", fields))
    self._state = types.SimpleNamespace(**variables)
    self.evaluator = evaluate.Evaluator(model, config)
    self.batch = config.eval.window_batch * (1 if args.no_flip else 2)
    apply = jax.jit(functools.partial(model.apply, train=False))
    windows = np.random.default_rng(0).normal(
        size=(self.batch, args.crop, args.crop, 3)).astype("f4")
    variables |= jax.jit(functools.partial(
        prepack, model, shape=windows.shape))(variables)
    self.network = lambda: apply(variables, windows).block_until_ready()

  def predict(self, records):
    found = []
    self.evaluator.run(self._state, Split(records),
                       on_prediction=lambda _, guess: found.append(guess))
    return found


# ---- Rounds.


def measure(args, records):
  """A round: {program: seconds of all images}; and {program: predictions}."""
  from psp_jax import sliding_window
  tensors = weights(args, records[0])
  theirs, layouts = faster_layout(tensors, args)
  ours = Ours(tensors, args)
  windows = sum(len(sliding_window.plan(
      *r["label"].shape, scale, ours.evaluator.protocol).offsets)
      for r in records for scale in args.scales)
  windows *= 1 if args.no_flip else 2
  found, rounds = {OURS: ours.predict(records)}, []  # Compiles all shapes.
  ours.network()
  for number in range(args.rounds):
    seconds = {}
    # The order turns: what comes first meets other caches and clocks.
    for name in (THEIRS, OURS)[::(-1) ** number]:
      began = time.perf_counter()
      if name == THEIRS:
        theirs.in_network = 0.0
        found[name] = [theirs.predict(r) for r in records]
        seconds[f"{name}: network"] = theirs.in_network
      else:
        found[name] = ours.predict(records)
      seconds[name] = time.perf_counter() - began
    began, calls = time.perf_counter(), max(1, windows // ours.batch // 4)
    for _ in range(calls):
      ours.network()
    each = (time.perf_counter() - began) / calls / ours.batch
    seconds[f"{OURS}: network"] = each * windows
    rounds.append(seconds)
    print({k: round(v, 2) for k, v in seconds.items()}, file=sys.stderr,
          flush=True)
  return rounds, found, windows, layouts


def faster_layout(tensors, args):
  """(the faster PyTorch side, {layout: median seconds of a window's pass})."""
  sides = {name: PyTorch(tensors, args, name) for name in LAYOUTS}
  pair = np.random.default_rng(0).normal(
      size=(1 if args.no_flip else 2, 3, args.crop, args.crop)).astype("f4")
  seconds = {name: [] for name in LAYOUTS}
  for i in range(4):
    for name, side in sides.items():
      side.in_network = 0.0
      side.logits(pair)
      if i:  # The first time is for memory and caches.
        seconds[name].append(side.in_network)
  medians = {name: float(np.median(s)) for name, s in seconds.items()}
  return sides[min(medians, key=medians.get)], medians


def report(args, records, rounds, found, windows, layouts) -> None:
  def median(values):
    return float(np.median(list(values)))

  where = machine.describe(
      args.threads, ("jax", "torch", "numpy", "opencv-python-headless"))
  images = len(records)
  print(f"\n{where}\nPSPNet{args.depth}, {CLASSES} classes, window "
        f"{args.crop}, base size {args.base_size}, scales {args.scales}; "
        f"{images} images, {windows / images:.1f} network images each; "
        f"medians of {len(rounds)} rounds\nPyTorch, a window's pass: "
        + ", ".join(f"{name} {seconds:.2f} s"
                    for name, seconds in layouts.items())
        + "\n\n| program | seconds an image | of it outside the network | "
        "times as fast |\n|---|---|---|---|")
  for name in (THEIRS, OURS):
    seconds = [r[name] / images for r in rounds]
    outside = median(1 - r[f"{name}: network"] / r[name] for r in rounds)
    ratios = [r[THEIRS] / r[name] for r in rounds]
    print(f"| {name} | {median(seconds):.2f} ({min(seconds):.2f} to "
          f"{max(seconds):.2f}) | {outside:.0%} | {median(ratios):.2f} "
          f"({min(ratios):.2f} to {max(ratios):.2f}) |")
  pixels = sum(r["label"].size for r in records)
  differ = sum((a != b).sum() for a, b in zip(found[OURS], found[THEIRS]))
  classes = len(np.unique(np.concatenate([p.ravel() for p in found[THEIRS]])))
  print(f"\nThe predictions, of {classes} classes, differ on {differ} of "
        f"{pixels} pixels")


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--depth", type=int, default=50, choices=(14, 50, 101),
                      help="of the ResNet")
  parser.add_argument("--crop", type=int, default=233, metavar="N",
                      help="pixels of the window's side")
  parser.add_argument("--base-size", type=int, default=256, metavar="N",
                      help="pixels of the long side at scale 1")
  parser.add_argument("--scales", type=float, nargs="+", metavar="X",
                      default=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
                      help="to average over")
  parser.add_argument("--no-flip", action="store_true",
                      help="without the mirror image")
  parser.add_argument("--images", type=int, default=1, metavar="N",
                      help="a round")
  parser.add_argument("--rounds", type=int, default=5, metavar="N",
                      help="turns of each")
  parser.add_argument("--threads", type=int, default=0, metavar="N",
                      help="cores; 0: all")
  parser.add_argument("--window-batch", type=int, default=0, metavar="N",
                      help="0: as the config has it")
  args = parser.parse_args()
  cores = sorted(os.sched_getaffinity(0))
  args.threads = args.threads or len(cores)
  args.scales = tuple(args.scales)
  # Before JAX and PyTorch make their threads.
  os.sched_setaffinity(0, cores[:args.threads])
  os.environ["JAX_PLATFORMS"] = "cpu"
  sys.path.insert(0, str(ROOT / "tests"))
  import torch
  torch.set_num_threads(args.threads)
  records = photographs(args.images)
  measured = measure(args, records)
  report(args, records, *measured)


if __name__ == "__main__":
  main()
