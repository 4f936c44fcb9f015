"""The plans of `sliding_window`, carried out on the device.

Windows of all scales and of image after image go through the network in full
batches of one shape. An image's probabilities are kept at its own size in
square tiles, a fixed number of them in an array; each window's answer is added
to the tiles that it reaches. So no program
depends on the size of an image, but for the powers of two that hold its pixels
and the few widths that a tile's share of a window may have.
"""

import collections
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psp_jax import sliding_window
from psp_jax.data.normalize import normalize
from psp_jax.sliding_window import Protocol, Taps

TILE = 64
# Tiles in one array: large enough for few calls, small enough for little
# filler. With 150 classes it has 39 MB.
BLOCK = 16
# Additions to tiles in one call, at most.
_CHUNK = 64


def tile_grid(height: int, width: int) -> tuple[int, int]:
  """Rows and columns of tiles that cover an image."""
  return -(-height // TILE), -(-width // TILE)


def to_blocks(array: np.ndarray, fill) -> np.ndarray:
  """(H, W) to (blocks, BLOCK, TILE, TILE), with `fill` beyond the image."""
  height, width = array.shape
  rows, columns = tile_grid(height, width)
  padded = np.full((rows * TILE, columns * TILE), fill, array.dtype)
  padded[:height, :width] = array
  tiles = padded.reshape(rows, TILE, columns, TILE).swapaxes(1, 2).reshape(
      -1, TILE, TILE)
  missing = np.full((-len(tiles) % BLOCK, TILE, TILE), fill, array.dtype)
  return np.concatenate([tiles, missing]).reshape(-1, BLOCK, TILE, TILE)


def from_blocks(blocks, height: int, width: int) -> np.ndarray:
  """Arrays (BLOCK, TILE, TILE, ...) of one image to (H, W, ...)."""
  rows, columns = tile_grid(height, width)
  tiles = np.concatenate(blocks)[:rows * columns]
  tiles = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
  return tiles.reshape(
      rows * TILE, columns * TILE, *tiles.shape[4:])[:height, :width]


# ---- Device code.


def _apply_taps(x, taps, axis):
  shape = [1] * x.ndim
  shape[axis] = -1
  return sum(jnp.take(x, taps.low + i, axis, mode="clip")
             * weight.reshape(shape)
             for i, weight in enumerate((taps.first, taps.second)))


@jax.jit
def _cut(pixels, rows, columns):
  """A window (h, w, 3), normalised; padding is 0, which is the mean."""
  # Weights of a pixel add up to 1, or to 0 in padding: the mean goes first.
  return _apply_taps(_apply_taps(normalize(pixels), rows, 0), columns, 1)


def _tile_by_taps(answers, window, rows, columns):
  """What a window adds to a tile: what measures best on CPUs."""
  answer = jax.lax.dynamic_index_in_dim(answers, window, 0, keepdims=False)
  return _apply_taps(_apply_taps(answer, rows, 0), columns, 1)


def _tile_by_matrices(answers, window, rows, columns, top, left, strip):
  """The same for matrix units, from a strip of the window at (top, left)."""
  part = jax.lax.dynamic_slice(
      answers, (window, top, left, 0), (1, *strip, answers.shape[-1]))[0]
  highest = jax.lax.Precision.HIGHEST
  part = jnp.einsum("ah,hwc->awc", _matrix(rows, top, strip[0]), part,
                    precision=highest)
  return jnp.einsum("bw,awc->abc", _matrix(columns, left, strip[1]), part,
                    precision=highest)


def _matrix(taps, start, size):
  """(TILE, size) of taps that are in pixels from `start`."""
  pixel = start + jnp.arange(size)
  low, first, second = (x[:, None] for x in taps)
  return (jnp.where(pixel == low, first, 0)
          + jnp.where(pixel == low + 1, second, 0))


@functools.partial(jax.jit, donate_argnums=0, static_argnames="strip")
def _stitch(block, answers, count, places, rows, columns, strip):
  """Adds windows' answers to tiles of one image.

  Args:
    block: (BLOCK, TILE, TILE, C).
    answers: (B, h, w, C), of windows.
    count: of the following that is no filler.
    places: (K, 4), of a tile, a window, and a strip's top and left in it.
    rows: taps (K, TILE) of the window's rows.
    columns: likewise.
    strip: (height, width) of the part of a window that a tile needs.
  """
  def add(i, block):
    tile, window, top, left = places[i]
    down, across = (Taps(*(x[i] for x in taps)) for taps in (rows, columns))
    part = jax.lax.platform_dependent(
        cpu=lambda: _tile_by_taps(answers, window, down, across),
        default=lambda: _tile_by_matrices(
            answers, window, down, across, top, left, strip))
    part += jax.lax.dynamic_index_in_dim(block, tile, 0, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(block, part, tile, 0)

  return jax.lax.fori_loop(0, count, add, block)


def _strip(span: int) -> int:
  """The next 2^k or 3 * 2^k: few widths."""
  power = 1 << (span - 1).bit_length()
  return 3 * power // 4 if span <= 3 * power // 4 else power


@functools.partial(jax.jit, static_argnames="classes")
def _zeros(classes):
  return jnp.zeros((BLOCK, TILE, TILE, classes), jnp.float32)


@functools.partial(jax.jit, donate_argnums=0)
def _add_softmax(total, logits, weight):
  return total + jax.nn.softmax(logits) * weight


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
    # Side by side, so that each device has the mirror images of its own.
    both = jnp.stack([windows, windows[:, :, ::-1]], 1)
    answers = jax.nn.softmax(model.apply(
        variables, both.reshape(-1, *windows.shape[1:]), train=False))
    answers = answers.reshape(*both.shape[:2], *answers.shape[1:])
    return (answers[:, 0] + answers[:, 1, :, ::-1]) / 2
  return forward


# ---- From images to batches of windows, and back.


@dataclasses.dataclass
class _Image:
  """One whose windows are under way; its blocks lie in `total`."""
  key: Any
  pixels: jax.Array
  size: tuple[int, int]
  views: int = 0
  total: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _View:
  """What is summed before something that is not linear, or the end."""
  image: _Image
  windows: int = 0
  blocks: list = dataclasses.field(default_factory=list)


class _Window:
  """Taps of (rows, columns) into it, pieces of (rows, columns) out of it.

  `strip` is the (height, width) that any of these pieces needs of it.
  """

  def __init__(self, view, shape, into, out, strip):
    self.view, self.shape, self.strip = view, shape, strip
    self.into, self.out = into, out
    view.windows += 1


def _windows(image: _Image, protocol: Protocol) -> list[_Window]:
  """All windows of an image, those of one view one after the other."""
  logits = protocol.average == "logits"
  # Of logits, every scale and mirror image has a softmax of its own.
  orders = (False, True) if logits and protocol.flip else (False,)
  windows, view = [], None
  for scale, mirrored in itertools.product(protocol.scales, orders):
    if view is None or logits:
      view = _View(image)
      image.views += 1
    p = sliding_window.plan(*image.size, scale, protocol)
    weight = 1 if logits else 1 / len(protocol.scales)
    into, out, spans = [], [], []
    for axis, size in enumerate(image.size):
      place = size, p.scaled[axis], p.pad[axis]
      turned = mirrored and axis == 1
      into.append([sliding_window.into_window(
          *place, start, p.window[axis], turned) for start in p.starts[axis]])
      out.append(sliding_window.out_of_windows(
          *place, p.starts[axis], p.window[axis], TILE,
          weight if axis == 0 else 1, turned))
      spans += [piece.span for pieces in out[axis] for piece in pieces]
    strip = tuple(min(_strip(max(spans)), side) for side in p.window)
    windows += [_Window(view, p.window, i, o, strip) for i, o in zip(
        itertools.product(*into), itertools.product(*out))]
  return windows


def stitched(forward, variables, images, num_classes: int, protocol: Protocol,
             window_batch: int):
  """Class probabilities of images of any sizes, at those sizes.

  Args:
    forward: `make_forward`'s, compiled.
    variables: of the model.
    images: iterable of (anything, (H, W, 3) uint8 RGB).
    num_classes: C.
    protocol: how.
    window_batch: windows in one call of `forward`; only the last of a shape
      may hold filler.

  Yields:
    (anything, list of (BLOCK, TILE, TILE, C) float32), in order; what lies
    beyond H and W is filler.
  """
  waiting = {}  # Windows by shape; one shape where windows are of one size.
  under_way = collections.deque()
  running = collections.deque()

  def run(shape):
    batch = waiting.pop(shape)
    # The host prepares one batch while the device works on another.
    if len(running) > 1:
      jax.block_until_ready(running.popleft())
    cut = [_cut(w.view.image.pixels, *w.into) for w in batch]
    cut += cut[-1:] * (window_batch - len(batch))
    answers = forward(variables, jnp.stack(cut))
    running.append(answers)
    for _, part in itertools.groupby(
        enumerate(batch), lambda item: (id(item[1].view), item[1].strip)):
      _add_answers(list(part), answers, num_classes, protocol)

  for key, pixels in images:
    height, width = pixels.shape[:2]
    room = [(0, (1 << (size - 1).bit_length()) - size)
            for size in (height, width)]
    image = _Image(key, jax.device_put(np.pad(pixels, [*room, (0, 0)])),
                   (height, width))
    windows = _windows(image, protocol)
    # An image that brings no more of a shape would wait for another that may.
    for shape in set(waiting) - {w.shape for w in windows}:
      run(shape)
    under_way.append(image)
    for window in windows:
      waiting.setdefault(window.shape, []).append(window)
      if len(waiting[window.shape]) == window_batch:
        run(window.shape)
    while under_way and not under_way[0].views:
      image = under_way.popleft()
      yield image.key, image.total
  for shape in list(waiting):
    run(shape)
  for image in under_way:
    yield image.key, image.total


def _add_answers(windows, answers, num_classes, protocol) -> None:
  """Adds answers to the tiles of an image.

  Args:
    windows: (index in the batch, _Window), of one view and strip.
    answers: (B, h, w, C), of the batch.
    num_classes: C.
    protocol: how.
  """
  view, strip = windows[0][1].view, windows[0][1].strip
  image = view.image
  rows, columns = tile_grid(*image.size)
  count = -(-rows * columns // BLOCK)
  view.blocks = view.blocks or [_zeros(num_classes) for _ in range(count)]
  by_block = [[] for _ in range(count)]
  for index, window in windows:
    for row, column in itertools.product(*window.out):
      block, tile = divmod(row.tile * columns + column.tile, BLOCK)
      top, left = (min(piece.first, side - extent) for piece, side, extent
                   in zip((row, column), window.shape, strip))
      by_block[block].append(
          ((tile, index, top, left), row.taps, column.taps))
  for block, pieces in enumerate(by_block):
    for start in range(0, len(pieces), _CHUNK):
      chunk = pieces[start:start + _CHUNK]
      padded = chunk + chunk[-1:] * (_CHUNK - len(chunk))
      places, down, across = zip(*padded)
      view.blocks[block] = _stitch(
          view.blocks[block], answers, len(chunk), np.array(places, np.int32),
          *(Taps(*map(np.stack, zip(*taps))) for taps in (down, across)),
          strip=strip)
  view.windows -= len(windows)
  if not view.windows:
    _close(view, num_classes, protocol)


def _close(view, num_classes, protocol) -> None:
  """Adds a view that is complete to its image."""
  image = view.image
  if protocol.average == "probabilities":
    image.total = view.blocks
  else:
    views = len(protocol.scales) * (2 if protocol.flip else 1)
    total = image.total or [_zeros(num_classes) for _ in view.blocks]
    image.total = [_add_softmax(sums, logits, 1 / views)
                   for sums, logits in zip(total, view.blocks)]
  view.blocks = []
  image.views -= 1


def probabilities(forward, variables, images, num_classes: int,
                  protocol: Protocol, window_batch: int) -> list[np.ndarray]:
  """The (H, W, C) of each image, put together on the host.

  Arguments are those of `stitched`, but for `images`: (H, W, 3) uint8 RGB.
  """
  keyed = ((image.shape[:2], image) for image in images)
  return [from_blocks(blocks, *size) for size, blocks in stitched(
      forward, variables, keyed, num_classes, protocol, window_batch)]
