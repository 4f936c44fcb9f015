"""Rendered scenes in which only far away context names some of the objects.

PSPNet's motivating figure shows a boat that a local network calls a car: seen
alone it looks like one, and only the river around it settles the matter. These
pictures isolate that effect. A strip of water ("harbour") or of road ("city")
crosses the top of the picture; at the bottom vehicles and blocks stand in fog.
Their pixels are the same in both kinds, but a vehicle is a boat in a harbour
and a car in a city, a block a building or a skyscraper. At least `CONTEXT_GAP`
rows separate them from the strip, so a network whose receptive field is
narrower than that can only guess, while one that pools globally can know.

Whatever else told the kinds apart would defeat the purpose. So every picture
is painted as a harbour whose strip is blank, and the kind enters in `render`
alone, at the very end: it fills the strip and renames three classes.
"""

import cv2
import numpy as np

from psp_jax.data import scene_sprites as sprites

# fmt: off
CLASS_NAMES = (
  "sky", "mountain", "hill", "water", "road", "tree", "fog", "boat", "car",
  "building", "skyscraper", "lamp")
(SKY, MOUNTAIN, HILL, WATER, ROAD, TREE, FOG, BOAT, CAR, BUILDING, SKYSCRAPER,
 LAMP) = range(len(CLASS_NAMES))
PALETTE = np.array([
  (142, 198, 232), (124, 110, 140), (158, 190, 92), (44, 110, 186),
  (92, 92, 100), (38, 122, 72), (222, 224, 230), (240, 150, 48),
  (206, 52, 62), (176, 116, 78), (112, 72, 176), (250, 220, 70)], np.uint8)
KINDS = ("harbour", "city")

# Lengths and positions are in rows of a picture of this size.
DESIGN_SIZE = 192
STRIP_FLOOR = 54  # the last row that the strip may reach
CONTEXT_GAP = 76  # rows from there to the first contextual object

_CITY_NAMES = np.arange(len(CLASS_NAMES), dtype=np.uint8)
_CITY_NAMES[[WATER, BOAT, BUILDING]] = ROAD, CAR, SKYSCRAPER

# Zenith, horizon and sunlight of some times of day, RGB.
_MOODS = np.array([
  [(0.26, 0.50, 0.82), (0.80, 0.89, 0.95), (1.05, 1.02, 0.96)],  # noon
  [(0.42, 0.49, 0.74), (0.98, 0.82, 0.72), (1.08, 0.97, 0.89)],  # dawn
  [(0.25, 0.27, 0.50), (0.93, 0.68, 0.58), (0.98, 0.84, 0.82)],  # dusk
  [(0.56, 0.63, 0.70), (0.84, 0.87, 0.88), (0.92, 0.95, 0.98)],  # overcast
  [(0.30, 0.60, 0.70), (0.93, 0.93, 0.82), (1.04, 1.02, 0.92)],  # summer
], np.float32)
_TINTS = {name: np.array(colours, np.float32) for name, colours in {
  "rock": [(0.40, 0.41, 0.48), (0.48, 0.46, 0.38)],
  "meadow": [(0.38, 0.54, 0.28), (0.60, 0.56, 0.32), (0.32, 0.46, 0.36)],
  "foliage": [(0.14, 0.37, 0.20), (0.31, 0.44, 0.13), (0.58, 0.33, 0.10)],
  "paint": [(0.80, 0.18, 0.16), (0.14, 0.36, 0.66), (0.90, 0.64, 0.14),
            (0.10, 0.52, 0.50)],
  "masonry": [(0.60, 0.36, 0.28), (0.66, 0.58, 0.47), (0.36, 0.43, 0.54)],
}.items()}
# fmt: on


def render(seed, kind=None, size=DESIGN_SIZE):
  """Renders one scene.

  Args:
    seed: int or sequence of ints; equal seeds give equal scenes.
    kind: one of `KINDS`, or None to have the seed choose. The scenes of one
      seed differ between kinds only inside the strip and in the names of the
      contextual objects.
    size: side of the picture in pixels; the whole layout scales with it.

  Returns:
    (image, label): uint8 RGB (size, size, 3) and uint8 class (size, size).
  """
  rng = np.random.default_rng(seed)
  # Drawn even when it is given, so that the rest of the scene does not move.
  drawn = KINDS[rng.integers(len(KINDS))]
  kind = drawn if kind is None else kind
  if kind not in KINDS:
    raise ValueError(f"kind {kind!r} is not one of {KINDS}")

  scene = _Scene(rng, size)
  _paint_distance(scene)
  across = _paint_blank_strip(scene)
  _paint_hills(scene)
  _paint_fog_and_objects(scene)
  scene.image += 0.01 * rng.standard_normal((size, size, 1), np.float32)

  fill = (_water if kind == "harbour" else _road)(scene, across)
  strip = scene.label[: len(fill), :, None] == WATER
  np.copyto(scene.image[: len(fill)], fill, where=strip)
  label = scene.label if kind == "harbour" else _CITY_NAMES[scene.label]
  return cv2.convertScaleAbs(np.maximum(scene.image, 0), alpha=255), label


