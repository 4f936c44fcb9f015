"""Flax modules. The rest of psp_jax sees only `create_model`."""

import jax
import jax.numpy as jnp

from psp_jax.errors import ConfigError, check_choice
from psp_jax.models.layers import PREPACKED
from psp_jax.models.pspnet import PSPNet
from psp_jax.models.resnet import ARCHITECTURES, STEMS

__all__ = ["PSPNet", "create_model", "prepack"]

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def create_model(config) -> PSPNet:
  """The Flax module that `config.model` describes.

  `model.init(key, images, train=True)` builds every parameter, the auxiliary
  head's included. `model.apply` takes normalised NHWC images and gives logits
  at their resolution; see `PSPNet`.

  Args:
    config: a whole config, as `get_config()` returns it.

  Raises:
    ConfigError: a field names something that does not exist.
  """
  c = config.model
  check_choice("model.depth", c.depth, ARCHITECTURES)
  check_choice("model.stem", c.stem, STEMS)
  check_choice("model.output_stride", c.output_stride, (8, 16, 32))
  check_choice("model.stride_in", c.stride_in, ("3x3", "1x1"))
  check_choice("model.pyramid.pool", c.pyramid.pool, ("average", "max"))
  check_choice("model.pyramid.fuse_size", c.pyramid.fuse_size, (1, 3))
  check_choice("model.classifier_size", c.classifier_size, (1, 3))
  check_choice("model.num_stages", c.num_stages, (2, 3, 4))
  check_choice("model.layout", c.layout, ("auto", "packed", "plain"))
  check_choice("model.dtype", c.dtype, ("auto", *_DTYPES))
  bins = tuple(c.pyramid.bins)
  if any(not isinstance(b, int) or b < 1 for b in bins):
    raise ConfigError(f"model.pyramid.bins={bins}: use positive integers, "
                      "such as (1, 2, 3, 6), or () for no pyramid")
  if len(set(bins)) < len(bins):
    raise ConfigError(f"model.pyramid.bins={bins}: name each size once")
  return PSPNet(
      num_classes=c.num_classes, depth=c.depth, stem=c.stem,
      output_stride=c.output_stride, stride_in=c.stride_in,
      contract_dilation=c.contract_dilation,
      width_multiplier=c.width_multiplier, bins=bins,
      pool=c.pyramid.pool, reduce=c.pyramid.reduce,
      bin1_norm=c.pyramid.bin1_norm, fuse_size=c.pyramid.fuse_size,
      classifier_size=c.classifier_size, align_corners=c.align_corners,
      num_stages=c.num_stages, avg_down=c.avg_down,
      head_channels=c.head_channels, auxiliary=c.auxiliary,
      aux_channels=c.aux_channels, dropout=c.dropout,
      packed=is_packed(config), remat=c.remat,
      dtype=compute_dtype(c.dtype))


def prepack(model, variables, shape):
  """What spares a CPU's inference work on parameters that do not change.

  `model.apply(variables | prepack(...), ..., train=False)` gives the same
  logits and finds the kernels of 3x3 convolutions transformed already. They
  take up to 4 times the kernels' memory.

  Args:
    model: `create_model`'s, not in the layout "packed".
    variables: {"params", "batch_stats"}.
    shape: (N, H, W, 3) of the images to come; for others it is as right, if
      not as fast.

  Returns:
    A collection of variables: {"prepacked"}.
  """
  return model.apply(variables, jnp.zeros(shape), train=False,
                     mutable=[PREPACKED])[1]


def is_packed(config, platform: str | None = None) -> bool:
  """Whether maps are rearranged for TPUs, see `ResNet`.

  "auto" is on a TPU (`platform`; None: this process's) where no mesh axis
  splits image rows, which the rearrangement would gather.
  """
  if config.model.layout == "auto":
    platform = platform or jax.default_backend()
    return platform == "tpu" and config.mesh.space == 1
  return config.model.layout == "packed"


def compute_dtype(name: str):
  """The activations' dtype; "auto" is bf16 where the hardware has it."""
  if name == "auto":
    name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return _DTYPES[name]
