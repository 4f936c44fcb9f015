"""Optimised HLO as text, read into plain data. Needs no jax.

The grammar is XLA's printer's, `compiled.as_text()`: one instruction a line,
computations in braces, and before them tables that say where in the sources a
`stack_frame_id` is.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "s2": 2,
         "u2": 2, "s1": 1, "u1": 1, "bf16": 16, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=? ]*)\](?:\{([^{}]*)\})?")
_HEAD = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation|"
    r"branch_computations|called_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array as it lies in memory.

  Attributes:
    dtype: XLA's name, such as "bf16".
    dims: logical sizes.
    order: dimension numbers, minor to major.
    tiles: from the outermost to the innermost.
    space: 0 is HBM, 1 the vector memory.
  """
  dtype: str
  dims: tuple[int, ...] = ()
  order: tuple[int, ...] = ()
  tiles: tuple[tuple[int | None, ...], ...] = ()
  space: int = 0

  @property
  def bytes(self) -> int:
    """What its elements need."""
    return -(-math.prod(self.dims) * _bits(self.dtype) // 8)

  @property
  def padded_bytes(self) -> int:
    """What it takes: each tile divides the sizes of the one around it."""
    sizes = [self.dims[i] for i in reversed(self.order)] or list(self.dims)
    for tile in self.tiles:
      sizes = [1] * (len(tile) - len(sizes)) + sizes
      inner = sizes[len(sizes) - len(tile):]
      del sizes[len(sizes) - len(tile):]
      kept = []
      for size, t in zip(inner, tile):
        if t is None:  # "*": one with the next dimension.
          kept.append(size)
          continue
        size *= math.prod(kept)
        kept.clear()
        sizes.append(-(-size // t))
      sizes += [t for t in tile if t is not None]
    return -(-math.prod(sizes) * _bits(self.dtype) // 8)

  def __str__(self):
    return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique in the module.
    opcode: such as "fusion".
    shapes: of the result; a tuple's leaves in order.
    operands: names of instructions of the same computation.
    attributes: the text after the operands; of a constant, with its value.
    root: whether the computation's result is this.
  """
  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  attributes: str
  root: bool = False

  @functools.cached_property
  def op_name(self) -> str:
    """The path of JAX's name scopes, or an argument's name; "" for none."""
    found = _OP_NAME.search(self.attributes)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else ""

  @functools.cached_property
  def cycles(self) -> int | None:
    """The compiler's estimate; None where it makes none."""
    found = _CYCLES.search(self.attributes)
    return int(found[1]) if found else None

  @property
  def value(self) -> int | None:
    """Of a constant that is one integer."""
    found = re.match(r"\((-?\d+)\)", self.attributes)
    return int(found[1]) if found and self.opcode == "constant" else None

  @functools.cached_property
  def called(self) -> dict[str, tuple[str, ...]]:
    """Role -> names of the computations that it calls."""
    return {role: tuple(re.findall(r"[\w.\-]+", names))
            for role, names in _CALLED.findall(self.attributes)}

  @property
  def bytes(self) -> int:
    return sum(shape.bytes for shape in self.shapes)

  def attribute(self, name: str) -> str | None:
    """The value of `name=`: a word, or what is in its braces."""
    found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([\w.\-]+))",
                      self.attributes)
    return found and (found[1] if found[1] is not None else found[2])


@dataclasses.dataclass(frozen=True)
class Module:
  """Computations by name, each its instructions by name, in schedule order.

  Attributes:
    computations: name -> instruction name -> instruction.
    entry: the name of the first to run.
    frames: stack frame id -> (file, line, function), innermost call first.
  """
  computations: dict[str, dict[str, Instruction]]
  entry: str
  frames: dict[int, tuple[tuple[str, int, str], ...]]

  def trip_count(self, loop: Instruction) -> int | None:
    """How often a while loop runs, where that can be told.

    By the compiler's own word; else by the condition "counter < constant": the
    counters of JAX's loops begin at 0 and take steps of 1.
    """
    found = _TRIPS.search(loop.attributes)
    if found:
      return int(found[1])
    for name in loop.called.get("condition", ()):
      inner = self.computations.get(name, {})
      for each in inner.values():
        if (each.root and each.opcode == "compare"
            and each.attribute("direction") == "LT"):
          bound = inner.get(each.operands[-1])
          return bound.value if bound else None
    return None

  def stack(self, instruction: Instruction) -> tuple[
      tuple[str, int, str], ...]:
    """(file, line, function) of the calls that made it, innermost first."""
    found = re.search(r"\bstack_frame_id=(\d+)", instruction.attributes)
    if found:
      return self.frames.get(int(found[1]), ())
    file = re.search(r'source_file="([^"]*)"', instruction.attributes)
    line = re.search(r"source_line=(\d+)", instruction.attributes)
    return ((file[1], int(line[1]) if line else 0, ""),) if file else ()

  def inside(self, instruction: Instruction) -> Iterator[Instruction]:
    """All instructions of what it calls, to any depth, each once."""
    waiting, seen = [instruction], set()
    while waiting:
      for names in waiting.pop().called.values():
        for name in names:
          if name in self.computations and name not in seen:
            seen.add(name)
            yield from self.computations[name].values()
            waiting += self.computations[name].values()


def parse(text: str) -> Module:
  """The module that `text` prints.

  Raises:
    ValueError: there is no entry computation in it.
  """
  computations, entry, current = {}, None, None
  lines = text.splitlines()
  for line in lines:
    if not line.startswith(" "):
      found = _COMPUTATION.match(line)
      if found and not line.startswith("HloModule"):
        current = computations.setdefault(found[2], {})
        entry = found[2] if found[1] else entry
    elif current is not None:
      instruction = _instruction(line)
      if instruction:
        current[instruction.name] = instruction
  if entry is None:
    raise ValueError("no ENTRY computation: not the text of an HLO module")
  return Module(computations, entry, _stack_frames(lines))


def parse_shapes(text: str) -> tuple[Shape, ...]:
  """The arrays of "bf16[2,3]{1,0:T(8,128)(2,1)S(1)}" or of a tuple."""
  return tuple(_shape(*found) for found in _ARRAY.findall(text))


def _bits(dtype: str) -> int:
  # f8e4m3fn has 8, as s8; f4e2m1fn has 4.
  digits = re.search(r"\d+", dtype)
  return _BITS.get(dtype, int(digits[0]) if digits else 0)


@functools.lru_cache(maxsize=100_000)
def _shape(dtype: str, dims: str, layout: str) -> Shape:
  order, _, rest = layout.partition(":")
  tiles = re.search(r"T((?:\([\d,*]+\))+)", rest)
  space = re.search(r"S\((\d+)\)", rest)
  return Shape(
      dtype, tuple(int(d) for d in re.findall(r"\d+", dims)),
      tuple(int(i) for i in re.findall(r"\d+", order)),
      tuple(tuple(None if t == "*" else int(t) for t in tile.split(","))
            for tile in re.findall(r"\(([\d,*]+)\)", tiles[1]))
      if tiles else (), int(space[1]) if space else 0)


def _instruction(line: str) -> Instruction | None:
  head = _HEAD.match(line)
  if not head:
    return None
  start = head.end()
  end = (_closing(line, start) if line[start] == "("
         else line.find(" ", start))
  opening = line.find("(", end)
  if end < 0 or opening < 0:
    return None
  closing = _closing(line, opening)
  opcode = line[end:opening].strip()
  return Instruction(
      head[2], opcode, parse_shapes(line[start:end]),
      tuple(re.findall(r"%([\w.\-]+)", line[opening:closing])),
      line[opening if opcode == "constant" else closing:], bool(head[1]))


def _closing(line: str, start: int) -> int:
  """Where the parenthesis that opens at `start` has been closed."""
  depth = 0
  for found in re.finditer(r"[()]", line[start:]):
    depth += 1 if found[0] == "(" else -1
    if not depth:
      return start + found.end()
  return len(line)


def _stack_frames(lines: list[str]):
  tables = {"FileNames": {}, "FileLocations": {}, "StackFrames": {},
            "FunctionNames": {}}
  table = None
  for line in lines:
    if line.strip() in tables:
      table = tables[line.strip()]
    elif line.startswith(("%", "ENTRY")):
      break
    elif table is not None and (found := re.match(r"(\d+) (.*)", line)):
      table[int(found[1])] = found[2]

  def numbers(entry):
    return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", entry)}

  files, functions = (
      {i: entry.strip('"') for i, entry in tables[table].items()}
      for table in ("FileNames", "FunctionNames"))
  places = {i: numbers(entry) for i, entry in tables["FileLocations"].items()}
  frames = {i: numbers(entry) for i, entry in tables["StackFrames"].items()}
  # Some printers number parents from 2 on, so that the first is its own.
  shift = int(frames.get(1, {}).get("parent_frame_id") == 1)
  result = {}
  for i in sorted(frames):  # Parents come first.
    place = places.get(frames[i].get("file_location_id"), {})
    parent = frames[i].get("parent_frame_id", 0) - shift
    here = (files.get(place.get("file_name_id"), ""), place.get("line", 0),
            functions.get(place.get("function_name_id"), ""))
    result[i] = here, *result.get(parent, ())
  return result
