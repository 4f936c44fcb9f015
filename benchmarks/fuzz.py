"""python -m benchmarks.fuzz [--inputs=10000] [--seed=0] [PARSER ...]

Files from strangers, good ones with bytes changed, cut out, doubled or swapped,
go through each of our parsers: the outcome is a value or an error of ours,
within a second. Each parser runs in a process of its own, so that a crash of a
library below it shows as well.
"""

import collections
import contextlib
import io
import json
import multiprocessing
import pathlib
import random
import tempfile
import time

import cv2
import numpy as np
from PIL import Image

from benchmarks import machine
from psp_jax.errors import UserError

TOO_LONG = 1.0  # Seconds.


# ---- Good files.


def _encoded(array, kind, **options) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(array).save(buffer, kind, **options)
  return buffer.getvalue()


def pictures() -> list[bytes]:
  rng = np.random.default_rng(0)
  rgb = rng.integers(0, 256, (24, 20, 3)).astype(np.uint8)
  ids = rng.integers(0, 12, (24, 20)).astype(np.uint8)
  palette = Image.fromarray(ids).convert("P")
  buffer = io.BytesIO()
  palette.save(buffer, "PNG", bits=4)
  deep = cv2.imencode(".png", ids.astype(np.uint16) * 1000)[1].tobytes()
  return [_encoded(rgb, "JPEG"), _encoded(rgb, "PNG"), _encoded(ids, "PNG"),
          _encoded(rgb, "WEBP"), _encoded(np.stack([ids] * 3, -1), "WEBP",
                                          lossless=True),
          _encoded(ids, "TIFF"), _encoded(rgb, "TIFF"), buffer.getvalue(), deep]


def class_lists() -> list[bytes]:
  return [text.encode() for text in (
      "id,name,colour\n0,road,#804080\n1,tree,\"1,2,3\"\n255,ignore,\n",
      "id;name\n0;water\n1;sky\n", "\ufeffId, Name, Color\r\n3, car, #fff\r\n")]


def weights(kind: str) -> list[bytes]:
  rng = np.random.default_rng(0)
  tensors = {f"layer{i}.{name}": rng.normal(size=(4, 3)).astype(np.float32)
             for i in range(2) for name in ("weight", "bias")}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"x{kind}"
    if kind == ".npz":
      np.savez(path, **tensors)
    elif kind == ".safetensors":
      from safetensors.numpy import save_file
      save_file(tensors, path)
    elif kind == ".h5":
      import h5py
      with h5py.File(path, "w") as file:
        for name, value in tensors.items():
          file[name.replace(".", "/")] = value
    else:
      import torch
      torch.save({"state_dict": {k: torch.from_numpy(v)
                                 for k, v in tensors.items()}}, path)
    return [path.read_bytes()]


def configs() -> list[bytes]:
  from psp_jax import default_config
  return [json.dumps(default_config.get_config().to_dict()).encode()]


# ---- Parsers: (good files, bytes -> anything).


def _of_bytes(name):
  def parse(data, unused_folder):
    from psp_jax.data import decode
    getattr(decode, name)(data, "x")
  return pictures, parse


def _of_weights(kind):
  def parse(data, folder):
    from psp_jax.pretrained import files
    path = folder / f"x{kind}"
    path.write_bytes(data)
    files.read(str(path))
  return lambda: weights(kind), parse


def _class_list(data, folder):
  from psp_jax.data import folder as dataset
  path = folder / "classes.csv"
  path.write_bytes(data)
  classes = dataset.read_classes(path)
  dataset.make_taxonomy(classes, path)
  dataset.colour_ids(classes, path)


def _config(data, folder):
  from psp_jax import saved_config
  (folder / "config.json").write_bytes(data)
  saved_config.get_config(folder)


def _history(data, folder):
  from psp_jax import history
  for name in ("validation.jsonl", "training.jsonl"):
    (folder / name).write_bytes(data)
  history.History(folder, 10).best_step()
  history.curves(folder)


