"""What a run's folder holds for TensorBoard, read back."""

import gzip
import json

from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util


def read(workdir) -> event_accumulator.EventAccumulator:
  """All events of a run, as TensorBoard reads them."""
  found = event_accumulator.EventAccumulator(
      str(workdir), {kind: 0 for kind in ("tensors", "images", "scalars")})
  found.Reload()
  return found


def _plugin(found, tag):
  return found.SummaryMetadata(tag).plugin_data.plugin_name


def scalars(found) -> dict:
  """tag -> {step: value}."""
  return {tag: {event.step: float(tensor_util.make_ndarray(event.tensor_proto))
                for event in found.Tensors(tag)}
          for tag in found.Tags()["tensors"]
          if _plugin(found, tag) == "scalars"}


def texts(found) -> dict:
  return {tag: [(event.step, event.tensor_proto.string_val[0].decode())
                for event in found.Tensors(tag)]
          for tag in found.Tags()["tensors"] if _plugin(found, tag) == "text"}


def images(found) -> dict:
  """tag -> {step: PNG}."""
  return {tag: {event.step: event.tensor_proto.string_val[2]  # After w and h.
                for event in found.Tensors(tag)}
          for tag in found.Tags()["tensors"]
          if _plugin(found, tag) == "images"}


def traced_steps(workdir) -> dict[int, float]:
  """step -> microseconds, in the one trace of a run's folder."""
  file, = workdir.glob("plugins/profile/*/*.trace.json.gz")
  assert list(file.parent.glob("*.xplane.pb"))
  with gzip.open(file) as content:
    found = json.load(content)["traceEvents"]
  return {int(e["args"]["step_num"]): e["dur"] for e in found
          if e.get("name") == "train"}
