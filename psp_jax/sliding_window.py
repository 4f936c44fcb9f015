"""semseg's test protocol on the device (tool/test.py there).

An image is resized, padded to the window with the mean, cut into overlapping
windows; each window's class probabilities (averaged with its mirror image's)
are summed where they overlap, divided by the count, cropped, resized to the
image's own size and averaged over scales.

With `average="logits"` it is mmsegmentation's (slide_inference and its test
augmentation there): the mirrored image is cut on its own; overlapping windows
average logits, without padding (an image smaller than the window is taken
whole); logits are resized to the image's own size, and their softmax is
averaged over scales and mirror images. (Its resized images are rounded to 8
bits, ours are not.)

Resizing, padding and cropping are matrices passed as *arguments*, and
offsets are traced, so programs are compiled for a handful of rounded-up
shapes and not for every image size. The network sees one shape only.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from psp_jax.data.normalize import normalize
from psp_jax.errors import check_choice
from psp_jax.models.pooling import interpolation_matrix, interpolation_taps

# Shapes are rounded up to multiples of this before compiling.
_BUCKET = 64
# Longest axis that a matrix resizes, which matrix units do best: 64 MB.
_MATRIX_LIMIT = 4096


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How images are scored; the fields of `config.eval`.

  Attributes:
    scales: of the base size.
    flip: the mirror image counts as well.
    window: side of the square window; None takes each image in one piece.
    stride_fraction: of the window, rounded up to pixels.
    base_size: of the side that `base_side` names; 0 for the image's own.
    base_side: "long" (semseg) or "short". mmsegmentation's keep-ratio scale
      (2048, 512) is "short" with 512 where the long side stays within 2048.
    average: "probabilities" (semseg) or "logits" (mmsegmentation).
    absent_classes: "skip" or "zero", see `metrics.scores`.
  """
  scales: tuple[float, ...]
  flip: bool
  window: int | None
  stride_fraction: float
  base_size: int
  base_side: str = "long"
  average: str = "probabilities"
  absent_classes: str = "skip"

  @classmethod
  def from_config(cls, config) -> "Protocol":
    """Raises ConfigError where a field names something that is not there."""
    c = config.eval
    check_choice("eval.window", c.window, ("sliding", "whole"))
    check_choice("eval.base_side", c.base_side, ("long", "short"))
    check_choice("eval.average", c.average, ("probabilities", "logits"))
    check_choice("eval.absent_classes", c.absent_classes, ("skip", "zero"))
    size = c.window_size or config.data.crop_size
    return cls(scales=tuple(c.scales), flip=c.flip,
               window=None if c.window == "whole" else size,
               stride_fraction=c.stride_fraction, base_size=c.base_size,
               base_side=c.base_side, average=c.average,
               absent_classes=c.absent_classes)

  def as_json(self) -> dict:
    return dataclasses.asdict(self) | {
        "scales": list(self.scales), "window": self.window or "whole"}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where everything lies for one image size and scale.

  Attributes:
    scaled: (height, width) after resizing.
    canvas: after padding to at least the window, where there is padding.
    pad: rows above and columns left of the image on the canvas.
    window: (height, width) of a window.
    offsets: (top, left) of each window on the canvas.
  """
  scaled: tuple[int, int]
  canvas: tuple[int, int]
  pad: tuple[int, int]
  window: tuple[int, int]
  offsets: tuple[tuple[int, int], ...]


def plan(height: int, width: int, scale: float, protocol: Protocol) -> Plan:
  """The geometry of semseg's scale_process for one scale."""
  scaled = _scaled_size(height, width, scale, protocol)
  if protocol.window is None:
    return Plan(scaled, scaled, (0, 0), scaled, ((0, 0),))
  canvas = scaled
  if protocol.average == "probabilities":
    canvas = tuple(max(s, protocol.window) for s in scaled)
  pad = (canvas[0] - scaled[0]) // 2, (canvas[1] - scaled[1]) // 2
  window = tuple(min(c, protocol.window) for c in canvas)
  stride = math.ceil(protocol.window * protocol.stride_fraction)
  starts = [[min(i * stride, c - w)
             for i in range(math.ceil((c - w) / stride) + 1)]
            for c, w in zip(canvas, window)]
  offsets = tuple((top, left) for top in starts[0] for left in starts[1])
  return Plan(scaled, canvas, pad, window, offsets)


