"""PSPNet on the rendered `scenes`: nothing to download, minutes on a CPU."""

from psp_jax import default_config


def get_config(arg=""):
  del arg
  c = default_config.get_config()
  c.num_train_steps = 400
  c.data.name = "scenes"
  c.data.crop_size = 192
  c.data.num_threads = 2
  c.data.augment.scale = (0.85, 1.15)
  c.data.augment.rotate_degrees = 5.0
  c.model.num_classes = 12
  c.model.depth = 14
  c.model.stem = "32-32-64"
  c.model.contract_dilation = True
  c.model.width_multiplier = 0.25
  c.optimizer.base_lr = 0.02
  c.eval.window = "whole"
  c.eval.base_size = 0
  c.eval.flip = False
  c.eval.window_batch = 16
  c.validation.every_steps = 100
  c.validation.num_images = 32
  c.checkpoint.every_steps = 100
  c.log_every_steps = 20
  return c
