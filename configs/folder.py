"""PSPNet50 on your own photographs and masks: a folder, no code.

Reproduces no published score.

    my_photos/
      images/train/*  images/val/*   JPEG, PNG, WebP or TIFF, nested or not
      masks/train/*   masks/val/*    of the same names: ids, palette, colours
      classes.csv                    id,name,colour: one line a class

    python -m psp_jax.prepare --dataset=folder --manual_dir=my_photos --check
    python -m psp_jax.main --config=configs/folder.py \
        --config.data.manual_dir=my_photos --config.model.pretrained=BACKBONE

The first reads every file, names all that is wrong and draws masks over photos
to look at (docs/datasets.md says how masks are read). BACKBONE: an ImageNet
ResNet-50 with the deep stem, such as timm's resnet50s; with the original
ResNet-50 add --config.model.stem=7x7 --config.model.stride_in=1x1.

    configs/folder.py      the paper's recipe for 10,000 steps; a GPU or TPU
    configs/folder.py:cpu  400 steps of 8 crops of 257 at output stride 16: an
                           hour on two CPU cores, for a first look

Photographs are trained on and scored at their own size times
`data.augment.scale` and `eval.scales`. Of a 12-megapixel photo a crop of 473
shows little: make copies of about 1,000 pixels, or set both to a quarter.

Cost: 10,000 steps of 16 crops are 160,000 crops, 400 passes over 400 photos;
170 GMAC a crop. Not measured on an accelerator yet.
"""

from psp_jax import default_config


def get_config(arg=""):
  c = default_config.get_config()
  c.data.name = "folder"
  c.data.crop_size = 473
  c.model.num_classes = 0  # As many as classes.csv lists.
  c.global_batch_size = 16
  c.num_train_steps = 10_000
  c.eval.base_size = 0
  c.validation.every_steps = 1_000
  c.validation.num_images = 50
  c.checkpoint.every_steps = 500
  c.log_every_steps = 10
  if arg == "cpu":
    # What configs/camvid.py:cpu changes, for the same reasons.
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
    c.eval.window = "whole"
    c.eval.flip = False
  elif arg:
    raise ValueError(f"configs/folder.py:{arg}: no such variant; choose "
                     "configs/folder.py or :cpu")
  return c
