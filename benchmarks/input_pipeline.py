"""python -m benchmarks.input_pipeline [--photos=DIR] [--rounds=7]

Images a second of the input pipeline and of its stages, beside semseg's chain
restated in cv2 and numpy: 512x683 JPEGs (quality 90) and PNG masks to batches
of 16 crops of 473x473. Photographs are rendered scenes with noise, of the size
in bytes that ADE20K's have, or those in DIR (which are only read). Every
measurement is a process of its own, pinned to one core or two; all of them stay
and take turns, so that whatever else the machine does meets them alike. Prints
medians, and ratios within rounds. CPU seconds leave out what others take of a
core.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
from PIL import Image

from benchmarks import machine

HEIGHT, WIDTH, CROP, BATCH = 512, 683, 473, 16
PHOTOS, RECORDS = 48, 1000
MEAN = np.array([0.485, 0.456, 0.406]) * 255
STD = np.array([0.229, 0.224, 0.225]) * 255


# ---- Photographs.


def make_photos(root: pathlib.Path, photos: str) -> None:
  """A dataset in CamVid's layout: JPEGs of 512x683, masks of 12 values."""
  from psp_jax.data import scene_renderer
  files = sorted(pathlib.Path(photos).iterdir()) if photos else []
  files = files[::max(1, len(files) // PHOTOS)][:PHOTOS]
  rng = np.random.default_rng(0)
  for split, count in (("train", len(files) or PHOTOS), ("val", 1),
                       ("test", 1)):
    for kind in (split, f"{split}annot"):
      (root / kind).mkdir(parents=True)
    for i in range(count):
      image, label = scene_renderer.render(i)
      label = cv2.resize(label, (WIDTH, HEIGHT),
                         interpolation=cv2.INTER_NEAREST)
      if files:
        image = cv2.resize(cv2.imread(str(files[i])), (WIDTH, HEIGHT))
      else:
        image = cv2.resize(image[..., ::-1], (WIDTH, HEIGHT)).astype(float)
        # A sensor's: some of it coloured over, some as fine as a pixel.
        noise = rng.normal(size=(2, HEIGHT, WIDTH, 3))
        image += 6 * cv2.GaussianBlur(noise[0], (0, 0), 1) + 2 * noise[1]
      cv2.imwrite(str(root / split / f"{i:03}.jpg"),
                  np.clip(image, 0, 255).astype(np.uint8),
                  [cv2.IMWRITE_JPEG_QUALITY, 90])
      Image.fromarray(label).save(root / f"{split}annot" / f"{i:03}.png")
  # Grain's shuffle takes longer the fewer records there are: as many as a
  # small dataset has.
  count = len(files) or PHOTOS
  for i in range(count, RECORDS):
    for kind, suffix in (("train", "jpg"), ("trainannot", "png")):
      os.link(root / kind / f"{i % count:03}.{suffix}",
              root / kind / f"{i:03}.{suffix}")


def make_config(root: pathlib.Path):
  from psp_jax import default_config
  c = default_config.get_config()
  c.data.name = "camvid"
  c.data.manual_dir, c.data.data_dir = str(root / "CamVid"), str(root / "tfds")
  c.data.allow_partial = True
  c.data.crop_size, c.global_batch_size = CROP, BATCH
  return c


# ---- semseg (tool/train.py, util/transform.py, util/dataset.py), restated
# from its public description.


def semseg_read(files):
  image = cv2.imread(str(files[0]), cv2.IMREAD_COLOR)
  image = np.float32(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
  return image, cv2.imread(str(files[1]), cv2.IMREAD_GRAYSCALE)


def semseg_augment(image, label):
  scale = random.uniform(0.5, 2)
  image = cv2.resize(image, None, fx=scale, fy=scale,
                     interpolation=cv2.INTER_LINEAR)
  label = cv2.resize(label, None, fx=scale, fy=scale,
                     interpolation=cv2.INTER_NEAREST)
  if random.random() < 0.5:
    height, width = label.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2),
                                   random.uniform(-10, 10), 1)
    image = cv2.warpAffine(
        image, turn, (width, height), flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=MEAN.tolist())
    label = cv2.warpAffine(
        label, turn, (width, height), flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT, borderValue=255)
  if random.random() < 0.5:
    image = cv2.GaussianBlur(image, (5, 5), 0)
  if random.random() < 0.5:
    image, label = cv2.flip(image, 1), cv2.flip(label, 1)
  down, right = (max(CROP - n, 0) for n in label.shape)
  if down or right:
    edges = down // 2, down - down // 2, right // 2, right - right // 2
    image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT,
                               value=MEAN.tolist())
    label = cv2.copyMakeBorder(label, *edges, cv2.BORDER_CONSTANT, value=255)
  top, left = (random.randint(0, n - CROP) for n in label.shape)
  return (image[top:top + CROP, left:left + CROP],
          label[top:top + CROP, left:left + CROP])


