"""report.html: an evaluation as one page that opens anywhere, without network.

The page is templates/report.html; templates/style.css is its look and
templates/report.js draws its charts with plotly.js, which lies in the page.
"""

import base64
import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import platform

import cv2
import jax
import numpy as np

from psp_jax import (
  console,
  default_config,
  history,
  metrics,
  published,
  saved_config,
  tables,
  visualize,
)
from psp_jax.data.taxonomy import Taxonomy
from psp_jax.errors import DataError
from psp_jax.extremes import Example, Extremes
from psp_jax.workdir import write_text

_NEEDS = ("plotly", "jinja2")
_TEMPLATES = pathlib.Path(__file__).with_name("templates")
_EXAMPLES = 4  # Best ones, and as many worst.
_MAX_WIDTH = 640  # Of their pictures, in pixels.
_CONFUSIONS = 10  # In words.
_PACKAGES = ("psp_jax", "jax", "flax", "optax", "numpy")
_SCORES = (("miou", "mIoU"), ("mean_accuracy", "mean accuracy"),
           ("pixel_accuracy", "pixel accuracy"),
           ("final_score", "final score"))


@dataclasses.dataclass(frozen=True)
class Content:
  """All that the page shows.

  Attributes:
    name: of the run.
    result: as eval.json has it.
    taxonomy: names and colours of the classes.
    confusion: (C, C) integers, rows truth, columns prediction.
    best: images, best first.
    worst: images, worst first.
    num_ranked: of how many images those are the extremes.
    config: as `ConfigDict.to_dict` gives it.
    training: entries of training.jsonl; [] for no curve.
    validation: entries of validation.jsonl, likewise.
    rows: name -> (row, what keeps the run from reproducing it), of the
      published rows that the run is of.
    about: name -> value: versions, devices, time.
  """
  name: str
  result: dict
  taxonomy: Taxonomy
  confusion: np.ndarray
  best: list[Example]
  worst: list[Example]
  num_ranked: int
  config: dict
  training: list[dict]
  validation: list[dict]
  rows: dict[str, tuple[published.Row, list[str]]]
  about: dict[str, str]


def collector(config, split) -> Extremes | None:
  """What shall see every image for the report; None where there is none.

  That is where nobody asked for it, where there is no truth, in all processes
  but the first, and where its packages are missing, which is told.
  """
  if (not config.eval.report or not split.labelled
      or jax.process_index() > 0):
    return None
  missing = [n for n in _NEEDS if importlib.util.find_spec(n) is None]
  if missing:
    console.say(f"no report.html: {' and '.join(missing)} missing; "
                "pip install 'psp_jax[report]'")
    return None
  return Extremes(_EXAMPLES, _MAX_WIDTH)


def write(workdir: pathlib.Path, config, taxonomy: Taxonomy,
          confusion: np.ndarray, images: Extremes) -> None:
  """workdir/report.html, of the eval.json and the history beside it.

  Raises:
    StorageError: it cannot be written.
  """
  training, validation = history.curves(workdir)
  write_text(workdir / "report.html", render(Content(
      workdir.name, json.loads((workdir / "eval.json").read_text()), taxonomy,
      confusion, images.best(), images.worst(), images.num_images,
      config.to_dict(), training, validation, _published_rows(workdir),
      _about())))


def render(content: Content) -> str:
  """The page: HTML with everything in it."""
  import jinja2
  import plotly.offline
  from markupsafe import Markup

  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True,
      undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
  environment.filters["percent"] = percent
  fields = saved_config.flat(content.config)
  defaults = saved_config.flat(default_config.get_config().to_dict())
  names = content.taxonomy.class_names
  return environment.get_template("report.html").render(
      content=content, scores=_SCORES,
      classes=[{"name": name, **values} for name, values in zip(
          names, _per_class(content.confusion))],
      colours=_colours(content.taxonomy),
      confusions=worst_confusions(content.confusion, names),
      published=_published(content),
      protocol=_protocol(content.result["protocol"]),
      best=[_shown(e, content.taxonomy) for e in content.best],
      worst=[_shown(e, content.taxonomy) for e in content.worst],
      curves=bool(content.training or content.validation),
      changed={n: (v, defaults.get(n)) for n, v in fields.items()
               if v != defaults.get(n)},
      fields=fields, data=_data(content),
      style=Markup((_TEMPLATES / "style.css").read_text("utf-8")),
      script=Markup((_TEMPLATES / "report.js").read_text("utf-8")),
      plotly=Markup(plotly.offline.get_plotlyjs()))


def percent(fraction: float | None, digits: int = 1) -> str:
  """0.123 -> "12.3 %", with a space that does not break."""
  if fraction is None or math.isnan(fraction):
    return "none"
  return f"{100 * fraction:.{digits}f}\N{NO-BREAK SPACE}%"


def worst_confusions(confusion: np.ndarray, names) -> list[dict]:
  """{"share", "truth", "prediction", "pixels"}, largest share of truth first.

  Equal shares are in the order of their pixels, more first.
  """
  confusion = np.asarray(confusion, np.int64)
  shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
  wrong = ~np.eye(len(names), dtype=bool) & (confusion > 0)
  found = sorted(zip(*np.nonzero(wrong)),
                 key=lambda at: (-shares[at], -confusion[at], at))
  return [{"share": float(shares[at]), "truth": names[at[0]],
           "prediction": names[at[1]], "pixels": int(confusion[at])}
          for at in found[:_CONFUSIONS]]