PARSERS = {
    "photograph": _of_bytes("decode_image"), "mask": _of_bytes("decode_mask"),
    "colour mask": _of_bytes("decode_colours"),
    "instance ids": _of_bytes("decode_instances"),
    "class list": (class_lists, _class_list),
    "config.json": (configs, _config),
    "validation.jsonl": (
        lambda: [b'{"step": 5, "miou": 0.5, "loss": 0.5}\n'
                 b'{"step": 9, "miou": null, "loss": null}\n'],
        _history),
    **{f"weights {kind}": _of_weights(kind)
       for kind in (".pth", ".safetensors", ".npz", ".h5")}}


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
  """A few changes, of the kinds that files meet."""
  data = bytearray(data)
  for _ in range(draw.choice((1, 1, 2, 4, 16))):
    place = draw.randrange(len(data) + 1)
    length = draw.choice((1, 2, 4, 8, 64))
    kind = draw.randrange(6)
    if kind == 0 and place < len(data):
      data[place] ^= 1 << draw.randrange(8)
    elif kind == 1:
      data[place:place + length] = draw.randbytes(length)
    elif kind == 2:
      del data[place:place + length]
    elif kind == 3:
      data[place:place] = data[place:place + length]
    elif kind == 4:
      data[place:place + length] = bytes([draw.choice((0, 255))]) * length
    else:
      other = draw.choice(others)
      start = draw.randrange(len(other) + 1)
      data[place:place + length] = other[start:start + length]
  if draw.random() < 0.1:
    del data[draw.randrange(len(data) + 1):]
  return bytes(data)


def fuzz(name: str, inputs: int, seed: int, results) -> None:
  """Puts (outcome, count) pairs; what is no error of ours keeps its bytes."""
  good, parse = PARSERS[name]
  good = good()
  draw = random.Random(seed)
  counts, bad = collections.Counter(), []
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    with contextlib.suppress(UserError):
      parse(good[0], folder)  # Imports are in no input's time.
    for _ in range(inputs):
      data = mutated(draw.choice(good), good, draw)
      began = time.monotonic()
      try:
        parse(data, folder)
        counts["read"] += 1
      except UserError:
        counts["refused"] += 1
      except Exception as error:
        counts["crashed"] += 1
        bad.append((f"{type(error).__name__}: {error}"[:200], data.hex()))
      if time.monotonic() - began > TOO_LONG:
        counts["slow"] += 1
  results.put((dict(counts), bad[:5]))


def run(name: str, inputs: int, seed: int):
  """(counts, examples of what went wrong) of a parser."""
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  process = context.Process(target=fuzz, args=(name, inputs, seed, results))
  process.start()
  while process.is_alive() and results.empty():
    process.join(0.1)
  if results.empty():
    return {"crashed": 1}, [(f"the process ended with {process.exitcode}", "")]
  answer = results.get()
  process.join()
  return answer


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("parsers", nargs="*", default=list(PARSERS),
                      metavar="PARSER", help="which")
  parser.add_argument("--inputs", type=int, default=10_000, metavar="N",
                      help="for each parser")
  parser.add_argument("--seed", type=int, default=0, metavar="N",
                      help="of the changes")
  args = parser.parse_args()
  print("| parser | read | refused | crashed | over a second | seconds |\n"
        "|---|---|---|---|---|---|")
  worst = 0
  for name in args.parsers:
    began = time.monotonic()
    counts, bad = run(name, args.inputs, args.seed)
    cells = (counts.get(k, 0) for k in ("read", "refused", "crashed", "slow"))
    print(f"| {name} | {' | '.join(map(str, cells))} | "
          f"{time.monotonic() - began:.0f} |", flush=True)
    for what, data in bad:
      print(f"  {what} {data[:200]}")
    worst |= bool(bad or counts.get("slow"))
  raise SystemExit(worst)


if __name__ == "__main__":
  main()
