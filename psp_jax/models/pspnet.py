"""PSPNet: pyramid pooling over a dilated ResNet (Zhao et al., CVPR 2017).

The 3x3 head convolution over [features, upsampled bins] is computed without
building that concatenation: convolution and bilinear upsampling are both
linear, so each bin's share is a handful of small matrix products. The result
is exact and the kernel keeps its published layout, (3, 3, 4096, 512).
"""

import functools
import itertools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from psp_jax.models import phases, pooling
from psp_jax.models.convolution import conv2d, kernel_values
from psp_jax.models.layers import (
  BatchNorm,
  Conv,
  ConvBNReLU,
  prepacked,
  torch_uniform,
)
from psp_jax.models.resnet import ResNet


class PyramidHead(nn.Module):
  """Pyramid pooling and the 3x3 fuse convolution (paper section 3.2).

  `bins=()` leaves the pyramid out: the dilated FCN baseline of Table 1. With
  `reduce=False` the pooled features keep their channels (no "DR"). SMP fuses
  by a 1x1 (`fuse_size=1`), and its bin 1 has no BatchNorm. The map is in
  `num_phases`; None is 1, and convolutions are the platform's usual ones.
  """
  features: int
  bins: tuple[int, ...] = (1, 2, 3, 6)
  pool: str = "average"
  reduce: bool = True
  bin1_norm: bool = True
  fuse_size: int = 3
  align_corners: bool = True
  num_phases: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    num_phases = self.num_phases or 1
    channels = x.shape[-1]
    height, width = (size * num_phases for size in x.shape[1:3])
    pools = pooling.adaptive_pools(
        x, self.bins, self.pool, num_phases) if self.bins else ()
    branches = []
    for size, z in zip(self.bins, pools, strict=True):
      if self.reduce:
        z = ConvBNReLU(channels // len(self.bins), 1,
                       norm=size > 1 or self.bin1_norm,
                       kernel_init=torch_uniform, dtype=self.dtype,
                       name=f"bin{size}")(z, train)
      branches.append(z)

    fused = channels + sum(z.shape[-1] for z in branches)
    kernel = self.param("kernel", torch_uniform,
                        (self.fuse_size, self.fuse_size, fused,
                         self.features), jnp.float32)
    kernel = kernel.astype(self.dtype)
    ends = itertools.accumulate(z.shape[-1] for z in (x, *branches))
    part, *parts = jnp.split(kernel, list(ends)[:-1], 2)
    if self.num_phases and self.fuse_size > 1:
      y = phases.conv(x, part, num_phases)
    else:
      y = conv2d(x, part, values=prepacked(
          self, "values", lambda: kernel_values(x, part)))
    parts = prepacked(self, "parts", lambda: parts) or parts
    for z, part in zip(branches, parts, strict=True):
      y = y + pooling.conv_of_upsampled(
          z, part, height, width, self.align_corners, num_phases)
    return nn.relu(BatchNorm(dtype=self.dtype, name="bn")(y, train))


class Classifier(nn.Module):
  """Channel dropout (torch's Dropout2d) and the classifier, 1x1 or SMP's 3x3.

  (N, h, w, C) in `num_phases`, as `PyramidHead`'s, -> (N, H, W, classes).
  """
  num_classes: int
  dropout: float = 0.1
  size: int = 1
  num_phases: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    num_phases = self.num_phases or 1
    # A channel of an image is kept or dropped in all of its phases.
    x = phases.axes(x, num_phases)
    x = nn.Dropout(self.dropout, broadcast_dims=(1, 2, 3, 4),
                   deterministic=not train)(x)
    x = x.reshape(-1, *x.shape[3:])
    convolve = None
    if self.size > 1 and self.num_phases:
      convolve = functools.partial(phases.conv, phases=num_phases)
    x = Conv(self.num_classes, self.size, convolve=convolve, use_bias=True,
             kernel_init=torch_uniform, dtype=self.dtype, name="conv")(x)
    return phases.change(x, num_phases, 1)


class PSPNet(nn.Module):
  """Normalised NHWC images to class logits.

  With `train=False` returns float32 logits (N, H, W, classes) at the images'
  resolution; the auxiliary head is not computed. With `train=True`, (logits,
  auxiliary logits) in `dtype` and at the feature map's resolution, (N, h, w,
  classes): the loss upsamples them. The second is None where `auxiliary` is
  off.

  `head_channels` and `aux_channels` default to a quarter of their input's,
  which is 512 and 256 for the bottleneck nets. `align_corners` is of all
  upsampling, the bins' and the logits'.
  """
  num_classes: int
  depth: int = 50
  stem: str = "64-64-128"
  output_stride: int = 8
  stride_in: str = "3x3"
  contract_dilation: bool = False
  width_multiplier: float = 1.0
  bins: tuple[int, ...] = (1, 2, 3, 6)
  pool: str = "average"
  reduce: bool = True
  bin1_norm: bool = True
  fuse_size: int = 3
  classifier_size: int = 1
  align_corners: bool = True
  num_stages: int = 4
  avg_down: bool = False
  head_channels: int | None = None
  auxiliary: bool = True
  aux_channels: int | None = None
  dropout: float = 0.1
  packed: bool = False
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False):
    size = images.shape[1:3]
    layer3, layer4 = ResNet(
        self.depth, self.stem, self.output_stride, self.stride_in,
        self.contract_dilation, self.width_multiplier, self.num_stages,
        self.avg_down, self.packed, self.remat, dtype=self.dtype,
        name="backbone")(
            images.astype(self.dtype), train)
    phases3 = phases4 = None
    if self.packed:
      phases3, phases4 = (math.isqrt(len(x) // len(images))
                          for x in (layer3, layer4))

    x = PyramidHead(
        self.head_channels or layer4.shape[-1] // 4, self.bins, self.pool,
        self.reduce, self.bin1_norm, self.fuse_size, self.align_corners,
        phases4, dtype=self.dtype, name="pyramid")(layer4, train)
    logits = Classifier(self.num_classes, self.dropout, self.classifier_size,
                        phases4, dtype=self.dtype, name="classifier")(x, train)
    if not train:
      logits = logits.astype(jnp.promote_types(self.dtype, jnp.float32))
      with jax.named_scope("upsampling"):
        return pooling.resize(logits, size[0], size[1], self.align_corners)

    aux_logits = None
    if self.auxiliary:
      convolve = None
      if self.packed:
        convolve = functools.partial(phases.conv, phases=phases3)
        # Not before the pyramid, whose products take the most memory.
        layer3, logits = jax.lax.optimization_barrier((layer3, logits))
      x = ConvBNReLU(self.aux_channels or layer3.shape[-1] // 4,
                     convolve=convolve, kernel_init=torch_uniform,
                     dtype=self.dtype, name="aux")(layer3, train)
      aux_logits = Classifier(
          self.num_classes, self.dropout, num_phases=phases3,
          dtype=self.dtype, name="aux_classifier")(x, train)
    return logits, aux_logits
