"""Dilated ResNets (He et al. 2016; PSPNet section 4; semseg model/resnet.py).

The published PSPNets dilate *every* 3x3 of layer3 by 2 and of layer4 by 4,
the first block included. `contract_dilation` gives the other convention
(mmsegmentation, torchvision, timm), whose first block keeps the dilation of
the stage before it.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from psp_jax.models import pairs, phases
from psp_jax.models.convolution import add_relu, max_pool_3x3
from psp_jax.models.layers import ConvBNReLU, avg_pool_2x2
from psp_jax.models.pending import Pending, settle

# depth -> (blocks of layer1..4, block kind). 10 and 14 are timm's one-block
# stages: nets for small machines, and the ones whose receptive field is small.
ARCHITECTURES = {
    10: ((1, 1, 1, 1), "basic"),
    14: ((1, 1, 1, 1), "bottleneck"),
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
    269: ((3, 30, 48, 8), "bottleneck"),
}
# Output channels of the stem's convolutions; "7x7" is the ImageNet original.
STEMS = {"64-64-128": (64, 64, 128), "32-32-64": (32, 32, 64), "7x7": (64,)}
EXPANSION = {"basic": 1, "bottleneck": 4}


def stage_geometry(output_stride: int) -> tuple[tuple[int, int], ...]:
  """(stride, dilation) of layer1..4 at output stride 8, 16 or 32."""
  return {
      8: ((1, 1), (2, 1), (1, 2), (1, 4)),
      16: ((1, 1), (2, 1), (2, 1), (1, 2)),
      32: ((1, 1), (2, 1), (2, 1), (2, 1)),
  }[output_stride]


class BasicBlock(nn.Module):
  """Two 3x3 convolutions; dilation in the first, as mmsegmentation's."""
  features: int
  stride: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    y = ConvBNReLU(self.features, 3, self.stride, self.dilation,
                   dtype=self.dtype, name="conv1")(x, train)
    y = ConvBNReLU(self.features, 3, relu=False, dtype=self.dtype,
                   name="conv2")(y, train)
    if y.shape != x.shape:
      x = ConvBNReLU(self.features, 1, self.stride, relu=False,
                     dtype=self.dtype, name="downsample")(x, train)
    return add_relu(x, y)


class BottleneckBlock(nn.Module):
  """1x1 - 3x3 - 1x1; dilation in the 3x3, stride there or in the first 1x1.

  `by_rows` is how the 3x3 is computed, see `phases`; with `pending` the sum is
  left to the block that follows, see `pending`.
  """
  features: int  # After the expansion by 4.
  stride: int = 1
  dilation: int = 1
  stride_in: str = "3x3"
  first: bool = False
  avg_down: bool = False
  by_rows: bool = False
  pending: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Any, train: bool) -> Any:
    inner = self.features // EXPANSION["bottleneck"]
    stride1, stride2 = ((self.stride, 1) if self.stride_in == "1x1"
                        else (1, self.stride))
    convolve = None
    if self.by_rows and stride2 == 1:
      convolve = functools.partial(
          phases.conv_by_rows, dilation=self.dilation)
    y = ConvBNReLU(inner, 1, stride1, dtype=self.dtype,
                   name="conv1")(x, train)
    if isinstance(x, Pending):
      x, y = y
    y = ConvBNReLU(inner, 3, stride2, self.dilation, convolve,
                   dtype=self.dtype, name="conv2")(y, train)
    y = ConvBNReLU(self.features, 1, relu=False, pending=self.pending,
                   dtype=self.dtype, name="conv3")(y, train)
    if self.first:
      stride = self.stride
      if self.avg_down:
        x, stride = avg_pool_2x2(x, stride), 1
      x = ConvBNReLU(self.features, 1, stride, relu=False, pending=self.pending,
                     dtype=self.dtype, name="downsample")(x, train)
    if not self.pending:
      return add_relu(x, y)
    return Pending((x, y), None) if self.first else Pending((y,), x)


class ResNet(nn.Module):
  """(N, H, W, 3) -> features of the last two stages.

  Those are layer3 (for the auxiliary head) and layer4, unless `num_stages`
  ends the net earlier. `avg_down` is the "d" nets' shortcut: average pooling,
  then a 1x1 convolution of stride 1. `packed` computes the same with the stem
  in pairs of columns and dilated stages in phases, as TPUs want it; so are the
  features then: see `pairs` and `phases`. With `remat` only what passes between
  blocks is kept for the backward pass, the rest is computed again.
  """
  depth: int = 50
  stem: str = "64-64-128"
  output_stride: int = 8
  stride_in: str = "3x3"
  contract_dilation: bool = False
  width_multiplier: float = 1.0
  num_stages: int = 4
  avg_down: bool = False
  packed: bool = False
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool):
    blocks, kind = ARCHITECTURES[self.depth]
    stem = [self._width(c) for c in STEMS[self.stem]]
    width = -(-x.shape[2] // 2)
    recompute = self.packed and train and not self.remat
    for i, features in enumerate(stem):
      packing: dict[str, Any] = {}
      if self.packed:
        packing = dict(
            convolve=pairs.conv if i else pairs.conv_of_images,
            in_features=stem[i - 1] if i else None, pair_width=width,
            pending=recompute and i + 1 < len(stem))
      y = ConvBNReLU(features, 7 if len(stem) == 1 else 3,
                     2 if i == 0 else 1, dtype=self.dtype,
                     name=f"stem_conv{i + 1}", **packing)(x, train)
      x = y[1] if isinstance(x, Pending) else y
    x = pairs.max_pool_3x3(x) if self.packed else max_pool_3x3(x)

    taps = []
    num_phases = dilation_before = 1
    geometry = stage_geometry(self.output_stride)
    for stage, (num_blocks, (stride, dilation)) in enumerate(
        zip(blocks[:self.num_stages], geometry), start=1):
      features = self._width(64 * 2**(stage - 1)) * EXPANSION[kind]
      for b in range(num_blocks):
        first = b == 0
        own = (dilation_before if first and self.contract_dilation
               else dilation)
        avg_down = self.avg_down and first and stage > 1
        before, num_phases = num_phases, 1
        # Basic blocks and pooled shortcuts look at neighbours too.
        if self.packed and kind == "bottleneck" and not avg_down:
          height, width = (size * before for size in x.shape[1:3])
          num_phases = math.gcd(2, own, height, width)
        if before != num_phases:
          x = settle(x) if isinstance(x, Pending) else x
          x = phases.change(x, before, num_phases)
        x = self._block(kind, features, stride if first else 1,
                        own // num_phases, first, avg_down,
                        by_rows=self.packed and num_phases == 1,
                        # Of two sums one is kept, to compute the other from.
                        pending=recompute and b % 2 == 0 and b + 1 < num_blocks,
                        name=f"layer{stage}_{b}")(x, train)
      dilation_before = dilation
      taps.append(x)
    return taps[-2], taps[-1]

  def _width(self, channels: int) -> int:
    return max(1, round(channels * self.width_multiplier))

  def _block(self, kind, features, stride, dilation, first, avg_down, name,
             **forms):
    common = dict(features=features, stride=stride, dilation=dilation,
                  dtype=self.dtype, name=name)
    if kind == "bottleneck":
      common.update(stride_in=self.stride_in, first=first, avg_down=avg_down,
                    **forms)
    block = BasicBlock if kind == "basic" else BottleneckBlock
    if self.remat:
      block = nn.remat(block, static_argnums=(2,))  # `train`.
    return block(**common)
