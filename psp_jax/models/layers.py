"""Layers that must equal PyTorch's, and the one place that knows platforms.

Convolutions pad explicitly (Flax "SAME" with stride 2 pads even inputs on one
side only, PyTorch on both). BatchNorm keeps PyTorch's unbiased running
variance. All arrays are NHWC; kernels are HWIO.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array

# Kaiming normal over fan-out: what ResNet backbones start from.
kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# torch.nn.Conv2d's own default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)): semseg
# leaves the pyramid and the heads at it.
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _native_conv(x: Array, kernel: Array, stride: int, dilation: int) -> Array:
  pads = [(dilation * (k // 2),) * 2 for k in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), pads, rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spatial_conv(x, kernel, stride, dilation):
  return _native_conv(x, kernel, stride, dilation)


def _spatial_conv_fwd(x, kernel, stride, dilation):
  return _native_conv(x, kernel, stride, dilation), (x, kernel)


def _kernel_gradient_as_dots(x, dy, kernel_shape, stride, dilation):
  """The kernel's gradient as one matrix product a tap.

  XLA's CPU backend runs the convolution that autodiff emits here several
  times slower than these products.
  """
  kh, kw = kernel_shape[:2]
  ph, pw = dilation * (kh // 2), dilation * (kw // 2)
  x = jnp.pad(x, ((0, 0), (ph, ph), (pw, pw), (0, 0)))
  h, w = dy.shape[1:3]
  taps = []
  for i in range(kh):
    for j in range(kw):
      top, left = i * dilation, j * dilation
      view = x[:, top:top + (h - 1) * stride + 1:stride,
               left:left + (w - 1) * stride + 1:stride]
      taps.append(jnp.einsum("nhwc,nhwo->co", view, dy))
  return jnp.stack(taps).reshape(kernel_shape)


def _spatial_conv_bwd(stride, dilation, residuals, dy):
  x, kernel = residuals
  conv = functools.partial(_native_conv, stride=stride, dilation=dilation)
  dx = jax.vjp(lambda x: conv(x, kernel), x)[1](dy)[0]
  dkernel = jax.lax.platform_dependent(
      x, dy,
      cpu=lambda x, dy: _kernel_gradient_as_dots(
          x, dy, kernel.shape, stride, dilation),
      default=lambda x, dy: jax.vjp(lambda k: conv(x, k), kernel)[1](dy)[0])
  return dx, dkernel


_spatial_conv.defvjp(_spatial_conv_fwd, _spatial_conv_bwd)


def conv2d(x: Array, kernel: Array, stride: int = 1, dilation: int = 1):
  """PyTorch's Conv2d with padding dilation * (size // 2), odd sizes only.

  Args:
    x: (N, H, W, C).
    kernel: (kh, kw, C, O).
    stride: of both axes.
    dilation: of both axes.

  Returns:
    (N, ceil(H / stride), ceil(W / stride), O).
  """
  if kernel.shape[:2] == (1, 1):
    # A product over channels: faster than a convolution on CPU and TPU.
    return jnp.einsum("nhwc,co->nhwo", x[:, ::stride, ::stride], kernel[0, 0])
  return _spatial_conv(x, kernel, stride, dilation)


def avg_pool_2x2(x: Array, stride: int) -> Array:
  """The "d" nets' AvgPool2d(2), border windows cut: timm's avg_down.

  Stride 2 is ceil_mode; stride 1 (a dilated stage) keeps the size.
  """
  pads = [(0, 1 if stride == 1 else size % 2) for size in x.shape[1:3]]
  return nn.avg_pool(x, (2, 2), (stride, stride), pads,
                     count_include_pad=False)


def max_pool_3x3(x: Array) -> Array:
  """MaxPool2d(3, stride=2, padding=1): (N,H,W,C) -> (N,ceil(H/2),ceil(W/2),C).
  """
  return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))


class Conv(nn.Module):
  """A convolution that computes in `dtype` and keeps fp32 parameters."""
  features: int
  size: int = 3
  stride: int = 1
  dilation: int = 1
  use_bias: bool = False
  kernel_init: Any = kaiming_normal
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    y = conv2d(x.astype(self.dtype), kernel.astype(self.dtype),
               self.stride, self.dilation)
    if self.use_bias:
      fan_in = self.size**2 * x.shape[-1]
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
  """
  momentum: float = 0.9
  epsilon: float = 1e-5
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    features = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, features, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, features)
    running_var = self.variable("batch_stats", "var", jnp.ones, features)
    x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
    if train:
      # One pass over the activations. Shifting by the running mean keeps
      # E[x^2] - E[x]^2 from cancelling where the mean is large.
      axes = tuple(range(x.ndim - 1))
      shift = jax.lax.stop_gradient(running_mean.value)
      centred = x - shift
      offset = jnp.mean(centred, axes)
      var = jnp.maximum(jnp.mean(centred**2, axes) - offset**2, 0.0)
      mean = offset + shift
      if not self.is_initializing():
        n = x.size // x.shape[-1]
        keep = self.momentum
        unbiased = var * (n / max(n - 1, 1))
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * unbiased
    else:
      mean, var = running_mean.value, running_var.value
    gain = scale * jax.lax.rsqrt(var + self.epsilon)
    y = x * gain + (bias - mean * gain)
    return y.astype(self.dtype)


class ConvBNReLU(nn.Module):
  """Convolution, BatchNorm and (unless `relu=False`) ReLU.

  With `norm=False` a bias stands in for the BatchNorm.
  """
  features: int
  size: int = 3
  stride: int = 1
  dilation: int = 1
  relu: bool = True
  norm: bool = True
  kernel_init: Any = kaiming_normal
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    x = Conv(self.features, self.size, self.stride, self.dilation,
             use_bias=not self.norm, kernel_init=self.kernel_init,
             dtype=self.dtype, name="conv")(x)
    if self.norm:
      x = BatchNorm(dtype=self.dtype, name="bn")(x, train)
    return nn.relu(x) if self.relu else x
