"""PSPNet50 on CamVid: 367 real road photographs, 11 classes, 480x360.

Reproduces no published PSPNet score (there is none at this size). For
comparison, published 11-class test mIoU at 480x360: SegNet 46 to 50, ENet 52.1,
FC-DenseNet103 66.9. Ours, on two CPU cores: docs/camvid.md.

    python -m psp_jax.main --config=configs/camvid.py \
        --config.data.manual_dir=CamVid --config.model.pretrained=resnet50.npz

Without `data.manual_dir` CamVid is downloaded from its public repository;
docs/camvid.md says what `resnet50.npz` is. Variants, by the config's argument:

    configs/camvid.py           semseg's recipe at batch 16, 100 epochs: for a
                                GPU or TPU (no figure measured)
    configs/camvid.py:cpu       fits two CPU cores: 3/4 hour
    configs/camvid.py:baseline  half-size photographs, crop 145, 150 steps: the
                                short recipe that docs/camvid.md compares with
"""

from psp_jax import default_config


def get_config(arg=""):
  c = default_config.get_config()
  c.data.name = "camvid"
  c.data.crop_size = 353
  c.num_train_steps = 2_300  # 100 epochs of 367.
  # The pretrained backbone is the original ResNet-50.
  c.model.num_classes = 11
  c.model.stem = "7x7"
  c.model.stride_in = "1x1"
  c.eval.split = "test"
  c.eval.window = "whole"
  c.eval.base_size = 0
  c.validation.every_steps = 230
  c.validation.num_images = 50
  c.checkpoint.every_steps = 230
  c.log_every_steps = 10

  if arg == "cpu":
    # Output stride 16 at full size costs what 8 costs at half size, and its
    # features meet the photographs at the scale that ImageNet taught.
    c.model.output_stride = 16
    c.data.crop_size = 257
    c.data.num_threads = 2
    c.data.augment.scale = (0.75, 1.5)
    c.data.augment.rotate_probability = 0.0
    c.data.augment.blur_probability = 0.0
    c.global_batch_size = 8
    c.num_train_steps = 400
    c.validation.every_steps = 100
    c.validation.num_images = 20
    c.checkpoint.every_steps = 50
    c.eval.flip = False
  elif arg == "baseline":
    c.data.crop_size = 145
    c.data.num_threads = 2
    c.data.augment.scale = (0.25, 1.0)  # 0.5 to 2 of the half-size photo.
    c.global_batch_size = 8
    c.num_train_steps = 150
    c.validation.every_steps = 0
    c.checkpoint.every_steps = 50
    c.eval.scales = (0.5,)
    c.eval.flip = False
  elif arg:
    raise ValueError(f"configs/camvid.py:{arg}: no such variant; choose "
                     "configs/camvid.py, :cpu or :baseline")
  return c
