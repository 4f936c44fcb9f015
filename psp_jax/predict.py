"""python -m psp_jax.predict --workdir=RUN --input 'photos/*.jpg' --output=out

Labels photographs: files, folders, globs, videos. Writes below --output

  labels/NAME.png         class ids, 8-bit grey: 0 is the first class
  colors/NAME.png         the same as an indexed PNG in the classes' colours
  overlays/NAME.jpg       over the photograph, with a legend (a video: NAME.mp4)
  probabilities/NAME/     with --probabilities: a grey PNG a class, 255 is 1
  classes.csv             id, name, colour, and the id in the dataset's masks

Photographs are turned upright, and labelled at their own size. One that cannot
be read is reported and left out: exit code 1. Exit code 2: nothing was done.
"""

import argparse
import csv
import glob
import io
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from absl import logging  # noqa: E402

from psp_jax import (  # noqa: E402
  compilation_cache,
  errors,
  kept_programs,
  progress,
  visualize,
)
from psp_jax.data.decode import encode_mask  # noqa: E402
from psp_jax.data.pairs import IMAGE_SUFFIXES  # noqa: E402
from psp_jax.errors import DataError, StorageError, UserError  # noqa: E402

_OF_NETWORK = 0.9  # Of a photograph's time, which then is enlarged and drawn.
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def find_inputs(patterns: Iterable[str]) -> list[tuple[pathlib.Path, str]]:
  """(file, name below the output) of files, folders and globs.

  Files of a folder keep their place in it. A name has no suffix, unless two
  files would share it.

  Raises:
    DataError: a pattern finds nothing.
  """
  found: dict[pathlib.Path, pathlib.PurePath] = {}
  inside: dict[pathlib.Path, pathlib.PurePath]
  for pattern in patterns:
    path = pathlib.Path(pattern).expanduser()
    if path.is_dir():
      inside = {p: p.relative_to(path) for p in sorted(path.rglob("*"))
                if p.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
                and not any(part.startswith(".")
                            for part in p.relative_to(path).parts)}
      if not inside:
        raise DataError(f"--input={pattern}: no photograph in this folder "
                        f"({', '.join(IMAGE_SUFFIXES)}, or a video)")
    elif path.is_file():
      inside = {path: pathlib.PurePath(path.name)}
    else:
      matches = sorted(glob.glob(str(path), recursive=True))
      inside = {p: pathlib.PurePath(p.name)
                for p in map(pathlib.Path, matches) if p.is_file()}
      if not inside:
        raise DataError(f"--input={pattern}: no such file, folder or pattern")
    found = inside | found
  names = [name.with_suffix("") for name in found.values()]
  result, used = [], set()
  for (path, full), name in zip(found.items(), names):
    name = name if names.count(name) == 1 else full
    for number in range(2, 2 + len(found)):
      if name not in used:
        break
      name = full.with_name(f"{full.name}_{number}")
    used.add(name)
    result.append((path, str(name)))
  return result


