"""What a person reads while it runs. Process 0 speaks."""

import contextlib
import math
import pathlib
import shutil
import sys
import textwrap
import time
from typing import Any

import jax

from psp_jax import metrics, progress, sharding
from psp_jax.data import augment
from psp_jax.progress import duration


def say(*lines: str) -> None:
  """Whole lines on stdout; on a terminal wrapped between words."""
  if jax.process_index() > 0:
    return
  text = "\n".join(lines)
  if progress.on_terminal():
    wrapper = textwrap.TextWrapper(
        shutil.get_terminal_size().columns, subsequent_indent=" " * 11,
        break_long_words=False, break_on_hyphens=False)
    text = "\n".join(map(wrapper.fill, text.split("\n")))
  progress.say(text, sys.stdout)


def log(line: str) -> None:
  """Says when, too, where nobody may be looking: not on a terminal."""
  say(line if progress.on_terminal()
      else f"{time.strftime('%H:%M:%S')} {line}")


@contextlib.contextmanager
def tracked(items, total: int, what: str, unit: str):
  """`items` to loop over, as `progress.track` has them."""
  if jax.process_index() > 0:
    yield items
    return
  with contextlib.closing(  # Or an error would be told beside the bar.
      progress.track(items, total, what, unit, log)) as tracked_items:
    yield tracked_items


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
      f"batch      {sharding.describe_batch(config, mesh)}",
      f"precision  {model.dtype.__name__} activations, float32 parameters",
      f"steps      {config.num_train_steps:,} of {config.global_batch_size} "
      f"crops of {'x'.join(map(str, augment.crop_shape(config)))}",
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

  def seconds(self) -> float:
    """Since the beginning."""
    return time.monotonic() - self._began

  def line(self) -> str:
    parts = ", ".join(f"{part} {took:.1f}" for part, took in self._parts)
    return (f"first step {self._mark - self._began:.1f} s after the start "
            f"({parts})")


class Progress:
  """Rates and time left, counted from the second step (the first compiles).

  On a terminal `show` keeps a bar with them below what is said.
  """

  def __init__(self, num_steps: int, batch_size: int):
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._mark: tuple[int, float] | None = None
    self._bar: Any = None

  def line(self, step: int, values: dict[str, float]) -> str:
    """`step` steps are done, the last with these metrics."""
    text = (f"step {step:>{len(str(self._num_steps))}}/{self._num_steps}  "
            f"loss {values['loss']:.4f}  pixels {values['pixel_accuracy']:.3f}"
            f"  lr {values['learning_rate']:.5f}")
    rate = self.images_per_second(step)
    if rate:
      text += f"  {rate:.1f} images/s"
      if not progress.on_terminal():  # Whose bar has it.
        text += f"  {self._left(step, rate)}"
    return text

  def show(self, step: int, values: dict[str, float]) -> None:
    """The bar, where there is a terminal: `step` steps are done."""
    if not progress.on_terminal() or jax.process_index() > 0:
      return
    text = f"loss {values['loss']:.4f}"
    rate = self.images_per_second(step)
    if rate:
      text += f", {rate:.1f} images/s, {self._left(step, rate)}"
    if self._bar is None:
      self._bar = progress.bar(
          "training", self._num_steps, step, postfix=text,
          bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}"
          "{postfix}")
    self._bar.set_postfix_str(text, refresh=False)
    self._bar.update(step - self._bar.n)

  def hide(self) -> None:
    """Takes the bar away, until it is shown again."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None

  close = hide

  def _left(self, step, rate):
    left = (self._num_steps - step) * self._batch_size / rate
    return f"{duration(left)} left"

  def start(self, step: int) -> None:
    """The clock: `step` has just been done."""
    self._mark = (step, time.monotonic())

  def images_per_second(self, step: int) -> float:
    """Since `start`; 0 when unknown."""
    if self._mark is None or step <= self._mark[0]:
      return 0.0
    elapsed = time.monotonic() - self._mark[1]
    return (step - self._mark[0]) * self._batch_size / elapsed

  @contextlib.contextmanager
  def paused(self, hidden: bool = False):
    """What takes time within is no training; `hidden`: has a bar itself."""
    if hidden:
      self.hide()
    paused_at = time.monotonic()
    yield
    if self._mark is not None:
      step, mark = self._mark
      self._mark = (step, mark + time.monotonic() - paused_at)


def summary(scores: metrics.Scores) -> str:
  return (f"mIoU {scores.miou:.2%}  mean accuracy {scores.mean_accuracy:.2%}"
          f"  pixel accuracy {scores.pixel_accuracy:.2%}")


def score_table(scores: metrics.Scores, class_names) -> str:
  """One line a class."""
  width = max(map(len, class_names))
  rows = [f"{'class':<{width}}     IoU  accuracy"]
  for name, iou, accuracy in zip(
      class_names, scores.per_class_iou, scores.per_class_accuracy):
    rows.append(f"{name:<{width}}  {_percent(iou):>6}  {_percent(accuracy):>8}")
  return "\n".join(rows)


def describe_end(workdir: pathlib.Path, seconds: float,
                 scores: metrics.Scores | None, best: dict | None = None
                 ) -> None:
  """What came of a run, and where all of it lies.

  Args:
    workdir: whose files are told.
    seconds: since the start.
    scores: of the evaluation; None: it had no masks to compare with.
    best: of the validations, a line of validation.jsonl.
  """
  log(f"done       in {duration(seconds)}")
  if best:
    say(f"best       validation mIoU {best['miou']:.2%} at step "
        f"{best['step']:,}")
  if scores is not None:
    say(f"scores     {summary(scores)}",
        f"           final score {scores.final_score:.2%}")
  folder = workdir
  if workdir.is_relative_to(pathlib.Path.cwd()):
    folder = workdir.relative_to(pathlib.Path.cwd())
  names = [path.name + "/" * path.is_dir() for path in sorted(workdir.iterdir())
           if not path.name.startswith((".", "events.out."))
           and path.name not in ("lock", "plugins")]
  for i, name in enumerate(names):
    say(f"{'' if i else 'written':<11}{folder}/{name}")
  if any(workdir.glob("events.out.*")):
    say(f"curves     tensorboard --logdir={folder}")
  if (workdir / "plugins").is_dir():
    say(f"profile    xprof --logdir={folder}")


def _percent(fraction: float) -> str:
  return "absent" if math.isnan(fraction) else f"{100 * fraction:.2f}"
