"""What a TPU program costs, read from its optimised HLO.

The TPU compiler writes its own estimate, "estimated_cycles", beside what it
schedules. Sums of those by layer and kind, what the chips send each other,
what lies on every chip in full and what tiled layouts pad: all of it from the
text alone. Cycles are estimates of the compiler, not measurements; it makes
none for collectives and for copies that run beside the arithmetic.
"""

import collections
import re
from typing import Any

from psp_jax.hlo_layers import (
  CONVOLUTIONS,
  LAYERS,
  MOVES,
  PHASES,
  Layers,
  main_convolution,
)
from psp_jax.hlo_text import Instruction, Module

KINDS = ("convolution", "matmul", "copy", "element-wise", "reduction",
         "collective", "other")
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all",
               "ragged-all-to-all", "collective-permute",
               "collective-broadcast")
# Smaller than this, a tensor is not worth a line.
LARGE_BYTES = 1 << 20

_REDUCTIONS = {"reduce", "reduce-window", "select-and-scatter"}
_NEITHER = {"custom-call", "gather", "scatter", "sort", "rng", "infeed",
            "outfeed", "rng-bit-generator", "fft", "while", "conditional"}
# They take no time of their own, or run beside what does.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast",
         "partition-id", "replica-id", "after-all", "opt-barrier",
         "copy-start", "slice-start", "while", "conditional", "call"}


def analyse(module: Module, top: int = 15) -> dict:
  """All of the report, as JSON has it.

  Args:
    module: of one chip, after optimisation.
    top: how many instructions to name.

  Returns:
    "cycles": their sum; "by_layer", "by_kind", "by_layer_and_kind",
    "by_phase": parts of it;
    "unestimated": opcode -> count of what the compiler gives no cycles;
    "loops_of_unknown_length": how many were counted once; "async_copies",
    "collectives", "replicated", "padding" (see their functions); "top".
  """
  steps, unknown = schedule(module)
  layers = Layers(module)
  by_both = {layer: dict.fromkeys(KINDS, 0) for layer in LAYERS}
  by_phase = dict.fromkeys(PHASES, 0)
  unestimated = collections.Counter()
  costs: list[dict[str, Any]] = []
  for instruction, times in steps:
    if instruction.cycles is None:
      if not _is_free(instruction):
        unestimated[instruction.opcode] += times
      continue
    cycles = instruction.cycles * times
    layer, phase = layers.of(instruction)
    kind = kind_of(module, instruction)
    by_both[layer][kind] += cycles
    by_phase[phase] += cycles
    costs.append({
        "cycles": cycles, "times": times, "name": instruction.name,
        "kind": kind, "layer": layer, "phase": phase,
        "result": _shapes(instruction),
        "op_name": instruction.op_name, "source": _source(
            module, instruction)})
  costs.sort(key=lambda cost: -cost["cycles"])
  return {
      "cycles": sum(by_phase.values()),
      "by_layer": {layer: sum(by_both[layer].values()) for layer in LAYERS},
      "by_kind": {kind: sum(by_both[layer][kind] for layer in LAYERS)
                  for kind in KINDS},
      "by_layer_and_kind": by_both, "by_phase": by_phase,
      "unestimated": dict(unestimated.most_common()),
      "loops_of_unknown_length": unknown,
      "async_copies": async_copies(steps),
      "collectives": collectives(module, steps, layers),
      "replicated": replicated(module), "padding": padding(module),
      "top": costs[:top]}


def schedule(module: Module) -> tuple[list[tuple[Instruction, int]], int]:
  """What runs, and how often: [(instruction, times)], loops not known.

  Loops count as often as they run, where the compiler knows; of a
  conditional's branches the longest counts. A fusion is one instruction.
  """
  unknown = 0

  def walk(name: str, times: int) -> list[tuple[Instruction, int]]:
    nonlocal unknown
    steps = []
    for instruction in module.computations.get(name, {}).values():
      steps.append((instruction, times))
      if instruction.cycles is not None:
        continue  # What it calls is in there.
      called = instruction.called
      if instruction.opcode == "while":
        trips = module.trip_count(instruction)
        unknown += trips is None
        for part in ("condition", "body"):
          for inner in called.get(part, ()):
            steps += walk(inner, times * (1 if trips is None else trips))
      elif instruction.opcode == "conditional":
        branches = [walk(inner, times) for names in called.values()
                    for inner in names]
        steps += max(branches, key=_cycles, default=[])
      elif instruction.opcode in ("call", "async-start"):
        for names in called.values():
          for inner in names:
            steps += walk(inner, times)
    return steps

  return walk(module.entry, 1), unknown


def kind_of(module: Module, instruction: Instruction) -> str:
  """One of KINDS, by what the instruction or the fusion does."""
  if _collective(instruction):
    return "collective"
  inner = [instruction]
  if instruction.opcode in ("fusion", "async-start", "call"):
    inner = list(module.inside(instruction))
  opcodes = {each.opcode for each in inner} - {"fusion"}
  if any(map(_collective, inner)):
    return "collective"
  if opcodes & CONVOLUTIONS:
    main = main_convolution(inner)
    return "matmul" if main and _is_matmul(main) else "convolution"
  if opcodes & _REDUCTIONS:
    return "reduction"
  if opcodes <= MOVES:
    return "copy"
  return "other" if opcodes & _NEITHER else "element-wise"