class Writer:
  """The files of answers, below a folder."""

  def __init__(self, output: pathlib.Path, taxonomy, opacity: float,
               probabilities: bool):
    """Writes classes.csv; raises StorageError where that is impossible."""
    self._output, self._taxonomy = output, taxonomy
    self._opacity, self._probabilities = opacity, probabilities
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("id", "name", "colour", "dataset_id"))
    for i, name in enumerate(taxonomy.class_names):
      colour = "#" + bytes(taxonomy.palette[i]).hex()
      rows.writerow((i, name, colour, taxonomy.stored_ids[i]))
    self._write("classes.csv", text.getvalue().encode())

  def image(self, name: str, answer, on_classes=lambda done, of: None) -> None:
    labels = answer.labels(on_classes)
    self.labels(name, labels)
    self._write(f"overlays/{name}.jpg", _jpeg(visualize.overlay_with_legend(
        answer.image, labels, self._taxonomy, self._opacity)))
    if self._probabilities:
      for i, class_name in enumerate(self._taxonomy.class_names):
        safe = "".join(c if c.isalnum() or c in " ._-" else "_"
                       for c in class_name)
        self._write(f"probabilities/{name}/{i:03}_{safe}.png",
                    encode_mask(np.rint(
                        answer.of_class(i) * 255).astype(np.uint8)))

  def labels(self, name: str, labels: np.ndarray) -> None:
    self._write(f"labels/{name}.png", encode_mask(labels))
    self._write(f"colors/{name}.png", visualize.indexed_png(
        labels, self._taxonomy.palette))

  def path(self, name: str) -> pathlib.Path:
    """Of a file below the folder, whose own folder is there."""
    path = self._output / name
    try:
      path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise _unwritable(path, error) from error
    return path

  def overlay(self, answer) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a video's frame."""
    return visualize.overlay(answer.image, answer.labels(),
                             self._taxonomy.palette, self._opacity)

  def _write(self, name, data):
    path = self.path(name)
    try:
      path.write_bytes(data)
    except OSError as error:
      raise _unwritable(path, error) from error


def _unwritable(path, error) -> StorageError:
  return StorageError(f"{path}: cannot be written ({error.strerror}); name "
                      "another folder with --output")


def _jpeg(rgb: np.ndarray) -> bytes:
  return cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]),
                      [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def predict_photographs(seg, inputs, writer: Writer) -> list[str]:
  """Labels (path, name) pairs; returns what could not be read, in words."""
  from psp_jax import segmenter

  if not inputs:
    return []
  failed: list[str] = []
  status = progress.Status("photographs", len(inputs), "photographs")
  names: list[str] = []
  done = 0

  def readable() -> Iterator[np.ndarray]:
    for path, name in inputs:
      try:
        image = segmenter.read_image(path)
      except DataError as error:
        failed.append(str(error))
        progress.say(f"left out: {error}")
        continue
      names.append(name)
      yield image

  def on_windows(windows, known):
    # Of what is read but not written, the share that the network has done.
    share = _OF_NETWORK * windows / max(known, 1)
    at = done + len(failed) + (len(names) - done) * share
    status.at(at, f"window {windows}/{known}")

  def on_classes(compared, of):
    share = _OF_NETWORK + (1 - _OF_NETWORK) * compared / of
    status.at(done + len(failed) + share, f"class {compared}/{of}")

  try:
    for answer in seg.answers(readable(), on_windows):
      writer.image(names[done], answer, on_classes)
      done += 1
      status.at(done + len(failed), names[done - 1])
  finally:
    status.close()
  return failed


def predict_video(seg, path: pathlib.Path, name: str, writer: Writer) -> None:
  """Labels every frame; writes a video of overlays, and the frames' labels.

  Raises:
    DataError: OpenCV does not read it, or writes no such video.
  """
  capture = cv2.VideoCapture(str(path))
  if not capture.isOpened():
    raise DataError(f"{path}: not a video that OpenCV reads")
  total = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
  rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
  target = writer.path(f"overlays/{name}.mp4")
  status = progress.Status(path.name, total, "frames")

  def frames() -> Iterator[np.ndarray]:
    while True:
      there, frame = capture.read()
      if not there:
        return
      yield np.ascontiguousarray(frame[..., ::-1])

  video, done = None, 0
  try:
    for done, answer in enumerate(seg.answers(frames()), 1):
      overlay = writer.overlay(answer)
      if video is None:
        video = cv2.VideoWriter(
            str(target), cv2.VideoWriter.fourcc(*"mp4v"), rate,
            overlay.shape[1::-1])
        if not video.isOpened():
          raise DataError(f"{target}: OpenCV cannot write this video")
      video.write(np.ascontiguousarray(overlay[..., ::-1]))
      writer.labels(f"{name}/{done - 1:06}", answer.labels())
      status.at(done)
  finally:
    status.close()
    capture.release()
    if video is not None:
      video.release()
  if not done:
    raise DataError(f"{path}: no frame of this video can be read")


def _scales(text: str) -> tuple[float, ...]:
  try:
    return tuple(float(part) for part in text.strip("() ").split(",") if part)
  except ValueError:
    raise argparse.ArgumentTypeError(
        f"{text!r}: name factors, such as 0.75,1.0,1.25") from None


def _window(text: str) -> str | int:
  return int(text) if text.lstrip("-").isdecimal() else text


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog="python -m psp_jax.predict",
      description=__doc__.partition("\n\n")[2],
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, metavar="RUN",
                      help="folder of a run, trained or converted")
  parser.add_argument("--input", required=True, nargs="+", metavar="PATH",
                      help="files, folders, globs (quoted: '**/*.jpg')")
  parser.add_argument("--output", metavar="DIR", type=pathlib.Path,
                      help="default: RUN/predicted")
  parser.add_argument("--step", type=int, metavar="N",
                      help="of the checkpoint; default: the last")
  parser.add_argument("--probabilities", action="store_true",
                      help="also a grey PNG of each class")
  parser.add_argument("--opacity", type=float, default=0.5, metavar="X",
                      help="of the overlay's colours, 0 to 1 (0.5)")
  how = parser.add_argument_group(
      "how", "as the run is scored, unless said otherwise")
  how.add_argument("--scales", type=_scales, metavar="X,Y",
                   help="average over these factors: 0.75,1.0,1.25")
  how.add_argument("--flip", action=argparse.BooleanOptionalAction,
                   default=None, help="average with the mirror image")
  how.add_argument("--window", type=_window, metavar="N",
                   help="whole, sliding, or pixels of a sliding window")
  how.add_argument("--base_size", type=int, metavar="N",
                   help="pixels of the long side at scale 1; 0: its own size")
  parser.add_argument("--compilation_cache", default="auto", metavar="DIR",
                   help="folder of compiled programs; off: none")
  args = parser.parse_args()
  if not 0 <= args.opacity <= 1:
    parser.error(f"--opacity={args.opacity}: name a number from 0 to 1")
  return args


