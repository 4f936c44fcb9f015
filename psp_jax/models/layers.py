"""Layers that must equal PyTorch's.

Convolutions pad explicitly (Flax "SAME" with stride 2 pads even inputs on one
side only, PyTorch on both). BatchNorm keeps PyTorch's unbiased running
variance. All arrays are NHWC; kernels are HWIO.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from psp_jax.models import pairs
from psp_jax.models.convolution import conv2d, kernel_values
from psp_jax.models.pending import Pending, Term, conv_of_pending

Array = jax.Array

PREPACKED = "prepacked"  # The collection of what inference need not repeat.

# Kaiming normal over fan-out: what ResNet backbones start from.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# torch.nn.Conv2d's own default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)): semseg
# leaves the pyramid and the heads at it.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def prepacked(module: nn.Module, name: str, make: Callable[[], Any]):
  """What `psp_jax.models.prepack` has put into the variables, or None.

  While it does so, `make()`, which is of the parameters alone.
  """
  if (module.is_mutable_collection(PREPACKED)
      and not module.is_initializing()):
    module.put_variable(PREPACKED, name, make())
  return module.get_variable(PREPACKED, name)


def avg_pool_2x2(x: Array, stride: int) -> Array:
  """The "d" nets' AvgPool2d(2), border windows cut: timm's avg_down.

  Stride 2 is ceil_mode; stride 1 (a dilated stage) keeps the size.
  """
  pads = [(0, 1 if stride == 1 else size % 2) for size in x.shape[1:3]]
  return nn.avg_pool(x, (2, 2), (stride, stride), pads,
                     count_include_pad=False)


class Conv(nn.Module):
  """A convolution that computes in `dtype` and keeps fp32 parameters.

  `convolve(x, kernel)` replaces `conv2d` where x, of `in_features`, is
  arranged otherwise. Of a `Pending` map it returns the map, too.
  """
  features: int
  size: int = 3
  stride: int = 1
  dilation: int = 1
  convolve: Callable[[Array, Array], Array] | None = None
  in_features: int | None = None
  use_bias: bool = False
  kernel_init: Any = kaiming_normal
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array | Pending) -> Any:
    in_features = self.in_features or x.shape[-1]
    shape = (self.size, self.size, in_features, self.features)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    kernel = kernel.astype(self.dtype)
    if isinstance(x, Pending):
      assert not self.use_bias  # BatchNorm comes after it.
      convolve = self.convolve or functools.partial(
          conv2d, stride=self.stride, dilation=self.dilation)
      return conv_of_pending(convolve, x, kernel)
    x = x.astype(self.dtype)
    if self.convolve is None:
      geometry = self.stride, self.dilation
      values = prepacked(
          self, "values", lambda: kernel_values(x, kernel, *geometry))
      y = conv2d(x, kernel, *geometry, values)
    else:
      y = self.convolve(x, kernel)
    if self.use_bias:
      fan_in = self.size**2 * in_features
      bias = self.param("bias", _bias_init(fan_in), (self.features,),
                        jnp.float32)
      y = y + bias.astype(self.dtype)
    return y


def _bias_init(fan_in: int):
  bound = fan_in**-0.5
  return lambda key, shape, dtype: jax.random.uniform(
      key, shape, dtype, -bound, bound)


class BatchNorm(nn.Module):
  """torch.nn.BatchNorm2d over the global batch, statistics in fp32 or wider.

  Under `jax.jit` with a batch-sharded input the means are over every device:
  synchronised BatchNorm with no extra code. The running variance is unbiased,
  n / (n - 1), as PyTorch's: at pyramid bin 1 and batch 16 that is 6.7 %.
  `momentum` is the share of the old value that stays (PyTorch's 1 - 0.1).
  `pair_width` is of a map in pairs, whose filler counts for nothing and
  becomes 0. With `pending` the normalisation is left to who wants the map.
  """
  momentum: float = 0.9
  epsilon: float = 1e-5
  pair_width: int | None = None
  pending: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Any:
    raw, paired = x, self.pair_width is not None
    each = 2 if paired else 1  # Columns in a pixel.
    features = (x.shape[-1] // each,)
    scale = self.param("scale", nn.initializers.ones, features, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
    running_var = self.variable("batch_stats", "var", jnp.ones, features)
    x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
    width = x.shape[2] if self.pair_width is None else self.pair_width
    inside = None
    if each * x.shape[2] > width:
      inside = pairs.inside(width, *features)
    if train:
      # One pass over the activations. Shifting by the running mean keeps
      # E[x^2] - E[x]^2 from cancelling where the mean is large.
      n = x.shape[0] * x.shape[1] * width
      shift = jax.lax.stop_gradient(running_mean.value)
      centred = x - jnp.tile(shift, each)
      if inside is not None:
        centred = jnp.where(inside, centred, 0)
      sums = (v.sum((0, 1, 2)).reshape(each, -1).sum(0)
              for v in (centred, centred**2))
      offset, square = (v / n for v in sums)
      var = jnp.maximum(square - offset**2, 0.0)
      mean = offset + shift
      if not self.is_initializing():
        keep = self.momentum
        unbiased = var * (n / max(n - 1, 1))
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * unbiased
    else:
      mean, var = running_mean.value, running_var.value
    gain = scale * jax.lax.rsqrt(var + self.epsilon)
    if self.pending:
      vectors = (jnp.tile(v, each) for v in (gain, bias - mean * gain))
      return Term(raw, *(vectors if inside is None else (
          jnp.where(inside, v, 0) for v in vectors)))
    y = x * jnp.tile(gain, each) + jnp.tile(bias - mean * gain, each)
    if inside is not None:
      y = jnp.where(inside, y, 0)
    return y.astype(self.dtype)


class ConvBNReLU(nn.Module):
  """Convolution, BatchNorm and (unless `relu=False`) ReLU.

  With `norm=False` a bias stands in for the BatchNorm. `convolve` and
  `in_features` are `Conv`'s, `pair_width` is `BatchNorm`'s. With `pending` it
  is a `Pending` map, or without ReLU a term of one. Of a `Pending` map it
  returns (the map, the result).
  """
  features: int
  size: int = 3
  stride: int = 1
  dilation: int = 1
  convolve: Callable[[Array, Array], Array] | None = None
  in_features: int | None = None
  pair_width: int | None = None
  relu: bool = True
  norm: bool = True
  pending: bool = False
  kernel_init: Any = kaiming_normal
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array | Pending, train: bool) -> Any:
    y = Conv(self.features, self.size, self.stride, self.dilation,
             self.convolve, self.in_features, use_bias=not self.norm,
             kernel_init=self.kernel_init, dtype=self.dtype, name="conv")(x)
    if isinstance(x, Pending):
      x, y = y
      return x, self._normalise(y, train)
    return self._normalise(y, train)

  def _normalise(self, y, train):
    if self.norm:
      y = BatchNorm(pair_width=self.pair_width, pending=self.pending,
                    dtype=self.dtype, name="bn")(y, train)
    if self.pending:
      return Pending((y,), None) if self.relu else y
    return nn.relu(y) if self.relu else y