def collectives(module: Module, steps, layers) -> dict:
  """What the chips send each other.

  Returns:
    "by_kind": kind -> {"count", "bytes"}, "bytes": of all, "largest": a few,
    "activations": what gathers or passes on LARGE_BYTES or more that are
    neither arguments nor the optimizer's. Bytes are a chip's: the larger of
    what goes in and comes out, without padding.
  """
  by_kind, found, seen = {}, [], set()
  for instruction, times in steps:
    own = _collective(instruction)
    inner = [instruction] if own else [
        each for each in module.inside(instruction) if _collective(each)
    ] if instruction.opcode in ("fusion", "custom-call") else []
    for each in inner:
      channel = each.attribute("channel_id") or each.name
      kind = _collective(each)
      if (kind, channel) in seen:
        continue  # Start and end of one, in two fusions.
      seen.add((kind, channel))
      size = _moved_bytes(each, layers.producers) * times
      entry = by_kind.setdefault(kind, {"count": 0, "bytes": 0})
      entry["count"] += times
      entry["bytes"] += size
      found.append({
          "kind": kind, "bytes": size, "name": each.name,
          "tensors": max(1, len(each.operands)), "op_name": each.op_name,
          "activations": (
              kind != "all-reduce" and size >= LARGE_BYTES
              and not layers.is_argument(each)
              and layers.of(each)[0] != "optimizer")})
  found.sort(key=lambda each: -each["bytes"])
  return {
      "by_kind": by_kind, "bytes": sum(e["bytes"] for e in by_kind.values()),
      "largest": found[:5],
      "activations": [e for e in found if e["activations"]]}


def replicated(module: Module) -> dict:
  """Arguments of LARGE_BYTES or more that every chip holds in full.

  Returns:
    "count", "bytes" (without padding) and "largest", a few of them. Of a
    program for one chip, none.
  """
  found: list[dict[str, Any]] = [
      {"name": each.op_name or each.name, "bytes": each.bytes,
       "shape": _shapes(each)}
      for each in module.computations[module.entry].values()
      if each.opcode == "parameter" and each.bytes >= LARGE_BYTES
      and each.attribute("sharding") == "replicated"]
  found.sort(key=lambda each: -each["bytes"])
  return {"count": len(found), "bytes": sum(e["bytes"] for e in found),
          "largest": found[:5]}


def padding(module: Module) -> dict:
  """What tiled layouts add to the results in the entry computation.

  Returns:
    "logical_bytes" and "padded_bytes", over all results (they do not live at
    the same time), and "worst", a few.
  """
  logical = padded = 0
  worst: list[dict[str, Any]] = []
  for each in module.computations[module.entry].values():
    if each.opcode in _FREE - {"parameter"} or each.opcode.endswith("-start"):
      continue
    size = sum(shape.padded_bytes for shape in each.shapes)
    logical += each.bytes
    padded += size
    worst.append({"name": each.name, "bytes": each.bytes,
                  "padded_bytes": size, "op_name": each.op_name,
                  "shape": _shapes(each, layout=True)})
  worst.sort(key=lambda each: each["bytes"] - each["padded_bytes"])
  return {"logical_bytes": logical, "padded_bytes": padded,
          "worst": [each for each in worst[:5]
                    if each["padded_bytes"] > each["bytes"]]}


def async_copies(steps) -> dict:
  """Copies between HBM and vector memory that run beside the arithmetic."""
  copies = [(each, times) for each, times in steps
            if each.opcode in ("copy-start", "slice-start")]
  # The result has the source first, then the copy.
  return {"count": sum(times for _, times in copies),
          "bytes": sum(min(s.bytes for s in each.shapes[:2]) * times
                       for each, times in copies)}


def _cycles(steps) -> int:
  return sum((each.cycles or 0) * times for each, times in steps)


def _collective(instruction: Instruction) -> str:
  """The kind, asynchronous starts included; "" for none."""
  opcode = instruction.opcode.removesuffix("-start")
  return opcode if opcode in COLLECTIVES else ""


def _moved_bytes(instruction: Instruction, producers) -> int:
  going_in = sum(producers[o].bytes for o in instruction.operands
                 if o in producers)
  out = instruction.shapes
  if instruction.opcode in ("all-gather-start", "collective-permute-start"):
    # (operands, results, and perhaps semaphores).
    count = len(instruction.operands)
    out = out[count:2 * count]
  return max(going_in, sum(shape.bytes for shape in out))


def _is_matmul(instruction: Instruction) -> bool:
  """The TPU compiler makes convolutions of dots; the name tells, or the size.
  """
  last = instruction.op_name.rpartition("/")[2]
  if "dot_general" in last or "conv_general" in last:
    return "dot_general" in last
  window = instruction.attribute("window") or ""
  size = re.search(r"size=([\dx]+)", window)
  return instruction.opcode == "dot" or not size or set(
      size[1].split("x")) == {"1"}


def _is_free(instruction: Instruction) -> bool:
  return (instruction.opcode in _FREE or instruction.opcode.endswith("-done")
          or 'target="ConcatBitcast"' in instruction.attributes
          or not _collective(instruction) and instruction.bytes < 4096)


def _shapes(instruction: Instruction, layout: bool = False) -> str:
  """The first results; of hundreds the rest is a number."""
  shapes = instruction.shapes
  said = [f"{s}{{{','.join(map(str, s.order))}}}" if layout else str(s)
          for s in shapes[:4]]
  if len(shapes) > 4:
    said.append(f"and {len(shapes) - 4} more")
  return " ".join(said)


def _source(module: Module, instruction: Instruction) -> str:
  """file:line of the innermost call that is not a library's."""
  stack = module.stack(instruction)
  own = [frame for frame in stack if "site-packages" not in frame[0]]
  for file, line, _ in own[:1] or stack[:1]:
    return f"{'/'.join(file.rsplit('/', 3)[-2:])}:{line}"
  return ""