def semseg_tensors(image, label):
  """ToTensor and Normalize: float32 CHW, in place by channel, and int64."""
  image = image.transpose(2, 0, 1)
  for channel, mean, std in zip(image, MEAN, STD):
    channel -= np.float32(mean)
    channel /= np.float32(std)
  return image, label.astype(np.int64)


def semseg_batches(root):
  folder = root / "CamVid" / "train"
  files = [(p, root / "CamVid" / "trainannot" / f"{p.stem}.png")
           for p in sorted(folder.iterdir())]
  random.seed(0)
  while True:
    crops = [semseg_tensors(*semseg_augment(*semseg_read(f)))
             for f in random.choices(files, k=BATCH)]
    yield [np.stack(arrays) for arrays in zip(*crops)]


# ---- What a process measures when it is its turn.


def stages(root) -> dict[str, float]:
  """CPU seconds an image, over all photographs once."""
  import tensorflow_datasets as tfds

  from psp_jax.data import augment, datasets, decode
  config = make_config(root)
  skip = tfds.decode.SkipDecoding()
  records = datasets.prepare(config).as_data_source(
      "train", decoders={"image": skip, "label": skip})
  split = datasets.open_split(config, "train")
  files = [(root / "CamVid" / "train" / f"{i:03}.jpg",
            root / "CamVid" / "trainannot" / f"{i:03}.png")
           for i in range(PHOTOS)]
  encoded = [records[i] for i in range(PHOTOS)]
  decoded = [split[i] for i in range(PHOTOS)]
  floats = [(np.float32(d["image"]), d["label"]) for d in decoded]
  rng = np.random.default_rng(0)
  random.seed(0)

  def augmented(record):
    drawn = augment.draw_for(rng, record["label"], CROP, config)
    return augment.apply(drawn, record["image"], record["label"], CROP)

  crops = [augmented(d) for d in decoded[:BATCH]]
  tensors = [(a.transpose(2, 0, 1).astype(np.float32), b.astype(np.int64))
             for a, b in crops]

  def batch(crops):
    return lambda i: i % BATCH or [np.stack(a) for a in zip(*crops)]

  work = {
      "array_record": lambda i: records[i],
      "JPEG": lambda i: decode.decode_image(encoded[i]["image"], ""),
      "mask": lambda i: decode.decode_mask(encoded[i]["label"], ""),
      "all of a record": lambda i: split[i],
      "augmentation": lambda i: augmented(decoded[i]),
      "batch": batch(crops),
      "semseg: files, JPEG, mask": lambda i: semseg_read(files[i]),
      "semseg: augmentation": lambda i: semseg_augment(*floats[i]),
      "semseg: tensors": lambda i: semseg_tensors(
          floats[i][0][:CROP, :CROP].copy(), floats[i][1][:CROP, :CROP]),
      "semseg: batch": batch(tensors)}
  seconds = {}
  for name, run in work.items():
    began = time.process_time()
    for i in range(PHOTOS):
      run(i)
    seconds[name] = (time.process_time() - began) / PHOTOS
  return seconds


def cpu_seconds() -> float:
  """Of this process and its workers so far."""
  seconds = time.process_time()
  for worker in multiprocessing.active_children():
    # After the name, which may hold spaces, comes field 3.
    fields = pathlib.Path(f"/proc/{worker.pid}/stat").read_text().rpartition(
        ")")[2].split()
    seconds += sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
  return seconds


def serve(kind: str, root: pathlib.Path) -> None:
  """Answers each line of stdin with one measurement, as JSON."""
  batches = None
  if kind == "stages":
    stages(root)  # Imports, and the files into the page cache.
  elif kind == "semseg":
    cv2.setNumThreads(0)
    batches = semseg_batches(root)
  else:
    from psp_jax.data import datasets, input_pipeline
    config = make_config(root)
    config.data.workers, workers, gib = kind.split(":")
    config.data.num_threads, config.data.cache_gib = int(workers), float(gib)
    split = datasets.open_split(config, "train")
    batches = input_pipeline.train_batches(split, config, 0)
    next(batches)
  print("ready", flush=True)
  for line in sys.stdin:
    if kind == "stages":
      print(json.dumps(stages(root)), flush=True)
      continue
    for _ in range(8):  # Those made while it was another's turn.
      next(batches)
    began, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - began < float(line):
      next(batches)
      count += BATCH
    print(json.dumps([count / (time.perf_counter() - began),
                      count / (cpu_seconds() - cpu)]), flush=True)
  if batches:
    batches.close()


