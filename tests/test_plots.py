"""The figure of docs/performance.md says what its tables say."""

import pathlib
import re
import xml.etree.ElementTree

import pytest

from benchmarks import plots

TEXT = (plots.DOCS / "performance.md").read_text()


def test_the_figure_is_of_todays_tables():
  assert (plots.DOCS / "performance.svg").read_text() == plots.draw(TEXT)


def test_every_bar_has_its_length_and_number():
  root = xml.etree.ElementTree.fromstring(plots.draw(TEXT))
  space = "{http://www.w3.org/2000/svg}"
  said = [e.text for e in root.iter(f"{space}text")]
  row, = (line for line in TEXT.splitlines()
          if line.startswith("| **PSPNet50, 233, train step**"))
  ratio = re.search(r"\*\*([\d.]+)\*\* \(", row)[1]
  assert said[said.index("PSPNet50, 233, train step") + 1] == f"{ratio}"
  textbook, ours, _ = plots.rows(TEXT, "| | textbook | ours |")["layer4"]
  at = said.index("layer4")
  assert (said[at + 1], said[at + 3]) == (ours, textbook)
  widths = [float(e.get("width")) for e in root.iter(f"{space}rect")]
  assert min(abs(a / b - float(textbook) / float(ours)) for a, b in zip(
      widths[1:], widths)) < 0.01


@pytest.mark.parametrize(("cell", "expected"), [
    ("1.61 (1.56 to 1.66)", (1.61, 1.56, 1.66)), ("7.2", (7.2, 7.2, 7.2))])
def test_cells(cell, expected):
  assert tuple(plots.spread(cell)) == expected


def test_a_table_that_is_gone_is_told():
  with pytest.raises(ValueError, match="no table '| nothing'"):
    plots.rows(pathlib.Path(plots.__file__).read_text(), "| nothing")
