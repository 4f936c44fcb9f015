"""Predictions as the PNG files that benchmark servers take."""

import pathlib
import re
import urllib.parse

from PIL import Image

from psp_jax.data.taxonomy import Taxonomy, voc_palette


def write(folder, taxonomy: Taxonomy, name: str, prediction) -> None:
  """Writes FOLDER/NAME.png in the dataset's own ids, 8 bits a pixel.

  Args:
    folder: made if need be.
    taxonomy: its `stored_ids` are written; with `palette_png` as an indexed
      PNG in its colours, else as a grey one.
    name: of the record; its folders become folders below `folder`.
    prediction: (H, W) class ids.
  """
  stored = taxonomy.stored_ids
  image = Image.fromarray(stored[prediction])
  if taxonomy.palette_png:
    # All 256 colours, or Pillow packs several pixels into a byte. Those that
    # no class has are VOC's: 255, its border, is what its own files show.
    palette = voc_palette(256)
    palette[stored] = taxonomy.palette
    image.putpalette(palette.tobytes())  # Makes it an indexed image.
  path = pathlib.Path(folder, f"{_inside(name)}.png")
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)


def _inside(name: str) -> str:
  """A relative path of harmless characters that leads nowhere but down.

  Others are %-encoded, so that different names stay different.
  """
  parts = [re.sub(r"[^\w. -]", lambda c: urllib.parse.quote(c[0], safe=""), p)
           for p in name.split("/")]
  return "/".join(p if p.strip(".") else p.replace(".", "%2E") or "%"
                  for p in parts)