class _Scene:
  """A float RGB image and its label, painted from far to near."""

  def __init__(self, rng, size):
    self.rng, self.size, self.unit = rng, size, size / DESIGN_SIZE
    first, second = rng.permutation(_MOODS)[:2]
    mood = first + 0.4 * rng.random() * (second - first)
    mood += rng.normal(0, 0.02, mood.shape).astype(np.float32)
    self.zenith, self.horizon, self.sun = mood
    self.sunny_side = rng.choice((-1, 1))
    self.rows = np.arange(size, dtype=np.float32)[:, None]
    self.image = np.zeros((size, size, 3), np.float32)
    self.label = np.full((size, size), SKY, np.uint8)

  def pixels(self, low, high):
    """A random length between two design lengths, in whole pixels."""
    return max(1, round(self.rng.uniform(low, high) * self.unit))

  def tint(self, material):
    """A random shade of a material, RGB, in the light of the scene."""
    colours = _TINTS[material]
    weights = self.rng.standard_exponential(len(colours), np.float32) ** 2
    brightness = self.rng.uniform(0.88, 1.12) / weights.sum()
    return weights @ colours * brightness * self.sun

  def relief(self, field):
    """Light that falls from the side of the sun on a field of heights."""
    slope = np.array([[-1, 0, 0, 1]], np.float32) * self.sunny_side
    return cv2.filter2D(field, -1, slope, borderType=cv2.BORDER_REPLICATE)

  def paint(self, cover, light, label, top, left=0):
    """Lays premultiplied `light` (h, w, 3) on; it may overhang the picture."""
    end, right = np.minimum(np.add(cover.shape, (top, left)), self.size)
    place = slice(top, end), slice(max(left, 0), right)
    part = slice(0, end - top), slice(max(-left, 0), right - left)
    below, cover = self.image[place], cover[part]
    below *= 1 - cover[..., None]
    below += light[part]
    self.label[place][cover >= 0.5] = label

  def paint_below(self, crest, colour, label, top):
    """Lays `colour` (h, size, 3), from row `top`, on below `crest` (size,)."""
    cover = np.clip(self.rows[top : top + len(colour)] + 1 - crest, 0, 1)
    self.paint(cover, cover[..., None] * colour, label, top)

  def paint_slope(self, crest, end, shade, tint, haze, label):
    """Paints a mountain or hill down to row `end`, its foot lost in mist."""
    rows = slice(max(int(crest.min()), 0), int(end))
    depth = np.maximum(self.rows[rows] - crest, 0) / self.unit
    shade = shade[rows] * (1 + 0.25 * np.exp(-depth / 5))
    veil = np.minimum(haze + 0.01 * depth, 0.8)
    colour = (shade * (1 - veil))[..., None] * tint
    colour += veil[..., None] * (0.94 * self.horizon)
    self.paint_below(crest, colour, label, rows.start)

  def stand(self, sprite, base, centre, label):
    """Puts an RGBA sprite with its foot on row `base`."""
    height, width = sprite.shape[:2]
    left, light = int(centre) - width // 2, sprite[..., :3]
    self.paint(sprite[..., 3], light, label, int(base) - height, left)


