"""The datasets by name: prepared on first use, then read at random.

A new dataset is a module with a builder and a TAXONOMY, and a line here.
"""

import contextlib
import hashlib
import io
import os
import pathlib

import tensorflow_datasets as tfds

from psp_jax.data import ade20k, camvid, scenes
from psp_jax.data.pairs import decode_image, decode_mask
from psp_jax.data.taxonomy import Taxonomy
from psp_jax.errors import ConfigError, DataError

DATASETS = {
    "ade20k": (ade20k.Ade20k, ade20k.TAXONOMY),
    "camvid": (camvid.Camvid, camvid.TAXONOMY),
    "scenes": (scenes.Scenes, scenes.TAXONOMY),
}


class Split:
  """One split: a random-access sequence of decoded records.

  Items are {"image": uint8 (H, W, 3) RGB, "label": uint8 (H, W) class ids or
  255, "name": str}.
  """

  def __init__(self, records, taxonomy: Taxonomy):
    self._records = records
    self._label_map = taxonomy.label_map.astype("uint8")  # -1 cannot occur.
    self.taxonomy = taxonomy

  def __len__(self):
    return len(self._records)

  def __getitem__(self, index):
    record = self._records[index]
    name = record["name"].decode()
    return {"image": decode_image(record["image"], name),
            "label": self._label_map[decode_mask(record["label"], name)],
            "name": name}


def taxonomy(name: str) -> Taxonomy:
  """The classes of dataset `name`, without preparing it."""
  if name not in DATASETS:
    raise ConfigError(f"config.data.name={name!r}: choose one of "
                      f"{', '.join(map(repr, DATASETS))}")
  return DATASETS[name][1]


def prepare(config) -> tfds.core.DatasetBuilder:
  """The builder of `config.data`, its array_record files in place.

  Raises:
    DataError: files are missing or bad; nothing is left half prepared.
  """
  c = config.data
  taxonomy(c.name)
  builder_class, _ = DATASETS[c.name]
  data_dir = pathlib.Path(
      c.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"))
  data_dir = data_dir.expanduser() / "psp_jax"
  manual_dir = None
  if c.manual_dir:
    manual_dir = pathlib.Path(c.manual_dir).expanduser()
    if not manual_dir.is_dir():
      raise DataError(f"config.data.manual_dir={c.manual_dir}: no such folder")
    data_dir = data_dir / _fingerprint(manual_dir)
  builder = builder_class(data_dir=str(data_dir), file_format="array_record")
  if not builder.info.splits:
    print(f"preparing {c.name} in {builder.data_dir} (first use only)",
          flush=True)
    tfds.disable_progress_bar()
    builder.manual_dir = manual_dir
    with contextlib.redirect_stdout(io.StringIO()):  # Its sizes "Unknown".
      builder.download_and_prepare()
  return builder


def open_split(config, split: str) -> Split:
  """`split` of the dataset that `config.data` names, prepared if need be.

  Raises:
    ConfigError: there is no such dataset or split.
    DataError: as `prepare`.
  """
  builder = prepare(config)
  if split not in builder.info.splits:
    raise ConfigError(f"{config.data.name} has no split {split!r}; it has "
                      f"{', '.join(map(repr, builder.info.splits))}")
  skip = tfds.decode.SkipDecoding()
  records = builder.as_data_source(
      split, decoders={"image": skip, "label": skip})
  return Split(records, taxonomy(config.data.name))


def _fingerprint(folder: pathlib.Path) -> str:
  """Of the names and sizes below `folder`: another copy is another dataset."""
  digest = hashlib.sha256()
  for parent, folders, files in os.walk(folder):
    folders.sort()
    for name in sorted(files):
      path = pathlib.Path(parent, name)
      digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n"
                    .encode())
  return digest.hexdigest()[:12]
