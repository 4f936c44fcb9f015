"""python -m psp_jax.prepare --dataset=NAME [--manual_dir=DIR] [--check]

Prepares a dataset, which training otherwise does when it first needs it; with
--check reads all of it and reports what is in it and what is wrong, without
preparing files that --manual_dir names. Exit code 2 means that something is
wrong: every bad file is named.

  python -m psp_jax.prepare --dataset=ade20k --manual_dir=ADEChallengeData2016
  python -m psp_jax.prepare --dataset=folder --manual_dir=mine --check
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from psp_jax import default_config, visualize  # noqa: E402
from psp_jax.data import check, datasets  # noqa: E402
from psp_jax.errors import DataError, UserError, check_folder  # noqa: E402


def prepare(config) -> None:
  """Prepares `config.data`; says what there is and what comes next."""
  builder = datasets.prepare(config)
  for name, split in builder.info.splits.items():
    print(f"{name}: {split.num_examples:,} images")
  classes = builder.taxonomy.class_names
  print(f"{len(classes)} classes: {', '.join(classes[:12])}"
        f"{', ...' if len(classes) > 12 else ''}")
  print(f"prepared in {builder.data_dir}")


def check_dataset(config, output: pathlib.Path) -> list[str]:
  """Reads all of `config.data`; prints and writes the report.

  Args:
    config: whose `data.manual_dir`, if set, is read file by file; else what
      is prepared is, and prepared first if need be.
    output: gets report.json and contact_sheet.png.

  Returns:
    All problems.
  """
  builder = datasets.find_builder(config)
  taxonomy = builder.taxonomy
  if config.data.manual_dir and hasattr(builder, "list_splits"):
    found, problems = builder.list_splits([builder.manual_dir])
  else:
    builder, problems = datasets.prepare(config), []
    found = {name: stored_pairs(builder, name) for name in builder.info.splits}
  reports = {split: check.examine(split, pairs, taxonomy)
             for split, pairs in found.items()}
  problems += [p for report in reports.values() for p in report.problems]
  print(check.format_report(reports, taxonomy))

  rows = []
  for split, report in reports.items():
    for pair in check.sheet_pairs(found[split], report):
      try:
        rows.append(check.read_pair(pair, taxonomy))
      except DataError:  # Among the problems.
        continue
  written = ["report.json"]
  try:
    output.mkdir(parents=True, exist_ok=True)
    content = check.as_json(reports, taxonomy) | {"problems": problems}
    (output / "report.json").write_text(json.dumps(content, indent=2) + "\n")
    if rows:
      written.append("contact_sheet.png")
      visualize.write_png(output / "contact_sheet.png",
                          visualize.mask_sheet(rows, taxonomy))
  except OSError as error:
    raise DataError(f"{output}: cannot be written ({error.strerror}); name "
                    "another folder with --output") from error
  print(f"written to {output}: {', '.join(written)}")
  return problems


@dataclasses.dataclass(frozen=True)
class StoredPair:
  """A prepared record as `check` wants it."""
  split: datasets.Split
  where: str
  index: int

  @property
  def name(self):
    return self.split.encoded(self.index)["name"].decode()

  @property
  def image(self):
    return f"{self.where} {self.name}"

  @property
  def mask(self):
    return self.image if self.split.labelled else None

  @property
  def instances(self):
    return self.image if self.split.has_instances else None

  def image_bytes(self):
    return self.split.encoded(self.index)["image"]

  def mask_bytes(self):
    return self.split.encoded(self.index)["label"]

  def instances_bytes(self):
    return self.split.encoded(self.index)["instances"]


def stored_pairs(builder, split: str) -> list[StoredPair]:
  records = datasets.read_split(builder, split)
  return [StoredPair(records, f"{builder.name} {split}", i)
          for i in range(len(records))]


def _main() -> None:
  parser = argparse.ArgumentParser(
      prog="python -m psp_jax.prepare",
      description=__doc__.partition("\n\n")[2],
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--dataset", required=True, metavar="NAME",
                      help=", ".join(datasets.DATASETS))
  parser.add_argument("--manual_dir", default="", metavar="DIR",
                      help="your copy of the dataset; without it, it is "
                      "downloaded where its licence allows")
  parser.add_argument("--data_dir", default="", metavar="DIR",
                      help="of the prepared files (~/tensorflow_datasets)")
  parser.add_argument("--allow_partial", action="store_true",
                      help="a part of the dataset will do")
  parser.add_argument("--reduce_zero_label", action="store_true",
                      help="of 'folder': stored 0 is unlabelled")
  parser.add_argument("--check", action="store_true",
                      help="read everything, report, prepare nothing")
  parser.add_argument("--output", metavar="DIR", type=pathlib.Path,
                      help="of --check's report (runs/check_NAME)")
  args = parser.parse_args()
  config = default_config.get_config()
  for field in ("manual_dir", "data_dir", "allow_partial",
                "reduce_zero_label"):
    config.data[field] = getattr(args, field)
  config.data.name = args.dataset
  try:
    check_folder("--output", args.output or "")
    if not args.check:
      prepare(config)
      return
    problems = check_dataset(
        config, args.output or pathlib.Path(f"runs/check_{args.dataset}"))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit("interrupted: start again, nothing is left half done")
  if problems:
    sys.stdout.flush()
    print("\n  ".join([f"error: {len(problems)} problem(s):", *problems]),
          file=sys.stderr)
    sys.exit(2)
  print("no problems")


if __name__ == "__main__":
  _main()