def _scaled_size(height, width, scale, protocol) -> tuple[int, int]:
  if protocol.base_side == "short":  # mmcv rounds both sides from one factor,
    short_side = min(height, width)
    factor = scale * (protocol.base_size or short_side) / short_side
    return tuple(max(1, int(s * factor + 0.5)) for s in (height, width))
  # semseg the long side first; the other follows it.
  long_side = round(scale * (protocol.base_size or max(height, width)))
  if height > width:
    return long_side, max(1, round(long_side / height * width))
  return max(1, round(long_side / width * height)), long_side


def half_pixel_matrix(source: int, target: int) -> np.ndarray:
  """(target, source) matrix of cv2.resize's INTER_LINEAR along one axis."""
  matrix = interpolation_matrix(source, target, align_corners=False)
  return matrix.astype(np.float32)


def _resampling(source: int, target: int, shape: tuple[int, int],
                row: int = 0, column: int = 0, from_end: bool = False,
                to_end: bool = False):
  """What resizes an axis, as `_apply_rows_and_columns` takes it.

  Args:
    source: pixels of the axis.
    target: pixels it becomes.
    shape: (out, in) of the axis with padding, out >= target, in >= source.
    row: where the result begins; zeros around it.
    column: where the source begins.
    from_end: whether the source is read backwards, a mirror image.
    to_end: whether the result is written backwards.

  Returns:
    The (out, in) matrix; for long axes, whose matrices would fill the memory,
    (low, high, weight of low, weight of high), each (out,).
  """
  if max(shape) <= _MATRIX_LIMIT:
    matrix = np.zeros(shape, np.float32)
    matrix[row:row + target, column:column + source] = half_pixel_matrix(
        source, target)[::-1 if to_end else 1, ::-1 if from_end else 1]
    return matrix
  low, high, weight = interpolation_taps(source, target, align_corners=False)
  if from_end:
    low, high = source - 1 - low, source - 1 - high
  inside = np.s_[row:row + target]
  taps = []
  for values, kind in ((low + column, np.int32), (high + column, np.int32),
                       (1 - weight, np.float32), (weight, np.float32)):
    placed = np.zeros(shape[0], kind)
    placed[inside] = values[::-1] if to_end else values
    taps.append(placed)
  return tuple(taps)


