"""The things that stand in a rendered scene: trees, vehicles, blocks, lamps.

Sprites are drawn on larger sheets. Their colours, (r, g, b, 1) on zeros, are
premultiplied once shrunk, and light with an alpha of 0 is a mere glow. Each
takes the scene for its random numbers, its light and its unit of length, and
returns float (height, width, 4); `stand` of the scene puts it there.
"""

import cv2
import numpy as np


def shrink(sheet, height):
  width = max(1, round(sheet.shape[1] * height / len(sheet)))
  return cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA)


def _opaque(colour):
  return (*np.asarray(colour).tolist(), 1.0)


def _fill(sheet, corners, colour):
  """Fills a polygon whose corners are fractions (x, y) of the sheet."""
  points = np.round(np.multiply(corners, sheet.shape[1::-1])).astype(np.int32)
  cv2.fillPoly(sheet, [points], _opaque(colour))


def tree(scene):
  """A sheet with a crown of tufts or of skirts, lit from above and a side."""
  rng, side, leaf = scene.rng, scene.sunny_side, scene.tint("foliage")
  conifer = rng.random() < 0.35
  sheet = np.zeros((80, 46 if conifer else 70, 4), np.float32)
  middle = sheet.shape[1] // 2
  sheet[48:, middle - 4 : middle + 4] = 0.22, 0.16, 0.11, 1
  # From the skirts up, so that what is nearer the light comes to lie on top.
  for up in np.linspace(0, 1, 5 if conifer else 14).tolist():
    if conifer:
      reach, y, dark = 0.5 - 0.28 * up, 0.9 - 0.65 * up, leaf * (0.6 + 0.4 * up)
      tip, lit = (0.5, y - 0.26), 0.5 + reach * side
      _fill(sheet, [(0.5 - reach, y), tip, (0.5 + reach, y)], dark)
      _fill(sheet, [(0.53, y - 0.04), tip, (lit, y)], dark * 1.4)
    else:
      out = rng.uniform(-1, 1) * 22 * np.sqrt(1 - up * up)
      x, y = round(middle + out), round(62 - 44 * up + rng.normal(0, 2))
      shade = leaf * (0.6 + 0.45 * up + 0.007 * side * out)
      cv2.circle(sheet, (x, y), 12, _opaque(shade), -1)
      lit = int(x + 3 * side), y - 3
      cv2.circle(sheet, lit, 7, _opaque(shade * 1.25), -1)
  return sheet


def vehicle(scene):
  """A hull or body with a cabin: a boat as much as a car."""
  rng, paint = scene.rng, scene.tint("paint")
  height, pale = scene.pixels(24, 30), 0.86 * scene.sun
  length = round(60 * scene.pixels(40, 56) / height)
  sheet = np.zeros((60, length, 4), np.float32)
  back, front, roof = rng.uniform((0.18, 0.64, 0.0), (0.3, 0.74, 0.1))
  cabin = [(back, 0.5), (back + 0.06, roof), (front - 0.1, roof)]
  _fill(sheet, [*cabin, (front + 0.06, 0.5)], 0.94 * pale)
  glass, lintel = 0.3 * scene.zenith + 0.08, roof + 0.11
  pane = [(back + 0.05, 0.42), (back + 0.09, lintel), (front - 0.1, lintel)]
  _fill(sheet, [*pane, (front - 0.01, 0.42)], glass)
  post = (back + front) / 2 + np.array([0, 0.04, 0.04, 0])
  _fill(sheet, np.stack((post, (lintel, lintel, 0.42, 0.42)), 1), 0.94 * pale)
  deck = [(0, 0.48), (0.03, 0.43), (0.7, 0.45), (0.98, 0.36), (1, 0.42)]
  _fill(sheet, [*deck, (0.93, 1), (0.05, 1)], paint)
  _fill(sheet, [(0.02, 0.7), (0.96, 0.7), (0.93, 1), (0.05, 1)], paint * 0.7)
  _fill(sheet, [(0, 0.55), (0.99, 0.53), (0.97, 0.61), (0.01, 0.62)], pale)
  cv2.circle(sheet, (round(0.93 * length), 28), 5, (1.0, 0.94, 0.66, 1.0), -1)
  return shrink(sheet, height)[:, :: rng.choice((-1, 1))]


def block(scene):
  """A tower with a lit front, a shaded flank and a grid of windows."""
  rng, wall = scene.rng, scene.tint("masonry")
  height, width = scene.pixels(40, 56), scene.pixels(26, 38)
  sheet = np.zeros((3 * height, 3 * width, 4), np.float32)
  roof, flank = 8, round(3 * width * rng.uniform(0.68, 0.8))
  sheet[:roof, 10 : flank - 8] = _opaque(wall * 0.8)
  sheet[roof:] = _opaque(wall * 0.62)
  sheet[roof:, :flank] = _opaque(wall)
  sheet[roof : roof + 3, :flank] = _opaque(wall * 1.25)
  front = sheet[roof + 6 : -3, 4 : flank - 2]
  y = np.arange(len(front)) / rng.integers(12, 18)
  x = np.arange(front.shape[1]) / rng.integers(10, 15)
  alight = rng.random((20, 10)) < 0.3
  panes = np.where(alight[..., None], (0.98, 0.84, 0.5, 1), _opaque(0.3 * wall))
  window = (y % 1 < 0.55)[:, None, None] & (x % 1 < 0.5)[:, None]
  panes = panes[y.astype(int)][:, x.astype(int)]
  np.copyto(front, panes, where=window, casting="same_kind")
  return shrink(sheet, height)[:, :: -scene.sunny_side]


def lamp(scene):
  """A dark pole with a bright globe in a faint glow."""
  height, head = scene.pixels(30, 42), scene.pixels(12, 14)
  sheet = np.zeros((4 * (height + head), 12 * head, 4), np.float32)
  x, y = 6 * head, 6 * head  # the globe has its own size of glow around it
  pole = round(0.9 * head)
  sheet[y:, x - pole : x + pole] = 0.13, 0.14, 0.17, 1
  cv2.circle(sheet, (x, y), 2 * head - 1, (1.0, 0.76, 0.34, 1.0), -1)
  cv2.circle(sheet, (x, y), head, (1.0, 0.97, 0.8, 1.0), -1)
  sprite = shrink(sheet, height + head)
  y, x = np.ogrid[0.5 : len(sprite), 0.5 : 3 * head]
  apart = np.hypot(x / head - 1.5, y / head - 1.5)
  sprite[..., :3] += np.exp(-4 * apart**2)[..., None] * (0.3, 0.2, 0.08)
  return sprite
