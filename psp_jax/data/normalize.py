"""ImageNet's channel statistics, in RGB and 0-255 (semseg tool/train.py)."""

import jax.numpy as jnp

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
# What uint8 padding can hold of the mean; below 0.01 after normalisation.
MEAN_UINT8 = tuple(round(v) for v in MEAN)


def normalize(images):
  """uint8 or float RGB (..., 3) in 0-255 to float32, zero mean, unit std."""
  return (images.astype(jnp.float32) - jnp.array(MEAN)) / jnp.array(STD)
