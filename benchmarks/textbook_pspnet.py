"""PSPNet and its training step as a textbook has them: what ours is beside.

The same function as psp_jax's (dilated ResNet with the deep stem, pyramid,
auxiliary head, SGD), written plainly: `lax` convolutions for all of them, 1x1
too, and dilation in the convolution; Flax's own BatchNorm; bins upsampled and
concatenated to 4096 channels; logits upsampled to the image's size in float32,
then optax's cross-entropy. Nothing is taken from psp_jax but the depths and
the interpolation matrices, so that it stays as it is when psp_jax changes.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from psp_jax.models.pooling import interpolation_matrix
from psp_jax.models.resnet import ARCHITECTURES

IGNORE_LABEL = 255
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
STD = np.array([0.229, 0.224, 0.225], np.float32) * 255


def resize(x, height: int, width: int):
  """Bilinear, align-corners: jax.image.resize has no such option."""
  rows = interpolation_matrix(x.shape[1], height).astype(x.dtype)
  columns = interpolation_matrix(x.shape[2], width).astype(x.dtype)
  return jnp.einsum("ha,wb,nabc->nhwc", rows, columns, x)


def adaptive_average(x, bins: int):
  """torch's AdaptiveAvgPool2d; plain pooling where the bins divide the map."""
  height, width = x.shape[1:3]
  if height % bins == 0 and width % bins == 0:
    window = height // bins, width // bins
    return nn.avg_pool(x, window, window)

  def edges(size):
    return [(i * size // bins, -(-(i + 1) * size // bins))
            for i in range(bins)]

  rows = [jnp.stack([x[:, a:b, c:d].mean((1, 2)) for c, d in edges(width)], 1)
          for a, b in edges(height)]
  return jnp.stack(rows, 1)


class ConvBNReLU(nn.Module):
  """Convolution, Flax's BatchNorm, ReLU."""
  features: int
  size: int = 3
  stride: int = 1
  dilation: int = 1
  relu: bool = True
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x, train):
    pad = self.dilation * (self.size // 2)
    x = nn.Conv(self.features, (self.size, self.size), self.stride,
                ((pad, pad), (pad, pad)), kernel_dilation=self.dilation,
                use_bias=False, dtype=self.dtype, name="conv")(x)
    x = nn.BatchNorm(not train, momentum=0.9, dtype=self.dtype, name="bn")(x)
    return nn.relu(x) if self.relu else x


class Block(nn.Module):
  """A basic or a bottleneck block."""
  features: int
  stride: int
  dilation: int
  bottleneck: bool
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x, train):
    conv = functools.partial(ConvBNReLU, dtype=self.dtype)
    if self.bottleneck:
      inner = self.features // 4
      y = conv(inner, 1, name="conv1")(x, train)
      y = conv(inner, 3, self.stride, self.dilation, name="conv2")(y, train)
      y = conv(self.features, 1, relu=False, name="conv3")(y, train)
    else:
      y = conv(self.features, 3, self.stride, self.dilation,
               name="conv1")(x, train)
      y = conv(self.features, 3, relu=False, name="conv2")(y, train)
    if x.shape != y.shape:
      x = conv(self.features, 1, self.stride, relu=False,
               name="downsample")(x, train)
    return nn.relu(x + y)


class Backbone(nn.Module):
  """The dilated ResNet with output stride 8: layer3 and layer4."""
  depth: int
  width: float
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x, train):
    blocks, kind = ARCHITECTURES[self.depth]
    for i, features in enumerate((64, 64, 128)):
      x = ConvBNReLU(round(features * self.width), 3, 2 if i == 0 else 1,
                     dtype=self.dtype, name=f"stem_conv{i + 1}")(x, train)
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    results = []
    for stage, (count, stride, dilation) in enumerate(
        zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4)), start=1):
      features = round(64 * 2**(stage - 1) * self.width) * (
          4 if kind == "bottleneck" else 1)
      for b in range(count):
        x = Block(features, stride if b == 0 else 1, dilation,
                  kind == "bottleneck", self.dtype,
                  name=f"layer{stage}_{b}")(x, train)
      results.append(x)
    return results[2], results[3]


