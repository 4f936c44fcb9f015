"""python -m benchmarks.plots

Draws docs/performance.svg from the tables of docs/performance.md, so that the
two say the same.
"""

import html
import pathlib
import re

from benchmarks import machine

DOCS = pathlib.Path(__file__).parent.parent / "docs"
_WIDTH, _LABELS, _ROW = 860, 250, 22
# Of a colour-blind-safe pair: (ours, theirs).
_COLOURS = "#3b6fb0", "#d9a066"


def rows(text: str, heading: str) -> dict[str, list[str]]:
  """The cells of the table whose header line begins so, by first cell."""
  lines = iter(text.splitlines())
  for line in lines:
    if line.startswith(heading):
      break
  else:
    raise ValueError(f"docs/performance.md has no table {heading!r}")
  next(lines)
  found = {}
  for line in lines:
    if not line.startswith("|"):
      break
    name, *cells = (c.strip().replace("**", "") for c in line.split("|")[1:-1])
    found[name] = cells
  return found


def spread(cell: str) -> tuple[float, float, float]:
  """(middle, least, most) of "1.61 (1.56 to 1.66)", or of a number."""
  numbers = [float(n) for n in re.findall(r"[\d.]+", cell)]
  return (numbers * 3)[:3] if len(numbers) < 3 else tuple(numbers[:3])


class Drawing:
  """Bars below each other, in panels."""

  def __init__(self):
    self._parts, self._y = [], 16

  def panel(self, title: str, note: str, bars, unit: str, line=None) -> None:
    """`bars`: (label, (middle, least, most), whether ours); `line`: a mark."""
    self._y += 20
    self._text(20, self._y, title, weight="bold", size=15)
    self._y += 18
    self._text(20, self._y, note, fill="#666")
    self._y += 12
    largest = max(most for _, (_, _, most), _ in bars)
    scale = (_WIDTH - _LABELS - 110) / largest
    top = self._y
    for label, (middle, least, most), ours in bars:
      self._text(_LABELS - 10, self._y + 15, label, anchor="end")
      self._add(f'<rect x="{_LABELS}" y="{self._y + 3}" height="{_ROW - 6}" '
                f'width="{middle * scale:.1f}" fill="{_COLOURS[not ours]}"/>')
      if most > least:
        y = self._y + _ROW / 2
        self._add(f'<path d="M{_LABELS + least * scale:.1f} {y}H'
                  f'{_LABELS + most * scale:.1f}" stroke="#222"/>')
      self._text(_LABELS + most * scale + 6, self._y + 15,
                 f"{middle:g}{unit}")
      self._y += _ROW
    if line:
      x = _LABELS + line * scale
      self._add(f'<path d="M{x:.1f} {top}V{self._y}" stroke="#222" '
                'stroke-dasharray="4 3"/>')
    self._y += 8

  def svg(self, title: str) -> str:
    height = self._y + 10
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} '
        f'{height}" width="{_WIDTH}" height="{height}" font-family="Helvetica, '
        'Arial, sans-serif" font-size="13" role="img">',
        f"  <title>{html.escape(title)}</title>",
        "  <!-- A panel of its own: readable on light and dark pages. -->",
        f'  <rect width="{_WIDTH}" height="{height}" rx="10" fill="#fbfbf8" '
        'stroke="#b8b8b0"/>', *self._parts, "</svg>"]) + "\n"

  def _add(self, part):
    self._parts.append("  " + part)

  def _text(self, x, y, text, anchor="start", weight="normal", size=13,
            fill="#222"):
    self._add(f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" '
              f'font-weight="{weight}" font-size="{size}" fill="{fill}">'
              f"{html.escape(text)}</text>")


def draw(text: str) -> str:
  """The SVG of docs/performance.md's `text`."""
  drawing = Drawing()
  cpu = rows(text, "| | psp_jax, seconds | best PyTorch")
  drawing.panel(
      "Two CPU cores: times as fast as PyTorch",
      "fp32, batch 2; bars are medians, lines the least and the most of a run",
      [(name, spread(cells[2]), True) for name, cells in cpu.items()], "",
      line=1)
  chip = rows(text, "| | textbook | ours | ratio |")
  layers = list(chip)[list(chip).index("stem"):]
  drawing.panel(
      "A TPU's train step, million cycles: ours in blue, the textbook's in "
      "orange",
      "estimates by the TPU compiler, PSPNet50 at 473 on v5e:2x4; no TPU has "
      "run either",
      [(name if ours else "", spread(chip[name][column]), ours)
       for name in layers for column, ours in ((1, True), (0, False))], "")
  read = rows(text, "| whole pipeline | images/s |")
  drawing.panel(
      "Reading and augmenting: images a second",
      "crops of 473 from 512x683 JPEGs; semseg's chain in orange",
      [(name, spread(cells[0]), not name.startswith("semseg"))
       for name, cells in read.items()], "")
  return drawing.svg("Speed beside PyTorch, a textbook PSPNet and semseg")


def main() -> None:
  machine.arguments(__doc__).parse_args()
  text = (DOCS / "performance.md").read_text()
  (DOCS / "performance.svg").write_text(draw(text))


if __name__ == "__main__":
  main()
