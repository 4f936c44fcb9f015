"""What a person reads while it runs. Process 0 speaks."""

import math
import time

import jax

from psp_jax import metrics
from psp_jax.progress import duration


def say(*lines: str) -> None:
  if jax.process_index() == 0:
    print(*lines, sep="\n", flush=True)


def describe_run(config, model, num_parameters: int, mesh, data: str,
                 workdir) -> None:
  """What will run, before it does."""
  devices = mesh.devices.ravel()
  pyramid = (f"pyramid {model.bins}, {model.pool}" if model.bins
             else "no pyramid")
  weights = config.model.pretrained or "random"
  say(f"data       {data}",
      f"model      PSPNet, ResNet-{model.depth} x {model.width_multiplier:g}, "
      f"output stride {model.output_stride}, {pyramid}, {model.num_classes} "
      "classes",
      f"parameters {num_parameters:,}, starting from {weights}",
      f"devices    {len(devices)} x {devices[0].device_kind} in "
      f"{jax.process_count()} process(es), mesh "
      + " x ".join(f"{k} {v}" for k, v in mesh.shape.items()),
      f"precision  {model.dtype.__name__} activations, float32 parameters",
      f"steps      {config.num_train_steps:,} of {config.global_batch_size} "
      f"crops of {config.data.crop_size}x{config.data.crop_size}",
      f"workdir    {workdir}",
      *([f"published  {config.published}"] if config.published else []))


class Start:
  """What the time to the first step went into."""

  def __init__(self, began: float | None = None):
    """`began`: by `time.monotonic`; None: now."""
    self._began = self._mark = time.monotonic() if began is None else began
    self._parts = []

  def done(self, part: str) -> None:
    """`part` took all the time since the part before it."""
    now = time.monotonic()
    self._parts.append((part, now - self._mark))
    self._mark = now

  def line(self) -> str:
    parts = ", ".join(f"{part} {took:.1f}" for part, took in self._parts)
    return (f"first step {self._mark - self._began:.1f} s after the start "
            f"({parts})")


class Progress:
  """Rates and time left, counted from the second step (the first compiles)."""

  def __init__(self, num_steps: int, batch_size: int):
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._mark: tuple[int, float] | None = None

  def line(self, step: int, values: dict[str, float]) -> str:
    """`step` steps are done, the last with these metrics."""
    text = (f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}  "
            f"loss {values['loss']:.4f}  pixels {values['pixel_accuracy']:.3f}"
            f"  lr {values['learning_rate']:.5f}")
    rate = self.images_per_second(step)
    if rate:
      left = (self._num_steps - step) * self._batch_size / rate
      text += f"  {rate:.1f} images/s  {duration(left)} left"
    return text

  def start(self, step: int) -> None:
    """The clock: `step` has just been done."""
    self._mark = (step, time.monotonic())

  def images_per_second(self, step: int) -> float:
    """Since `start`; 0 when unknown."""
    if self._mark is None or step <= self._mark[0]:
      return 0.0
    elapsed = time.monotonic() - self._mark[1]
    return (step - self._mark[0]) * self._batch_size / elapsed

  def pause(self):
    """Validation and saving do not count: `resume` with what this returns."""
    return time.monotonic()

  def resume(self, paused_at: float) -> None:
    if self._mark is not None:
      step, mark = self._mark
      self._mark = (step, mark + time.monotonic() - paused_at)


def summary(scores: metrics.Scores) -> str:
  return (f"mIoU {scores.miou:.2%}  mean accuracy {scores.mean_accuracy:.2%}"
          f"  pixel accuracy {scores.pixel_accuracy:.2%}"
          f"  final score {scores.final_score:.2%}")


def score_table(scores: metrics.Scores, class_names) -> str:
  """One line a class, then the summary."""
  width = max(map(len, class_names))
  rows = [f"{'class':<{width}}     IoU  accuracy"]
  for name, iou, accuracy in zip(
      class_names, scores.per_class_iou, scores.per_class_accuracy):
    rows.append(f"{name:<{width}}  {_percent(iou):>6}  {_percent(accuracy):>8}")
  return "\n".join([*rows, summary(scores)])


def _percent(fraction: float) -> str:
  return "absent" if math.isnan(fraction) else f"{100 * fraction:.2f}"
