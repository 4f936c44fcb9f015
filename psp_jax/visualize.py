"""Label maps as colours, and the contact sheet."""

import io

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_IGNORED = (0, 0, 0)
_IGNORED_BESIDE_BLACK = (224, 224, 192)  # VOC's own, whose background is black.
_WRONG = (214, 40, 57)
_GAP = 4
_TEXT_HEIGHT = 22
MAX_WIDTH = 480  # Of pictures that are looked at on a screen.


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
  """(H, W) ids to (H, W, 3) uint8 RGB.

  Ids past the palette are black, or VOC's cream where a class is black.
  """
  black = (palette == 0).all(-1).any()
  table = np.empty((256, 3), np.uint8)
  table[:] = _IGNORED_BESIDE_BLACK if black else _IGNORED
  table[:len(palette)] = palette
  return table[label]


def overlay(image: np.ndarray, label: np.ndarray, palette: np.ndarray,
            opacity: float = 0.5) -> np.ndarray:
  """(H, W, 3) uint8 RGB: the classes' colours over the image.

  Ignored pixels stay as they are.
  """
  colours = colorize(label, palette)
  mixed = cv2.addWeighted(image, 1 - opacity, colours, opacity, 0)
  mixed[label >= len(palette)] = image[label >= len(palette)]
  return mixed


def overlay_with_legend(image: np.ndarray, label: np.ndarray, taxonomy,
                        opacity: float = 0.5) -> np.ndarray:
  """`overlay`, and below it the classes found, by their shares.

  Returns:
    (H', W, 3) uint8 RGB, H' > H.
  """
  drawn = overlay(image, label, taxonomy.palette, opacity)
  size = max(11, round((label.size ** 0.5) / 38))  # Readable on a screen.
  return np.vstack([drawn, shares_legend(
      label, taxonomy, image.shape[1], size)])


def shares(label: np.ndarray, num_classes: int) -> list[tuple[int, float]]:
  """(class id, share of all pixels) of the classes found, largest first."""
  counts = np.bincount(label.reshape(-1), minlength=256)[:num_classes]
  order = np.argsort(-counts, kind="stable")
  return [(int(i), counts[i] / label.size) for i in order if counts[i]]


def shares_legend(label: np.ndarray, taxonomy, width: int,
                  size: int) -> np.ndarray:
  """(h, width, 3) uint8 RGB: colour, name and share of each class found.

  Letters are `size` pixels high.
  """
  font = ImageFont.load_default(size)
  line, gap = round(1.7 * size), size // 2
  x, y, places = gap, gap, []
  for index, share in shares(label, taxonomy.num_classes):
    percent = f"{share:.1%}" if share >= 0.001 else "< 0.1%"
    text = f"{taxonomy.class_names[index]}  {percent}"
    needed = round(1.5 * size + font.getlength(text))
    if x > gap and x + needed > width - gap:
      x, y = gap, y + line
    places.append((x, y, index, text))
    x += needed + 2 * size
  panel = Image.new("RGB", (width, y + line + gap), "white")
  draw = ImageDraw.Draw(panel)
  for x, y, index, text in places:
    draw.rectangle((x, y + size // 6, x + size, y + size // 6 + size),
                   tuple(map(int, taxonomy.palette[index])), (120, 120, 120))
    draw.text((x + round(1.5 * size), y), text, (40, 40, 40), font)
  return np.asarray(panel)


def shrunk(max_width: int | None, image: np.ndarray, *labels: np.ndarray
           ) -> list:
  """The image and label maps, no wider than this, nor higher than its double.

  What fits is handed back as it is; so is all where `max_width` is None.
  """
  height, width = image.shape[:2]
  max_width = max_width or width + height
  scale = min(max_width / width, 2 * max_width / height)
  if scale >= 1:
    return [image, *labels]
  size = max(1, round(width * scale)), max(1, round(height * scale))
  return [cv2.resize(image, size, interpolation=cv2.INTER_AREA),
          *(cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)
            for label in labels)]


