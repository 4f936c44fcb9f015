"""semseg's test protocol on the device (tool/test.py there).

An image is resized, padded to the window with the mean, cut into overlapping
windows; each window's class probabilities (averaged with its mirror image's)
are summed where they overlap, divided by the count, cropped, resized to the
image's own size and averaged over scales.

Resizing, padding and cropping are matrices passed as *arguments*, and
offsets are traced, so programs are compiled for a handful of rounded-up
shapes and not for every image size. The network sees one shape only.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from psp_jax.data.normalize import normalize

# Shapes are rounded up to multiples of this before compiling.
_BUCKET = 64


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How an image is scored; `window=None` takes it in one piece."""
  scales: tuple[float, ...]
  flip: bool
  window: int | None
  stride_fraction: float
  base_size: int

  @classmethod
  def from_config(cls, config) -> "Protocol":
    c = config.eval
    size = c.window_size or config.data.crop_size
    return cls(scales=tuple(c.scales), flip=c.flip,
               window=None if c.window == "whole" else size,
               stride_fraction=c.stride_fraction, base_size=c.base_size)

  def as_json(self) -> dict:
    return {"scales": list(self.scales), "flip": self.flip,
            "window": self.window or "whole", "base_size": self.base_size,
            "stride_fraction": self.stride_fraction}


@dataclasses.dataclass(frozen=True)
class Plan:
  """Where everything lies for one image size and scale.

  Attributes:
    scaled: (height, width) after resizing.
    canvas: after padding to at least the window.
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
  long_side = round(scale * (protocol.base_size or max(height, width)))
  if height > width:
    scaled = long_side, max(1, round(long_side / height * width))
  else:
    scaled = max(1, round(long_side / width * height)), long_side
  if protocol.window is None:
    return Plan(scaled, scaled, (0, 0), scaled, ((0, 0),))
  window = protocol.window
  canvas = max(scaled[0], window), max(scaled[1], window)
  pad = (canvas[0] - scaled[0]) // 2, (canvas[1] - scaled[1]) // 2
  stride = math.ceil(window * protocol.stride_fraction)
  starts = [[min(i * stride, size - window)
             for i in range(math.ceil((size - window) / stride) + 1)]
            for size in canvas]
  offsets = tuple((top, left) for top in starts[0] for left in starts[1])
  return Plan(scaled, canvas, pad, (window, window), offsets)


def half_pixel_matrix(source: int, target: int) -> np.ndarray:
  """(target, source) matrix of cv2.resize's INTER_LINEAR along one axis."""
  position = (np.arange(target) + 0.5) * (source / target) - 0.5
  position = np.clip(position, 0, source - 1)
  low = np.floor(position).astype(int)
  high = np.minimum(low + 1, source - 1)
  weight = position - low
  matrix = np.zeros((target, source), np.float32)
  np.add.at(matrix, (np.arange(target), low), 1 - weight)
  np.add.at(matrix, (np.arange(target), high), weight)
  return matrix


def _placed(matrix, shape, row=0, column=0):
  """`matrix` at (row, column) of zeros of `shape`."""
  out = np.zeros(shape, np.float32)
  out[row:row + matrix.shape[0], column:column + matrix.shape[1]] = matrix
  return out


def _bucket(size: int) -> int:
  return -(-size // _BUCKET) * _BUCKET


def _apply_rows_and_columns(rows, columns, x):
  """rows @ x @ columns^T over axes 1 and 2, in true fp32."""
  highest = jax.lax.Precision.HIGHEST
  x = jnp.einsum("ah,nhwc->nawc", rows, x, precision=highest)
  return jnp.einsum("bw,nawc->nabc", columns, x, precision=highest)


@functools.partial(jax.jit, static_argnames="window")
def _cut(images, rows, columns, image_ids, tops, lefts, window):
  """Windows (n, *window, 3), normalised; padding is 0, which is the mean."""
  canvas = _apply_rows_and_columns(rows, columns, normalize(images))

  def one(image_id, top, left):
    return jax.lax.dynamic_slice(
        canvas, (image_id, top, left, 0), (1, *window, 3))[0]

  return jax.vmap(one)(image_ids, tops, lefts)


@functools.partial(jax.jit, donate_argnums=0)
def _accumulate(canvas, probabilities, image_ids, tops, lefts, weights):
  """Adds each window's probabilities to its place; weight 0 is filler."""
  def add(canvas, item):
    window, image_id, top, left, weight = item
    start = (image_id, top, left, 0)
    size = (1, *window.shape)
    seen = jax.lax.dynamic_slice(canvas, start, size)
    return jax.lax.dynamic_update_slice(
        canvas, seen + weight * window[None], start), None

  items = (probabilities, image_ids, tops, lefts, weights)
  return jax.lax.scan(add, canvas, items)[0]


@jax.jit
def _to_image(canvas, counts, rows, columns):
  """Mean over overlaps, cropped and resized to the image's own size."""
  return _apply_rows_and_columns(rows, columns, canvas / counts[..., None])


def make_forward(model, flip: bool):
  """(variables, windows) -> probabilities, with the mirrored ones averaged."""
  def forward(variables, windows):
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
    forward: compiled (variables, windows) -> probabilities.
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
  total = 0.0
  for scale in protocol.scales:
    p = plan(height, width, scale, protocol)
    canvas_size = p.canvas if exact else tuple(map(_bucket, p.canvas))
    into, back = [], []
    for axis, size in enumerate((height, width)):
      into.append(_placed(half_pixel_matrix(size, p.scaled[axis]),
                          (canvas_size[axis], padded[axis]), row=p.pad[axis]))
      back.append(_placed(half_pixel_matrix(p.scaled[axis], size),
                          (padded[axis], canvas_size[axis]),
                          column=p.pad[axis]))
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
    total = total + _to_image(canvas, np.maximum(counts, 1), *back)
  return total / len(protocol.scales)