def _noise(rng, shape, cells, octaves):
  """Smooth noise of deviation about 0.5; `cells` (rows, columns) at first."""
  grid = np.maximum(1, np.round(cells)).astype(int)
  total = 0.6 * rng.standard_normal(grid, np.float32)
  for octave in range(1, octaves):
    # Summed at the coarser size, since enlarging is what takes the time.
    grid = 2 * grid
    total = cv2.resize(total, grid[::-1], interpolation=cv2.INTER_CUBIC)
    total += 0.6 * 0.55**octave * rng.standard_normal(grid, np.float32)
  return cv2.resize(total, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _curve(scene, cells, octaves):
  return _noise(scene.rng, (1, scene.size), (1, cells), octaves)[0]


def _billows(scene, count, radius, left=0, right=DESIGN_SIZE):
  """Heights (size,) in pixels of round puffs side by side, 0 around them."""
  place = (np.arange(count) + scene.rng.random(count)) / count
  centre = (left + place * (right - left)) * scene.unit
  radius = radius * scene.unit * scene.rng.uniform(0.6, 1.2, count)
  offset = np.arange(scene.size)[:, None] - centre
  height = np.sqrt(np.maximum(radius**2 - (offset / 1.6) ** 2, 0))
  return height.max(1).astype(np.float32)


def _paint_distance(scene):
  rng, size, unit = scene.rng, scene.size, scene.unit
  height = round(36 * unit)
  fall = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] ** 0.8
  sky = scene.zenith + fall * (scene.horizon - scene.zenith)
  clouds = _noise(rng, (height, size), (2, 4), 4) + rng.uniform(-0.2, 0.3)
  clouds = np.clip(clouds, 0, 0.8)[..., None]
  scene.image[:height] = sky + clouds * (0.98 * scene.sun - sky)
  stone = _noise(rng, (size, size), (14, 10), 4)
  scene.rock = 0.95 + 0.75 * scene.relief(stone) - 0.1 * np.abs(stone)
  for haze, level in ((0.5, 13), (0.2, 20)):
    crest = (level + 4 * _curve(scene, 6, 5)) * unit
    tint = scene.tint("rock")
    scene.paint_slope(crest, 40 * unit, scene.rock, tint, haze, MOUNTAIN)


def _paint_blank_strip(scene):
  """Reserves the strip, in a colour of neither kind.

  The edges of trees in front of it blend with it, and must not see its fill.

  Returns:
    Places across the strip, (rows, size): 0 at its far, 1 at its near edge.
  """
  rng, unit = scene.rng, scene.unit
  near = rng.uniform(51, 53) + np.clip(_curve(scene, 2, 2), -1, 1)
  far = near - rng.uniform(21, 25) + 0.5 * np.clip(_curve(scene, 2, 1), -1, 1)
  scene.shore = np.round(near * unit)
  rows = scene.rows[: int(scene.shore.max())]
  top = int(24 * unit)
  blank = np.broadcast_to(0.8 * scene.horizon, (len(rows), scene.size, 3))
  scene.paint_below(np.round(far * unit), blank[top:], WATER, top)
  return (rows / unit + 0.5 - far) / (near - far)


def _paint_hills(scene):
  """Hills, crags, trees and the odd lamp: much to see, nothing to learn."""
  rng, size, unit = scene.rng, scene.size, scene.unit
  grass = _noise(rng, (size, size), (24, 6), 4)
  shade = 1 + 0.15 * grass + 0.2 * scene.relief(grass)
  crests = [scene.shore] + [
    (level + rng.uniform(-4, 4) + 6 * _curve(scene, 3, 2)) * unit
    for level in (74, 91, 108)
  ]
  ends = [crest.max() + 1 for crest in crests[1:]] + [136 * unit]
  crag = rng.integers(1, 6)
  for depth, (crest, end) in enumerate(zip(crests, ends, strict=True)):
    if depth == crag:
      offset = np.arange(size, dtype=np.float32) / unit - rng.uniform(20, 172)
      bulk = np.exp(-((offset / rng.uniform(18, 34)) ** 2))
      bulk = rng.uniform(18, 28) * bulk + 4 * _curve(scene, 10, 4)
      peak = crest + (7 - bulk) * unit
      peak = np.maximum(peak, (STRIP_FLOOR + 2) * unit)
      tint = scene.tint("rock")
      scene.paint_slope(peak, end, scene.rock, tint, 0.1, MOUNTAIN)
    tint, haze = scene.tint("meadow"), 0.2 - 0.06 * depth
    scene.paint_slope(crest, end, shade, tint, haze, HILL)
    for _ in range(rng.integers(0, 3)):
      middle, tree = rng.uniform(0, size), sprites.tree(scene)
      for base in np.sort(rng.uniform(3, 14, rng.integers(1, 4))):
        x = int(np.clip(middle + rng.normal(0, 18) * unit, 0, size - 1))
        sprite = sprites.shrink(tree, scene.pixels(20, 32))
        scene.stand(sprite, crest[x] + base * unit, x, TREE)
    if depth and rng.random() < 0.3:
      x = rng.integers(size)
      scene.stand(sprites.lamp(scene), crest[x] + scene.pixels(4, 14), x, LAMP)