def errors(image: np.ndarray, truth: np.ndarray,
           prediction: np.ndarray) -> np.ndarray:
  """(H, W, 3) uint8 RGB: wrong pixels red over a grey, pale photograph.

  Ignored pixels (255 in `truth`) are dark.
  """
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  shown = np.repeat((150 + grey * 0.4).astype(np.uint8)[..., None], 3, -1)
  shown[truth == 255] = shown[truth == 255] // 3
  wrong = (truth != prediction) & (truth != 255)
  shown[wrong] = shown[wrong] * 0.25 + np.array(_WRONG) * 0.75
  return shown


def contact_sheet(rows, taxonomy, max_width: int | None = None) -> np.ndarray:
  """A row a record: image | truth | prediction, and a legend below.

  Args:
    rows: of (image (H, W, 3), truth (H, W), prediction (H, W)).
    taxonomy: names and colours.
    max_width: that larger pictures are shrunk to; None: they stay.

  Returns:
    (height, width, 3) uint8 RGB, white between the pictures.
  """
  palette = taxonomy.palette
  return _sheet([
      [image, colorize(truth, palette), colorize(guess, palette)]
      for image, truth, guess in (shrunk(max_width, *row) for row in rows)],
      ("image", "truth", "prediction"), taxonomy)


def mask_sheet(rows, taxonomy, max_width: int = MAX_WIDTH) -> np.ndarray:
  """A row a record: image | mask | both, and a legend below.

  Args:
    rows: of (image (H, W, 3), label (H, W)).
    taxonomy: names and colours.
    max_width: that larger pictures are shrunk to.

  Returns:
    (height, width, 3) uint8 RGB.
  """
  pictures = []
  for row in rows:
    image, label = shrunk(max_width, *row)
    pictures.append([image, colorize(label, taxonomy.palette),
                     overlay(image, label, taxonomy.palette)])
  return _sheet(pictures, ("image", "mask", "both"), taxonomy)


def _sheet(pictures, titles, taxonomy) -> np.ndarray:
  height = max(p.shape[0] for row in pictures for p in row)
  width = max(p.shape[1] for row in pictures for p in row)
  lines = [np.hstack([_framed(p, height, width) for p in row])
           for row in pictures]
  total = lines[0].shape[1]
  header = np.full((_TEXT_HEIGHT, total, 3), 255, np.uint8)
  for i, title in enumerate(titles):
    _write(header, title, i * (width + _GAP) + 2)
  return np.vstack([header, *lines, _legend(taxonomy, total)])


def indexed_png(label: np.ndarray, palette: np.ndarray) -> bytes:
  """(H, W) uint8 ids as a PNG whose indices they are, in the colours given."""
  image = Image.fromarray(label)
  colours = np.zeros((256, 3), np.uint8)  # Fewer, and Pillow packs pixels.
  colours[:len(palette)] = palette
  image.putpalette(colours.tobytes())
  data = io.BytesIO()
  image.save(data, "PNG")
  return data.getvalue()


def write_png(path, rgb: np.ndarray) -> None:
  """Raises OSError where `path` cannot be written."""
  done, data = cv2.imencode(".png", np.ascontiguousarray(rgb[..., ::-1]))
  assert done
  with open(path, "wb") as file:
    file.write(data.tobytes())


def _framed(picture, height, width):
  frame = np.full((height + _GAP, width + _GAP, 3), 255, np.uint8)
  frame[:picture.shape[0], :picture.shape[1]] = picture
  return frame


def _legend(taxonomy, width):
  cell = 110
  columns = max(1, width // cell)
  count = len(taxonomy.class_names)
  legend = np.full((-(-count // columns) * _TEXT_HEIGHT, width, 3), 255,
                   np.uint8)
  for i, name in enumerate(taxonomy.class_names):
    y, x = i // columns * _TEXT_HEIGHT, i % columns * cell
    legend[y + 4:y + 18, x + 2:x + 16] = taxonomy.palette[i]
    _write(legend[y:y + _TEXT_HEIGHT], name[:14], x + 20)
  return legend


def _write(strip, text, x):
  cv2.putText(strip, text, (x, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42,
              (40, 40, 40), 1, cv2.LINE_AA)
