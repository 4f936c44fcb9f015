"""Which layer of the network an instruction of its HLO belongs to."""

import collections
import re
from collections.abc import Iterator

from psp_jax.hlo_text import Instruction, Module

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4", "pyramid", "heads",
          "upsampling", "loss", "metrics", "optimizer", "other")
PHASES = ("forward", "recomputed", "backward", "update", "other")
CONVOLUTIONS = {"convolution", "dot"}
# They compute nothing.
MOVES = {"copy", "pad", "transpose", "slice", "dynamic-slice", "reshape",
         "dynamic-update-slice", "concatenate", "broadcast", "reverse",
         "bitcast", "constant", "parameter", "tuple", "get-tuple-element",
         "iota"}
_SCOPES = (
    (r"\bopt_state\b", "optimizer"), (r"\bstem_conv\d", "stem"),
    (r"\blayer([1-4])_\d", r"layer\1"), (r"\bpyramid\b", "pyramid"),
    (r"\b(aux_)?classifier\b|\baux\b", "heads"),
    (r"\bupsampling\b|\b_to_image\b", "upsampling"),
    (r"\bbackbone\b", "stem"), (r"\bloss\b", "loss"))
# Where the scopes say nothing, the sources may: (file, function) of a frame.
_SOURCES = (
    (r"losses\.py|optax/losses/", r"", "loss"),
    (r"optax/tree_utils/", r"", "metrics"),
    (r"optimizers\.py|optax/", r"", "optimizer"),
    (r"normalize\.py", r"", "stem"),
    (r"", r"\b_to_image\b", "upsampling"))


class Layers:
  """Layer and phase of instructions.

  By the name scopes that JAX wrote; else by what is fused; else by the
  sources; else by the neighbours in the data flow.
  """

  def __init__(self, module: Module):
    self._module = module
    self.producers, self._users = {}, collections.defaultdict(list)
    for computation in module.computations.values():
      for each in computation.values():
        self.producers[each.name] = each
        for operand in each.operands:
          self._users[operand].append(each)

  def of(self, instruction: Instruction) -> tuple[str, str]:
    """(one of LAYERS, one of PHASES)."""
    for candidates in (self._own(instruction),
                       self._around(instruction, backwards=True),
                       self._around(instruction, backwards=False)):
      for each in candidates:
        layer = self._layer(each)
        if layer != "other":
          name = instruction.op_name
          return layer, phase_of(name if "jvp" in name else each.op_name,
                                 layer)
    return "other", "other"

  def is_argument(self, instruction: Instruction) -> bool:
    """Whether its operand is an argument, moved or cast at most."""
    operands = instruction.operands
    while operands and operands[0] in self.producers:
      instruction = self.producers[operands[0]]
      if instruction.opcode == "parameter":
        return instruction.name in self._module.computations[
            self._module.entry]
      if instruction.opcode not in MOVES | {
          "convert", "copy-start", "copy-done", "slice-start", "slice-done"}:
        return False
      operands = instruction.operands
    return False

  def _own(self, instruction) -> Iterator[Instruction]:
    inner = (list(self._module.inside(instruction))
             if instruction.opcode == "fusion" else [])
    if main := main_convolution(inner):
      yield main  # Not what was fused behind it.
    yield instruction
    yield from sorted(inner, key=lambda each: -each.bytes)

  def _around(self, instruction, backwards: bool) -> Iterator[Instruction]:
    """Neighbours within eight instructions, the nearest first."""
    ring, seen = [instruction], {instruction.name}
    for _ in range(8):
      near = []
      for each in ring:
        near += ([self.producers[o] for o in each.operands
                  if o in self.producers] if backwards
                 else self._users[each.name])
      ring = [each for each in near if each.name not in seen]
      seen |= {each.name for each in ring}
      for each in ring:
        yield from self._own(each)

  def _layer(self, instruction) -> str:
    name = instruction.op_name
    for pattern, layer in _SCOPES:
      if found := re.search(pattern, name):
        return found.expand(layer)
    stack = self._module.stack(instruction)
    for file_pattern, function_pattern, layer in _SOURCES:
      if any(re.search(file_pattern, file)
             and re.search(function_pattern, function)
             for file, _, function in stack):
        return layer
    if "jvp()" in name:  # Differentiated, but of no module.
      return "loss"
    if re.match(r"jit\(train_step\)/", name) and "jvp" not in name:
      return "metrics"
    return "other"


def phase_of(op_name: str, layer: str) -> str:
  """One of PHASES."""
  if "rematted_computation" in op_name:
    return "recomputed"
  if "transpose(" in op_name:
    return "backward"
  if layer in ("optimizer", "metrics", "other") and "jvp(" not in op_name:
    return "other" if layer == "other" else "update"
  return "forward"


def main_convolution(instructions) -> Instruction | None:
  """The largest of the convolutions and dots."""
  return max((each for each in instructions
              if each.opcode in CONVOLUTIONS), default=None,
             key=lambda each: each.bytes)
