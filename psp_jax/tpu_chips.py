"""TPU chips and the slices of them that a program can be compiled for.

Figures: cloud.google.com/tpu/docs, the page of each version (v4, v5e, v5p,
v6e). Needs no jax.
"""

import dataclasses
import math
import re

from psp_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation.

  Attributes:
    name: as in "v5e:2x4".
    hbm_bytes: a chip's memory, as it is sold.
    usable_bytes: what libtpu 0.0.42 leaves for a program, by the message with
      which it refuses more.
    peak_flops: a second, bf16.
    hbm_bytes_per_second: its bandwidth.
    clock_hz: peak_flops over what its matrix units (two FLOPs in each of 128
      x 128 cells) do in a cycle; None where that gives no likely clock.
    axes: of a slice's shape.
    max_chips: of a slice.
    cores: TensorCores of a chip, by which v4 and v5p slices are named.
  """
  name: str
  hbm_bytes: int
  usable_bytes: int
  peak_flops: float
  hbm_bytes_per_second: float
  clock_hz: float | None
  axes: int
  max_chips: int
  cores: int


_GIB = 2**30
CHIPS = {chip.name: chip for chip in (
    Chip("v4", 32 * _GIB, int(30.75 * _GIB), 275e12, 1200e9,
         275e12 / (8 * 2 * 128**2), 3, 4096, 2),
    Chip("v5e", 16 * _GIB, int(15.75 * _GIB), 197e12, 819e9,
         197e12 / (4 * 2 * 128**2), 2, 256, 1),
    Chip("v5p", 95 * _GIB, int(95.74 * _GIB), 459e12, 2765e9,
         459e12 / (8 * 2 * 128**2), 3, 6144, 2),
    # Its two units of 256 x 256 would need 3.5 GHz.
    Chip("v6e", 32 * _GIB, int(31.25 * _GIB), 918e12, 1638e9, None, 2, 256,
         1),
)}
_SPELLINGS = {"v5litepod": "v5e", "v5lite": "v5e"}
# Slices that Cloud's names stand for: chips -> shape.
_SHAPES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8",
        128: "8x16", 256: "16x16"},
    3: {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4"}}
_EXAMPLES = "v5e:2x4 (or v5litepod-8), v5e:1x1, v4:2x2x1 (or v4-8), v6e:2x4"


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice.

  Attributes:
    name: as libtpu spells it, "v5e:2x4".
    chip: of which it is made.
    shape: chips along each axis.
  """
  name: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    return math.prod(self.shape)

  @property
  def options(self) -> dict:
    """What `get_topology_desc` wants besides the name."""
    options: dict[str, object] = {}
    if self.chip.cores > 1:
      options["chip_config_name"] = "megacore"  # One device a chip.
    if any(side % 2 for side in self.shape[:2]):
      # One host, where its usual 2 x 2 chips do not divide the slice.
      options["chips_per_host_bounds"] = (*self.shape, 1)[:3]
    return options

  @property
  def accelerator_type(self) -> str:
    """Cloud's name for as many chips."""
    prefix = "v5litepod" if self.chip.name == "v5e" else self.chip.name
    return f"{prefix}-{self.num_chips * self.chip.cores}"


def parse_topology(name: str) -> Topology:
  """The slice of "v5e:2x4", or of Cloud's "v5litepod-8" and "v4-8".

  Cloud counts chips of v5e and v6e, TensorCores of v4 and v5p: v4-8 has four
  chips.

  Raises:
    ConfigError: there is no such slice.
  """
  found = re.fullmatch(r"(\w+)(?:[:=]([\dx]+)|-(\d+))", name.strip().lower())
  if not found:
    raise ConfigError(f"--topology={name!r}: give chips and their shape, such "
                      f"as {_EXAMPLES}")
  generation = _SPELLINGS.get(found[1], found[1])
  if generation not in CHIPS:
    raise ConfigError(f"--topology={name!r}: no TPU {found[1]!r} is known; "
                      f"choose one of {', '.join(CHIPS)}")
  chip = CHIPS[generation]
  shape = found[2]
  if not shape:
    count, rest = divmod(int(found[3]), chip.cores)
    shape = None if rest else _SHAPES[chip.axes].get(count)
    if not shape:
      sizes = [f"{found[1]}-{n * chip.cores}" for n in _SHAPES[chip.axes]]
      raise ConfigError(f"--topology={name!r}: not one shape; choose one of "
                        f"{', '.join(sizes)}, or name it as in {_EXAMPLES}")
  sides = [int(side) for side in shape.split("x") if side]
  if len(sides) == 2 and chip.axes == 3:
    sides.append(1)
  example = _SHAPES[chip.axes][8]
  if len(sides) != chip.axes or shape.count("x") > chip.axes - 1 or not (
      1 <= math.prod(sides) <= chip.max_chips):
    raise ConfigError(
        f"--topology={name!r}: a {generation} slice has {chip.axes} sides and "
        f"at most {chip.max_chips} chips, such as {generation}:{example}")
  odd = any(side % 2 for side in sides[:2])
  if odd and (math.prod(sides) > 8 or max(sides) > 4):
    raise ConfigError(
        f"--topology={name!r}: does not divide into hosts of 2x2 chips: use "
        f"even sides, such as {generation}:{example}, or a single host of at "
        "most 8 chips")
  return Topology(f"{generation}:{'x'.join(map(str, sides))}", chip,
                  tuple(sides))


def parse_image_size(text: str | None) -> tuple[int, int] | None:
  """(height, width) of "1024x2048"."""
  if text is None:
    return None
  found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
  if not found:
    raise ConfigError(f"--image_size={text}: write HEIGHTxWIDTH, such as "
                      "1024x2048")
  return int(found[1]), int(found[2])
