"""The textbook PSPNet that benchmarks compare with computes what ours does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import textbook_pspnet as textbook
from psp_jax import default_config, losses, optimizers
from psp_jax.models import PSPNet, pooling


@pytest.mark.parametrize("height, width", [(12, 6), (9, 7)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_pooling_where_bins_divide_the_map_and_where_not(height, width, bins):
  x = np.random.default_rng(0).normal(size=(2, height, width, 3))
  np.testing.assert_allclose(
      textbook.adaptive_average(jnp.asarray(x, jnp.float32), bins),
      pooling.adaptive_pools(jnp.asarray(x, jnp.float32), [bins])[0],
      atol=1e-6)


def test_the_networks_are_one_function():
  """Same parameters, images and dropout: the same logits in training."""
  model = PSPNet(5, 10, width_multiplier=0.0625)
  plain = textbook.TextbookPSPNet(5, 10, 0.0625, jnp.float32)
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 41, 41, 3)).astype(np.float32)
  variables = jax.tree.map(  # Positive, as BatchNorm's parameters are.
      lambda x: rng.uniform(-.1 if x.ndim > 1 else .5, 1, x.shape).astype(
          x.dtype),
      jax.eval_shape(lambda: model.init(
          jax.random.key(0), images, train=True)))

  def apply(model, variables):
    outputs, _ = jax.jit(lambda v: model.apply(
        v, images, train=True, mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(1)}))(variables)
    return outputs

  ours = apply(model, variables)
  expected = apply(plain, {k: _renamed(v) for k, v in variables.items()})
  for a, b in zip(ours, expected):
    a = pooling.resize(a, 41, 41)  # The loss's part.
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_the_losses_are_one_function():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 7, 9, 5)).astype(np.float32)
  labels = rng.integers(0, 5, (2, 7, 9)).astype(np.uint8)
  labels[0, :4] = 255
  np.testing.assert_allclose(textbook.cross_entropy(logits, labels),
                             losses.cross_entropy(logits, labels, 255)[0],
                             rtol=1e-6)


def test_the_optimizers_are_one_function():
  config = default_config.get_config()
  rng = np.random.default_rng(0)
  params = {"backbone": {"kernel": rng.normal(size=(3, 2))},
            "pyramid": {"kernel": rng.normal(size=(2, 2)),
                        "bias": rng.normal(size=2)}}
  ours = optimizers.create_optimizer(config)
  plain = textbook.create_optimizer(config.num_train_steps)
  state, plain_state = ours.init(params), plain.init(params)
  for _ in range(3):
    grads = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
    updates, state = ours.update(grads, state, params)
    expected, plain_state = plain.update(grads, plain_state, params)
    jax.tree.map(np.testing.assert_allclose, updates, expected)


def _renamed(tree):
  """Ours with the textbook's names: the fusing convolution is a module."""
  pyramid = dict(tree["pyramid"])
  fuse = {"bn": pyramid.pop("bn")}
  if "kernel" in pyramid:
    fuse["conv"] = {"kernel": pyramid.pop("kernel")}
  return dict(tree, pyramid=dict(pyramid, fuse=fuse))