class Server:
  """One measuring process; `go` to `result` is its turn."""

  def __init__(self, kind, cores, root):
    command = [sys.executable, "-m", "benchmarks.input_pipeline",
               f"--serve={kind}", f"--root={root}", "--cores",
               *map(str, cores)]
    self._process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while self._process.stdout.readline() != "ready\n":
      if self._process.poll() is not None:
        raise SystemExit(f"{kind} ended with {self._process.returncode}")

  def go(self, seconds: float) -> None:
    self._process.stdin.write(f"{seconds}\n")
    self._process.stdin.flush()

  def result(self):
    return json.loads(self._process.stdout.readline())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


# ---- Rounds.


def measure(root, cores, rounds: int, seconds: float):
  """A round: {stage: seconds}, {pipeline: (images/s, images a CPU second)}."""
  one, two = cores[:1], cores[:2]
  kinds = {"semseg, 1 core": [("semseg", one)],
           "threads, 1 core": [("threads:1:0", one)],
           "processes, 1 core": [("processes:1:0", one)],
           "threads and cache, 1 core": [("threads:1:1", one)],
           "semseg, 2 cores": [("semseg", [c]) for c in two],
           "threads, 2 cores": [("threads:2:0", two)],
           "processes, 2 cores": [("processes:2:0", two)],
           "threads and cache, 2 cores": [("threads:2:1", two)]}
  if len(two) < 2:
    kinds = {name: k for name, k in kinds.items() if "1 core" in name}
  with contextlib.ExitStack() as stack:
    def start(kind, cores):
      server = Server(kind, cores, root)
      stack.callback(server.close)
      return server

    stage_server = start("stages", one)
    servers = {name: [start(*k) for k in parts]
               for name, parts in kinds.items()}
    found = []
    for _ in range(rounds):
      stage_server.go(0)
      by_stage, by_pipeline = stage_server.result(), {}
      for name, parts in servers.items():
        for server in parts:
          server.go(seconds)
        rates = np.array([server.result() for server in parts])
        by_pipeline[name] = rates[:, 0].sum(), rates[:, 1].mean()
      found.append((by_stage, by_pipeline))
      print(".", end="", file=sys.stderr, flush=True)
  return found


def report(found, cores) -> None:
  def median(values):
    return float(np.median(list(values)))

  where = machine.describe(
      len(cores), ("numpy", "opencv-python-headless", "grain", "array_record",
                   "tensorflow-datasets"))
  print(f"\n{where}; medians of {len(found)} rounds\n\n"
        "| stage | CPU ms an image | images/s |\n|---|---|---|")
  for name in found[0][0]:
    seconds = median(by_stage[name] for by_stage, _ in found)
    print(f"| {name} | {seconds * 1e3:.2f} | {1 / seconds:.0f} |")
  print("\n| whole pipeline | images/s | times semseg | times its 1 core | "
        "images a CPU second | times semseg |\n|---|---|---|---|---|---|")
  for name in found[0][1]:
    worker, used = name.split(", ")
    rates = [p[name][0] for _, p in found]

    def ratio(field, other, name=name):
      return median(p[name][field] / p[other][field] for _, p in found)

    print(f"| {name} | {median(rates):.0f} ({min(rates):.0f} to "
          f"{max(rates):.0f}) | {ratio(0, f'semseg, {used}'):.2f} | "
          f"{ratio(0, f'{worker}, 1 core'):.2f} | "
          f"{median(p[name][1] for _, p in found):.0f} | "
          f"{ratio(1, f'semseg, {used}'):.2f} |")


def main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--photos", default="", metavar="DIR",
                      help="a folder of pictures; else they are made")
  parser.add_argument("--rounds", type=int, default=7, metavar="N",
                      help="turns of each")
  parser.add_argument("--seconds", type=float, default=3, metavar="X",
                      help="of a turn")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  parser.add_argument("--root", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--cores", type=int, nargs="+", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    os.sched_setaffinity(0, args.cores)
    serve(args.serve, args.root)
    return
  cores = sorted(os.sched_getaffinity(0))
  os.environ["JAX_PLATFORMS"] = "cpu"
  with tempfile.TemporaryDirectory() as root:
    root = pathlib.Path(root)
    make_photos(root / "CamVid", args.photos)
    from psp_jax.data import datasets
    datasets.prepare(make_config(root))
    report(measure(root, cores, args.rounds, args.seconds), cores)


if __name__ == "__main__":
  main()
