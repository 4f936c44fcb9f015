"""The datasets by name: prepared on first use, then read at random.

A new dataset is a module with a builder, and a line here.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import pathlib
import shutil

import cv2
import numpy as np
import tensorflow_datasets as tfds

from psp_jax.data import (
  ade20k,
  camvid,
  cityscapes,
  coco_voc,
  decode,
  folder,
  scenes,
  voc2012,
)
from psp_jax.data.builder import PairsBuilder, SegmentationBuilder
from psp_jax.data.taxonomy import IGNORE_LABEL, Taxonomy
from psp_jax.errors import (
  ConfigError,
  DataError,
  check_choice,
  check_folder,
)

DATASETS = {
    "ade20k": ade20k.Ade20k,
    "camvid": camvid.Camvid,
    "cityscapes": cityscapes.Cityscapes,
    "coco_voc": coco_voc.CocoVoc,
    "folder": folder.Folder,
    "scenes": scenes.Scenes,
    "voc2012": voc2012.Voc2012,
}


class Split:
  """One split: a random-access sequence of decoded records.

  Items are {"image": uint8 (H, W, 3) RGB, "label": uint8 (H, W) class ids or
  255, "name": str}, and "instances": uint16 (H, W) where the dataset has them.

  Attributes:
    taxonomy: of the class ids.
    labelled: whether there are masks; without, labels are 255 throughout.
    has_instances: whether every record has "instances".
    source: the folder that it was prepared from; "" where there is none.
  """

  def __init__(self, records, taxonomy: Taxonomy, labelled: bool = True,
               has_instances: bool = False, source: str = ""):
    self._records = records
    self._label_map = taxonomy.label_map.astype("uint8")  # -1 cannot occur.
    self.taxonomy = taxonomy
    self.labelled = labelled
    self.has_instances = has_instances
    self.source = source

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    record = self._read(index)
    name = record["name"].decode()
    image = decode.decode_image(record["image"], name)
    if record["label"]:
      label = decode.decode_mask(record["label"], name)
      cv2.LUT(label, self._label_map, dst=label)  # Indexing takes ten times.
    else:
      label = np.full(image.shape[:2], IGNORE_LABEL, np.uint8)
    result = {"image": image, "label": label, "name": name}
    if record.get("instances"):
      result["instances"] = decode.decode_instances(record["instances"], name)
    return result

  def encoded(self, index) -> dict[str, bytes]:
    """The record as it is stored."""
    return self._read(index)

  def _read(self, index):
    try:
      return self._records[index]
    except (RuntimeError, OSError, ValueError) as error:
      raise DataError(
          f"record {index} of a prepared dataset cannot be read "
          f"({str(error).splitlines()[0]}); prepare it anew: remove its folder "
          "from config.data.data_dir (~/tensorflow_datasets/psp_jax) and start "
          "again") from error


class _Union:
  """Record sequences, one after the other."""

  def __init__(self, parts):
    self._parts = parts
    self._ends = np.cumsum([len(part) for part in parts])

  def __len__(self):
    return int(self._ends[-1])

  def __getitem__(self, index):
    part = int(np.searchsorted(self._ends, index, "right"))
    return self._parts[part][index - int(self._ends[part])
                             + len(self._parts[part])]


def taxonomy(config) -> Taxonomy:
  """The classes of `config.data`, without preparing it.

  Raises:
    ConfigError: there is no such dataset.
    DataError: its class list, if it has one, is missing or bad.
  """
  builder = find_builder(config)
  return builder.taxonomy


def find_builder(config) -> SegmentationBuilder:
  """The builder of `config.data`, prepared or not.

  Without `manual_dir`, the one copy of the dataset that is prepared in
  `data_dir`.

  Raises:
    ConfigError: there is no such dataset, or several prepared copies; or a
      bucket is named where a folder is wanted.
    DataError: `manual_dir` is not there.
  """
  c = config.data
  check_choice("data.name", c.name, DATASETS)
  builder_class = DATASETS[c.name]
  if c.reduce_zero_label and builder_class is not folder.Folder:
    raise ConfigError(f"config.data.reduce_zero_label: what {c.name}'s ids "
                      "mean is built in; it is for data.name='folder'")
  check_folder("config.data.manual_dir (--manual_dir)", c.manual_dir)
  home = _home(c.data_dir)
  manual_dir = None
  if c.manual_dir and issubclass(builder_class, PairsBuilder):
    manual_dir = pathlib.Path(c.manual_dir).expanduser().absolute()
    if not manual_dir.is_dir():
      raise DataError(f"config.data.manual_dir={c.manual_dir}: no such folder")
    where = home / _fingerprint(manual_dir, builder_class)
  else:
    where = _only_prepared(home, builder_class)
  builder = builder_class(data_dir=str(where), file_format="array_record")
  builder.manual_dir = manual_dir
  builder.allow_partial = c.allow_partial
  builder.reduce_zero_label = c.reduce_zero_label
  if builder_class is folder.Folder and not (
      manual_dir or builder.info.splits):
    builder.download(None)  # Says what to name.
  return builder


def prepare(config) -> SegmentationBuilder:
  """The builder of `config.data`, its array_record files in place.

  Raises:
    DataError: files are missing or bad; nothing is left half prepared.
  """
  builder = find_builder(config)
  if not builder.info.splits:
    try:
      with _alone(builder):
        if not builder.info.splits:
          _write(builder)
    except (OSError, RuntimeError) as error:
      # array_record's writer knows RuntimeError alone.
      if isinstance(error, RuntimeError) and "write() failed" not in str(error):
        raise
      raise DataError(
          f"{builder.data_dir}: cannot be written ({error}); make room, or "
          "name another folder with config.data.data_dir (--data_dir)"
          ) from error
  problems = builder.size_problems(
      {name: split.num_examples for name, split in builder.info.splits.items()})
  if problems:
    raise DataError(f"{builder.data_dir} was prepared from a part of the "
                    "dataset:\n  " + "\n  ".join(problems))
  return builder


def open_split(config, split: str) -> Split:
  """`split` of the dataset that `config.data` names, prepared if need be.

  Args:
    config: whose `data` says which.
    split: a name, a union that the dataset names, or "train+val".

  Raises:
    ConfigError: there is no such dataset or split.
    DataError: as `prepare`.
  """
  return read_split(prepare(config), split)


def read_split(builder: SegmentationBuilder, split: str) -> Split:
  """`open_split` of a prepared builder."""
  names = "+".join(builder.SPLIT_UNIONS.get(part, part)
                   for part in split.split("+")).split("+")
  splits = builder.info.splits
  if not set(names) <= set(splits):
    unions = [union for union, parts in builder.SPLIT_UNIONS.items()
              if set(parts.split("+")) <= set(splits)]
    parts = f" ({'+'.join(names)})" if split != "+".join(names) else ""
    raise ConfigError(
        f"{builder.name} has no split {split!r}{parts}; it has "
        f"{', '.join(map(repr, [*splits, *unions]))}, and sums of them")
  skip = tfds.decode.SkipDecoding()
  decoders = {feature: skip for feature in builder.info.features
              if feature != "name"}
  sources = [builder.as_data_source(name, decoders=decoders) for name in names]
  return Split(sources[0] if len(sources) == 1 else _Union(sources),
               builder.taxonomy,
               not set(names) & set(builder.unlabelled_splits),
               set(names) <= set(builder.INSTANCE_SPLITS),
               (builder.info.metadata or {}).get("source", ""))


def _home(data_dir: str) -> pathlib.Path:
  home = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
  if data_dir:
    home = data_dir
    check_folder("config.data.data_dir (--data_dir)", home)
  check_folder("TFDS_DATA_DIR", home)
  return pathlib.Path(home).expanduser().absolute() / "psp_jax"


def _only_prepared(home: pathlib.Path, builder_class) -> pathlib.Path:
  """Where the dataset is prepared, or would be."""
  inner = f"{builder_class.name}/{builder_class.VERSION}/dataset_info.json"
  if (home / inner).is_file():
    return home
  found = sorted(home.glob(f"*/{inner}"))
  if len(found) > 1:
    raise ConfigError(
        f"{builder_class.name} was prepared from several folders: "
        f"{', '.join(str(p.parent) for p in found)}; name the folder with "
        "config.data.manual_dir (--manual_dir), or remove all but one")
  return found[0].parents[2] if found else home


def _write(builder) -> None:
  print(f"preparing {builder.name} in {builder.data_dir} (first use only)",
        flush=True)
  for rest in pathlib.Path(builder.data_dir).parent.glob("incomplete.*"):
    shutil.rmtree(rest)  # Of a process that was killed.
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # Its sizes "Unknown".
    builder.download_and_prepare()


@contextlib.contextmanager
def _alone(builder):
  """One process a machine prepares a dataset; others wait, then find it."""
  parent = pathlib.Path(builder.data_dir).parent
  parent.mkdir(parents=True, exist_ok=True)
  with open(parent / ".lock", "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f"{builder.data_dir} is being prepared by another process: "
            "waiting", flush=True)
      fcntl.flock(lock, fcntl.LOCK_EX)
      if pathlib.Path(builder.data_dir).is_dir():
        builder.info.read_from_directory(builder.data_dir)
    yield


def _fingerprint(folder_: pathlib.Path, builder_class) -> str:
  """Of the dataset's files below the folder: another copy is another dataset.

  Names and sizes; of those made by hand also when they were changed last, for
  a mask that is painted over may keep its size.
  """
  digest = hashlib.sha256()
  for path in _files(folder_, builder_class.PARTS):
    try:
      status = path.stat()
    except OSError as error:
      raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    time = status.st_mtime_ns if builder_class.HAND_MADE else ""
    digest.update(os.fsencode(
        f"{path.relative_to(folder_)} {status.st_size}{time}\n"))
  return digest.hexdigest()[:12]


def _files(folder_: pathlib.Path, parts):
  """All files of the parts that are there, in an order of their own."""
  def refuse(error):
    raise DataError(f"{error.filename}: may not be read ({error.strerror})"
                    ) from error

  for path in (folder_ / part for part in parts):
    try:
      if path.is_file():
        yield path
        continue
      if not path.is_dir():
        continue
    except OSError as error:
      refuse(error)
    for parent, folders, names in os.walk(
        path, onerror=refuse, followlinks=True):
      folders.sort()
      yield from (pathlib.Path(parent, name) for name in sorted(names))
