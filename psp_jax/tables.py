"""python -m psp_jax.tables [EVAL_JSON ...]

Prints the paper's figures, those of the authors' PyTorch code (semseg) and
those of own runs side by side, as a Markdown table. An own run is placed by
what it did: config.json beside its eval.json says how it was trained, eval.json
how it was scored. A file with another name in the same folder will do, such as
a copy made before another --mode=eval. Figures that are no full reproduction
of a row carry a number, and a note says why.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

from psp_jax import default_config, published, sliding_window
from psp_jax.errors import DataError, UserError

_SCORES = ("miou", "mean_accuracy", "pixel_accuracy")
_EVAL_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_SCORES, (int, float, type(None))), "dataset": str,
    "split": str, "num_images": int, "step": int, "protocol": dict}

# Equal in these, a run is a row's; different elsewhere, a note says so.
_IDENTITY = (
    "data.name", "eval.dataset", "eval.scales", "model.depth",
    "model.pyramid.bins", "model.pyramid.pool", "model.pyramid.reduce",
    "model.auxiliary", "model.aux_loss_weight", "data.augment.scale",
    "data.augment.rotate_probability", "data.augment.rotate_degrees",
    "data.augment.blur_probability", "data.augment.mirror_probability")
_ASKED = ("num_train_steps", "model.pretrained")
# A field that is off makes others moot.
_MOOT = {
    "model.pyramid.bins": ("model.pyramid.pool", "model.pyramid.reduce"),
    "model.auxiliary": ("model.aux_loss_weight", "model.aux_channels"),
    "data.augment.rotate_probability": ("data.augment.rotate_degrees",)}
# Where and how a run was done, not what.
_FREE = ("seed", "published", "log_every_steps", "data.manual_dir",
         "data.data_dir", "data.workers", "data.num_threads", "data.cache_gib",
         "model.dtype", "model.pretrained", "mesh.", "validation.",
         "checkpoint.")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
  """An eval.json, and what config.json and it say was done.

  Attributes:
    path: of the eval.json, as given.
    result: its content.
    settings: field -> value.
  """
  path: str
  result: dict
  settings: dict


def read_run(path: str) -> Run:
  """The run whose eval.json is `path`.

  Raises:
    DataError: it or the config.json beside it is missing or something else.
  """
  result = _read_json(pathlib.Path(path))
  wrong = [name for name, kind in _EVAL_FIELDS.items()
           if name not in result or not isinstance(result[name], kind)]
  if wrong:
    raise DataError(f"{path}: not an eval.json of this version: no usable "
                    f"{', '.join(wrong)}. Name eval.json of a run, or score "
                    "again with --mode=eval")
  config_path = pathlib.Path(path).parent / "config.json"
  settings = _settings(
      _read_json(config_path), result["dataset"], result["protocol"])
  missing = [field for field in (*_IDENTITY, *_ASKED)
             if field not in settings]
  if missing:
    raise DataError(f"{config_path}: not of the run that {path} is of: no "
                    f"{', '.join(missing)}")
  return Run(path, result, settings)


def _read_json(path: pathlib.Path) -> dict:
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise DataError(f"{path}: cannot be read ({error.strerror}); name the "
                    "eval.json of a run, with config.json beside it"
                    ) from error
  except ValueError as error:
    raise DataError(f"{path}: not JSON ({error})") from error
  if not isinstance(content, dict):
    raise DataError(f"{path}: not the JSON of a run")
  return content


def _settings(config: dict, dataset: str, protocol: dict) -> dict:
  """Dotted fields of the training in `config`, and of the evaluation."""
  flat = {field: value for field, value in _flatten(config)
          if not field.startswith("eval.")}
  flat |= {f"eval.{name}": value for name, value in protocol.items()}
  flat["eval.dataset"] = dataset
  for switch, moot in _MOOT.items():
    if not flat.get(switch):
      flat |= dict.fromkeys(moot)
  return flat


def _flatten(tree: dict, prefix: str = ""):
  for name, value in tree.items():
    if isinstance(value, dict):
      yield from _flatten(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def _expected(row: published.Row) -> dict:
  """The settings of a full reproduction of `row`."""
  config = default_config.get_config()
  config.update_from_flattened_dict(row.changes)
  protocol = sliding_window.Protocol.from_config(config).as_json()
  as_json = json.loads(json.dumps([config.to_dict(), protocol]))
  return _settings(as_json[0], config.data.name, as_json[1])


def is_of_row(run: Run, row: published.Row) -> bool:
  """Whether the run's score belongs beside the row's figures.

  Rows of two stages get none: a config.json knows one stage.
  """
  expected = _expected(row)
  return not row.first_stage and all(
      run.settings[field] == expected[field] for field in _IDENTITY)


def differences(run: Run, row: published.Row) -> list[str]:
  """What keeps the run from being a full reproduction of `row`, in words."""
  result, settings = run.result, run.settings
  said = []
  if result["split"] != row.split:
    said.append(f"{result['split']} split, the published is of {row.split}")
  images = _images(result)
  if "of" in images:
    said.append(f"{images} images")
  steps = settings["num_train_steps"]
  if result["step"] != steps:
    said.append(f"step {result['step']:,} of {steps:,}")
  if not settings["model.pretrained"]:
    said.append("from random weights")
  said += [f"{field} {settings[field]}, not {value}"
           for field, value in _expected(row).items()
           if settings.get(field, value) != value
           and not field.startswith(_FREE)]
  return said


def _images(result: dict) -> str:
  """"2,000", or "500 of 2,000" where the split is known to have more."""
  count = result["num_images"]
  whole = published.NUM_IMAGES.get((result["dataset"], result["split"]), count)
  return f"{count:,}" if count == whole else f"{count:,} of {whole:,}"


def render(runs: list[Run]) -> str:
  """The published rows with the runs beside them, other runs, notes."""
  notes, placed = {}, set()

  def own(run, row):
    why = "; ".join(differences(run, row))
    note = notes.setdefault(f"{run.path}: {why}", len(notes) + 1) if why else 0
    placed.add(run)
    return [*_figures(run, f" [{note}]" if note else ""), run.path]

  lines = []
  for name, row in published.ROWS.items():
    dataset = _expected(row)["data.name"]
    label = [name, f"{dataset} {row.split}", *row.paper, *row.semseg]
    matching = [own(run, row) for run in runs if is_of_row(run, row)]
    lines += [label + cells for cells in matching or [[""] * 4]]
  parts = [_markdown(
      ["row", "figures of", "paper mIoU", "pixel acc.", "semseg mIoU",
       "mean acc.", "pixel acc.", "own mIoU", "mean acc.", "pixel acc.",
       "run"], lines)]
  others = [run for run in runs if run not in placed]
  if others:
    parts.append("Other runs:\n\n" + _markdown(
        ["run", "dataset", "split", "images", "step", "mIoU", "mean acc.",
         "pixel acc."],
        [[run.path, run.result["dataset"], run.result["split"],
          _images(run.result), f"{run.result['step']:,}", *_figures(run)]
         for run in others]))
  if notes:
    parts.append("\n".join(f"[{n}] {text}  " for text, n in notes.items()))
  return "\n\n".join(parts)


def _figures(run: Run, mark: str = "") -> list[str]:
  return ["none" if run.result[name] is None
          else f"{100 * run.result[name]:.2f}{mark}" for name in _SCORES]


def _markdown(header: list[str], lines: list[list[str]]) -> str:
  """A pipe table whose source is aligned too."""
  lines = [[cell.replace("|", "\\|") for cell in line]
           for line in [header, *lines]]
  widths = [max(map(len, column)) for column in zip(*lines)]
  padded = [[cell.ljust(width) for cell, width in zip(line, widths)]
            for line in lines]
  padded.insert(1, ["-" * width for width in widths])
  return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
      prog="python -m psp_jax.tables",
      description=__doc__.partition("\n\n")[2],
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("eval_json", nargs="*", metavar="EVAL_JSON",
                      help="of runs: runs/*/eval.json; none: what is published")
  try:
    print(render([read_run(path) for path in
                  parser.parse_args(argv).eval_json]))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