def _paint_fog_and_objects(scene):
  rng, size, unit = scene.rng, scene.size, scene.unit
  top = int(100 * unit)
  fog = _fog(scene, scene.rows[top:])
  crest = (126 + 3 * _curve(scene, 3, 2)) * unit - _billows(scene, 9, 9)
  scene.paint_below(crest, fog, FOG, top)

  standing = []  # (base row, centre column, sprite, label)
  first_row = int(np.ceil((STRIP_FLOOR + CONTEXT_GAP) * unit))
  blocks, vehicles = rng.integers(1, 3), rng.integers(1, 4)
  for slot in range(blocks):
    block = sprites.block(scene)
    base = first_row + len(block)
    base += round(rng.random() * max(3 * unit, 178 * unit - base))
    x = (slot + rng.uniform(0.1, 0.9)) * size / blocks
    standing.append((base, x, block, BUILDING))
  for slot in range(vehicles):
    x = (slot + rng.uniform(0.2, 0.8)) * size / vehicles
    standing.append((scene.pixels(166, 190), x, sprites.vehicle(scene), BOAT))
  for _ in range(rng.integers(1, 4)):
    place = scene.pixels(162, 190), rng.integers(size)
    standing.append((*place, sprites.lamp(scene), LAMP))
  for _ in range(rng.integers(0, 3)):
    tree = sprites.shrink(sprites.tree(scene), scene.pixels(28, 40))
    standing.append((scene.pixels(150, 180), rng.integers(size), tree, TREE))
  for base, x, sprite, label in sorted(standing, key=lambda item: item[0]):
    scene.stand(sprite, base, x, label)
    # A little fog over its foot, so that nobody sees wheels or a keel.
    half, x = 0.6 * sprite.shape[1] / unit, x / unit
    billows = _billows(scene, max(3, int(half / 3)), 4, x - half, x + half)
    above = base - int(6 * unit)
    wisp = fog[above - top : base - top] * 1.03
    scene.paint_below(base - billows, wisp, FOG, above)


def _fog(scene, rows):
  """Colours (len(rows), size, 3) of banks of fog, lit along their crests."""
  drift = _noise(scene.rng, (len(rows), scene.size), (5, 4), 4)
  glow = 0.5 + 0.16 * drift + 0.25 * scene.relief(drift)
  for level in (112, 134, 152, 172):
    crest = (level + scene.rng.uniform(-4, 4)) * scene.unit
    depth = (rows - crest + _billows(scene, 7, 12)) / scene.unit
    rim = np.exp(-np.maximum(depth, 0) / 9)
    glow += np.clip(depth, 0, 1) * (0.24 * rim - 0.06)
  shadow = 0.30 * scene.horizon + 0.24 * scene.zenith + 0.26
  lit = 0.36 * scene.sun + 0.32 * scene.horizon + 0.32
  return shadow + np.clip(glow, 0, 1.1)[..., None] * (lit - shadow)


def _water(scene, across):
  """Rippled water that mirrors the sky, with a path of sunlit glints."""
  rng, (height, width) = scene.rng, across.shape
  deep = 0.45 * scene.zenith + np.array([0.02, 0.10, 0.18], np.float32)
  far = 0.6 * scene.horizon + 0.3 * deep
  ripple = _noise(rng, across.shape, (height / 2, width / 14), 2)
  depth = np.clip(across + 0.12 * ripple, 0, 1)[..., None]
  offset = np.linspace(0, 1, width, dtype=np.float32) - rng.uniform(0.1, 0.9)
  glint = 1.3 * ripple - 1 + 0.9 * np.exp(-((offset / 0.18) ** 2))
  water = far + depth * (deep - far)
  glint = np.clip(glint, 0, 0.7)[..., None]
  return water + glint * (0.96 * scene.sun - water)


def _road(scene, across):
  """Worn asphalt between two kerbs, with a dashed line along its middle."""
  rng, (height, width) = scene.rng, across.shape
  aside = np.abs(across - 0.5)
  tone = 0.36 + 0.05 * _noise(rng, across.shape, (height / 3, width / 6), 2)
  tone -= 0.05 * np.exp(-(((aside - 0.22) / 0.07) ** 2))  # worn by wheels
  dashes = np.linspace(0, rng.uniform(7, 10), width) + rng.random()
  tone[(aside < 0.05) & (dashes % 1 < 0.55)] = 0.86
  tone[aside > 0.41] = 0.62
  tone[aside > 0.46] = 0.76
  return tone[..., None] * scene.sun * 0.9 + 0.1 * scene.horizon