def main() -> int:
  """The exit code."""
  args = _arguments()
  errors.check_folder("--output", args.output or "")
  inputs = find_inputs(args.input)
  from psp_jax import segmenter  # Late: mistakes above answer at once.

  kept_programs.enable(compilation_cache.enable(args.compilation_cache))
  seg = segmenter.load(
      args.workdir, args.step, scales=args.scales, flip=args.flip,
      window=args.window, base_size=args.base_size)
  output = args.output or pathlib.Path(args.workdir, "predicted")
  print(f"step {seg.step:,} of {args.workdir}, {len(seg.class_names)} classes; "
        f"{len(inputs)} file(s)\n"
        "compiling  takes a while, the first time", flush=True)
  writer = Writer(output, seg.taxonomy, args.opacity, args.probabilities)
  is_video = [path.suffix.lower() in VIDEO_SUFFIXES for path, _ in inputs]
  failed = predict_photographs(
      seg, [i for i, video in zip(inputs, is_video) if not video], writer)
  for (path, name), video in zip(inputs, is_video):
    if video:
      try:
        predict_video(seg, path, name, writer)
      except DataError as error:
        progress.say(f"left out: {error}")
        failed.append(str(error))
  print(f"labelled {len(inputs) - len(failed)} of {len(inputs)}; written to "
        f"{output}: overlays/, colors/, labels/, "
        + ("probabilities/, " if args.probabilities else "") + "classes.csv")
  return 1 if failed else 0


def run() -> None:
  """`main`; a mistake is one line and exit code 2."""
  try:
    sys.exit(main())
  except (UserError, OSError) as error:  # An OSError names its file.
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit("interrupted: what is written stays")


if __name__ == "__main__":
  logging.set_verbosity(logging.WARNING)
  run()
