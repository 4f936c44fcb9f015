"""PSPNet50 on PASCAL VOC 2012 with SBD's masks (train_aug): semseg's recipe.

Reproduces semseg's validation scores: mIoU 77.05 % and pixel accuracy 94.89 %
at a single scale, 78.02 / 95.13 at six; with --config.model.depth=101, 79.07 /
95.34 and 79.63 / 95.50. Not reproduced here yet: it wants an accelerator.

    python -m psp_jax.main --config=configs/voc2012.py \
        --config.data.manual_dir=VOC --config.model.pretrained=resnet50s.pth

`VOC` holds VOCdevkit (VOCtrainval_11-May-2012.tar) and benchmark_RELEASE (SBD's
benchmark.tgz); without the flag both are downloaded. The weights are an
ImageNet backbone with the deep stem, such as timm's resnet50s.

    configs/voc2012.py        semseg: 50 epochs of 10,582, 33,050 steps
    configs/voc2012.py:paper  the paper: ResNet-101, 30,000 steps; its test
                              scores are 82.6 % and, after configs/coco_voc.py
                              (--config.model.pretrained=runs/coco_voc), 85.4

For the test server: unpack VOC2012test.tar (it wants an account) over the
VOCdevkit and score with --mode=eval --config.eval.split=test
--config.eval.write_predictions=True; to train on all labels,
--config.data.train_split=train_aug+val.

Cost: 170 GMAC a crop; semseg's 33,050 steps took 3.3 hours on 8 GPUs of 2019.
"""

from psp_jax import default_config


def get_config(arg=""):
  c = default_config.get_config()
  c.data.name = "voc2012"
  c.data.train_split = "train_aug"
  c.data.crop_size = 473
  c.model.num_classes = 21
  c.model.depth = 50
  c.global_batch_size = 16
  c.num_train_steps = 33_050
  c.eval.base_size = 512
  if arg == "paper":
    c.model.depth = 101
    c.num_train_steps = 30_000
  elif arg:
    raise ValueError(f"configs/voc2012.py:{arg}: no such variant; choose "
                     "configs/voc2012.py or :paper")
  return c