def _per_class(confusion) -> list[dict]:
  """{"iou", "accuracy", "share" (of all pixels)}; None for the undefined."""
  scores = metrics.scores(confusion)
  share = confusion.sum(1) / max(confusion.sum(), 1)
  return [{"iou": _finite(i), "accuracy": _finite(a), "share": float(s)}
          for i, a, s in zip(
              scores.per_class_iou, scores.per_class_accuracy, share)]


def _finite(value) -> float | None:
  return float(value) if isinstance(
      value, int | float) and math.isfinite(value) else None


def _data(content: Content) -> dict:
  """What the charts are drawn of."""
  per_class = _per_class(content.confusion)
  return {
      "names": list(content.taxonomy.class_names),
      **{key: [c[key] for c in per_class]
         for key in ("iou", "accuracy", "share")},
      "confusion": np.asarray(content.confusion).tolist(),
      "training": {key: [_finite(e.get(key)) for e in content.training]
                   for key in ("step", "loss", "pixel_accuracy",
                               "learning_rate")},
      "validation": {key: [_finite(e.get(key)) for e in content.validation]
                     for key in ("step", "miou")}}


def _published_rows(workdir) -> dict:
  try:
    run = tables.read_run(str(workdir / "eval.json"))
  except DataError:  # No config.json that says how it was trained.
    return {}
  return {name: (row, tables.differences(run, row))
          for name, row in published.ROWS.items() if tables.is_of_row(run, row)}


def _published(content: Content) -> list[dict]:
  """A line each source of figures; rows with equal figures are one."""
  lines = {}
  for name, (row, differences) in content.rows.items():
    paper = row.paper[0], "", row.paper[1]
    for source, figures in (("paper", paper), ("semseg", row.semseg)):
      if any(figures):
        line = lines.setdefault((source, row.split, figures), {
            "source": source, "split": row.split, "rows": [],
            "figures": [f and f"{f}\N{NO-BREAK SPACE}%" for f in figures],
            "differences": "; ".join(differences)})
        line["rows"].append(name)
  return list(lines.values())


def _protocol(protocol: dict) -> str:
  """As a person would say it."""
  scales = ", ".join(f"{s:g}" for s in protocol["scales"])
  window = protocol["window"]
  return "; ".join([
      f"scale {scales}" if len(protocol["scales"]) == 1
      else f"scales {scales}",
      "with the mirror image" if protocol["flip"] else "without mirroring",
      f"windows of {window} px, stride {protocol['stride_fraction']:.3g} of it"
      if window != "whole" else "each image in one piece",
      f"{protocol['base_side']} side {protocol['base_size']} px at scale 1"
      if protocol["base_size"] else "at its own size",
      f"mean of {protocol['average']}",
      "absent classes count as 0" if protocol["absent_classes"] == "zero"
      else "absent classes left out of means"])


def _colours(taxonomy) -> list[str]:
  return ["#{:02x}{:02x}{:02x}".format(*c) for c in taxonomy.palette.tolist()]


def _shown(example: Example, taxonomy) -> dict:
  """The example's pictures as data URIs, and the classes in it."""
  palette = taxonomy.palette
  pixels = example.confusion.sum(1)
  iou = metrics.scores(example.confusion).per_class_iou
  present = np.flatnonzero(pixels + example.confusion.sum(0))
  height, width = example.truth.shape
  return {
      "name": example.name, "miou": example.miou,
      "width": width, "height": height,
      "photo": _data_uri(".jpg", example.image),
      "truth": _data_uri(".png", visualize.colorize(example.truth, palette)),
      "prediction": _data_uri(
          ".png", visualize.colorize(example.prediction, palette)),
      "errors": _data_uri(".jpg", visualize.errors(
          example.image, example.truth, example.prediction)),
      "classes": [(int(c), _finite(float(iou[c]))) for c in sorted(
          present, key=lambda c: (-pixels[c], c))]}


def _data_uri(extension: str, rgb: np.ndarray) -> str:
  options = ([cv2.IMWRITE_JPEG_QUALITY, 85] if extension == ".jpg"
             else [cv2.IMWRITE_PNG_COMPRESSION, 9])
  done, data = cv2.imencode(
      extension, np.ascontiguousarray(rgb[..., ::-1]), options)
  assert done
  kind = "jpeg" if extension == ".jpg" else "png"
  return f"data:image/{kind};base64,{base64.b64encode(data.tobytes()).decode()}"


def _about() -> dict[str, str]:
  about = {"time": datetime.datetime.now().astimezone().strftime(
      "%Y-%m-%d %H:%M %z"), "Python": platform.python_version()}
  for package in _PACKAGES:
    try:
      about[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      pass  # A checkout that is not installed.
  devices = jax.devices()
  return about | {"devices": f"{len(devices)} x {devices[0].device_kind} in "
                             f"{jax.process_count()} process(es)"}