class Pyramid(nn.Module):
  """Pooling at four sizes, concatenation, one 3x3 convolution."""
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x, train):
    height, width, channels = x.shape[1:]
    parts = [x]
    for bins in (1, 2, 3, 6):
      z = ConvBNReLU(channels // 4, 1, dtype=self.dtype,
                     name=f"bin{bins}")(adaptive_average(x, bins), train)
      parts.append(resize(z, height, width))
    return ConvBNReLU(channels // 4, dtype=self.dtype, name="fuse")(
        jnp.concatenate(parts, -1), train)


class Classifier(nn.Module):
  """Dropout2d and a 1x1 convolution."""
  num_classes: int
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dropout(0.1, broadcast_dims=(1, 2), deterministic=not train)(x)
    return nn.Conv(self.num_classes, (1, 1), dtype=self.dtype, name="conv")(x)


class TextbookPSPNet(nn.Module):
  """(N, H, W, 3) images to float32 logits of their size, and auxiliary ones.
  """
  num_classes: int
  depth: int = 50
  width: float = 1.0
  dtype: Any = jnp.bfloat16

  @nn.compact
  def __call__(self, images, train: bool = False):
    layer3, layer4 = Backbone(self.depth, self.width, self.dtype,
                              name="backbone")(images, train)
    x = Pyramid(self.dtype, name="pyramid")(layer4, train)
    x = Classifier(self.num_classes, self.dtype, name="classifier")(x, train)
    logits = self._to_image(x, images.shape)
    if not train:
      return logits
    x = ConvBNReLU(layer3.shape[-1] // 4, dtype=self.dtype,
                   name="aux")(layer3, train)
    x = Classifier(self.num_classes, self.dtype,
                   name="aux_classifier")(x, train)
    return logits, self._to_image(x, images.shape)

  def _to_image(self, logits, shape):
    return resize(logits.astype(jnp.float32), *shape[1:3])


def create_optimizer(num_steps: int):
  """SGD as psp_jax's: decay, momentum, heads ten times faster, poly."""
  heads = functools.partial(
      jax.tree_util.tree_map_with_path,
      lambda path, _: path[0].key != "backbone")
  schedule = optax.polynomial_schedule(0.01, 0.0, 0.9, num_steps)
  return optax.chain(
      optax.add_decayed_weights(1e-4), optax.trace(decay=0.9),
      optax.masked(optax.scale(10.0), heads),
      optax.scale_by_learning_rate(schedule))


def create_state(model, num_steps: int):
  """Step, parameters, statistics and momentum, from seed 0."""
  variables = model.init(
      jax.random.key(0), jnp.zeros((1, 65, 65, 3)), train=True)
  return {"step": jnp.zeros((), jnp.int32), **variables,
          "opt_state": create_optimizer(num_steps).init(variables["params"])}


def cross_entropy(logits, labels):
  """Mean over the valid pixels."""
  valid = labels != IGNORE_LABEL
  losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.where(valid, labels, 0).astype(jnp.int32))
  return jnp.where(valid, losses, 0).sum() / jnp.maximum(valid.sum(), 1)


def train_step(state, batch, *, model, num_steps: int):
  """One SGD step with the same metrics as `psp_jax.train_step`'s."""
  images = (batch["image"].astype(jnp.float32) - MEAN) / STD
  labels = batch["label"]
  key = jax.random.fold_in(jax.random.key(0), state["step"])

  def loss_fn(params):
    (logits, aux_logits), updates = model.apply(
        {"params": params, "batch_stats": state["batch_stats"]}, images,
        train=True, mutable=["batch_stats"], rngs={"dropout": key})
    main = cross_entropy(logits, labels)
    aux = cross_entropy(aux_logits, labels)
    return main + 0.4 * aux, (updates["batch_stats"], main, aux, logits)

  (loss, (batch_stats, main, aux, logits)), grads = jax.value_and_grad(
      loss_fn, has_aux=True)(state["params"])
  updates, opt_state = create_optimizer(num_steps).update(
      grads, state["opt_state"], state["params"])
  valid = labels != IGNORE_LABEL
  correct = valid & (jnp.argmax(logits, -1) == labels)
  return {
      "step": state["step"] + 1, "batch_stats": batch_stats,
      "params": optax.apply_updates(state["params"], updates),
      "opt_state": opt_state,
  }, {"loss": loss, "main_loss": main, "aux_loss": aux,
      "grad_norm": optax.tree.norm(grads),
      "learning_rate": optax.polynomial_schedule(
          0.01, 0.0, 0.9, num_steps)(state["step"]),
      "pixel_accuracy": correct.sum() / jnp.maximum(valid.sum(), 1)}