def _bucket(size: int) -> int:
  return -(-size // _BUCKET) * _BUCKET


def _apply_rows_and_columns(rows, columns, x):
  """Resamples axes 1 and 2 by `_resampling`'s answers, in true fp32."""
  highest = jax.lax.Precision.HIGHEST
  if isinstance(rows, tuple):
    x = _gather(rows, x, 1)
  else:
    x = jnp.einsum("ah,nhwc->nawc", rows, x, precision=highest)
  if isinstance(columns, tuple):
    return _gather(columns, x, 2)
  return jnp.einsum("bw,nawc->nabc", columns, x, precision=highest)


def _gather(taps, x, axis):
  low, high, low_weight, high_weight = taps
  shape = [1] * x.ndim
  shape[axis] = -1
  return (jnp.take(x, low, axis) * low_weight.reshape(shape)
          + jnp.take(x, high, axis) * high_weight.reshape(shape))


@functools.partial(jax.jit, static_argnames="window")
def _cut(images, rows, columns, image_ids, tops, lefts, window):
  """Windows (n, *window, 3), normalised; padding is 0, which is the mean."""
  canvas = _apply_rows_and_columns(rows, columns, normalize(images))

  def one(image_id, top, left):
    return jax.lax.dynamic_slice(
        canvas, (image_id, top, left, 0), (1, *window, 3))[0]

  return jax.vmap(one)(image_ids, tops, lefts)


@functools.partial(jax.jit, donate_argnums=0)
def _accumulate(canvas, answers, image_ids, tops, lefts, weights):
  """Adds each window's answer to its place; weight 0 is filler."""
  def add(canvas, item):
    window, image_id, top, left, weight = item
    start = (image_id, top, left, 0)
    size = (1, *window.shape)
    seen = jax.lax.dynamic_slice(canvas, start, size)
    return jax.lax.dynamic_update_slice(
        canvas, seen + weight * window[None], start), None

  items = (answers, image_ids, tops, lefts, weights)
  return jax.lax.scan(add, canvas, items)[0]


@functools.partial(jax.jit, static_argnames="average")
def _to_image(canvas, counts, rows, columns, average):
  """Mean over overlaps, cropped and resized to the image's own size."""
  mean = _apply_rows_and_columns(rows, columns, canvas / counts[..., None])
  return jax.nn.softmax(mean) if average == "logits" else mean


def make_forward(model, flip: bool, average: str = "probabilities"):
  """(variables, windows) -> what is to be averaged where windows overlap.

  Probabilities, with the mirrored windows' averaged in; or logits, to which
  mirrored windows come on their own.
  """
  def forward(variables, windows):
    if average == "logits":
      return model.apply(variables, windows, train=False)
    if not flip:
      return jax.nn.softmax(model.apply(variables, windows, train=False))
    both = jnp.concatenate([windows, windows[:, :, ::-1]])
    straight, mirrored = jnp.split(
        jax.nn.softmax(model.apply(variables, both, train=False)), 2)
    return (straight + mirrored[:, :, ::-1]) / 2
  return forward


def probabilities(forward, variables, images: np.ndarray, num_classes: int,
                  protocol: Protocol, window_batch: int) -> jax.Array:
  """Class probabilities of images of one size, at that size.

  Args:
    forward: `make_forward`'s, compiled.
    variables: of the model.
    images: (G, H, W, 3) uint8 RGB.
    num_classes: C.
    protocol: how.
    window_batch: windows in one call of `forward`.

  Returns:
    (G, H', W', C) float32 with H' >= H and W' >= W; what lies beyond H and W
    is filler.
  """
  group, height, width = images.shape[:3]
  exact = protocol.window is None  # Padding would change what is pooled.
  padded = ((height, width) if exact else (_bucket(height), _bucket(width)))
  images = np.pad(images, ((0, 0), (0, padded[0] - height),
                           (0, padded[1] - width), (0, 0)))
  # A mirror image is the order of the columns, before and after.
  orders = [False]
  if protocol.flip and protocol.average == "logits":
    orders.append(True)
  total = 0.0
  for scale, mirrored in itertools.product(protocol.scales, orders):
    p = plan(height, width, scale, protocol)
    canvas_size = p.canvas if exact else tuple(map(_bucket, p.canvas))
    into, back = [], []
    for axis, size in enumerate((height, width)):
      turned = mirrored and axis == 1
      shape = canvas_size[axis], padded[axis]
      into.append(_resampling(size, p.scaled[axis], shape,
                              row=p.pad[axis], from_end=turned))
      back.append(_resampling(p.scaled[axis], size, shape[::-1],
                              column=p.pad[axis], to_end=turned))
    counts = np.zeros(canvas_size, np.float32)
    for top, left in p.offsets:
      counts[top:top + p.window[0], left:left + p.window[1]] += 1

    jobs = [(g, top, left, 1.0)
            for g in range(group) for top, left in p.offsets]
    jobs += [(0, 0, 0, 0.0)] * (-len(jobs) % window_batch)
    canvas = jnp.zeros((group, *canvas_size, num_classes), jnp.float32)
    for start in range(0, len(jobs), window_batch):
      ids, tops, lefts, weights = map(
          np.array, zip(*jobs[start:start + window_batch]))
      windows = _cut(images, *into, ids, tops, lefts, window=p.window)
      canvas = _accumulate(canvas, forward(variables, windows),
                           ids, tops, lefts, weights.astype(np.float32))
    total = total + _to_image(
        canvas, np.maximum(counts, 1), *back, average=protocol.average)
  return total / (len(protocol.scales) * len(orders))
