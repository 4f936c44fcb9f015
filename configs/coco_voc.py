"""PSPNet101 on MS-COCO in VOC's 21 classes: what comes before VOC in the paper.

Reproduces no score of its own: the paper's 85.4 % on the VOC 2012 test set is
of a network trained on this first, then on VOC (82.6 % without). The paper
gives neither steps nor how instances become masks: the steps are ours, the
masks are made as psp_jax/data/coco_voc.py says.

    python -m psp_jax.main --config=configs/coco_voc.py \
        --config.data.manual_dir=coco --config.model.pretrained=resnet101s.pth
    python -m psp_jax.main --config=configs/voc2012.py:paper \
        --config.data.manual_dir=VOC --config.model.pretrained=runs/coco_voc

`coco` holds train2017, val2017 and annotations (or 2014's); without the flag
20 GB are downloaded. Needs pip install -e '.[coco]'.

Cost: 120,000 steps of 16 crops of 473x473, ResNet-101: by semseg's figures for
VOC some 18 hours on 8 GPUs of 2019. Not run here yet.
"""

from psp_jax import default_config


def get_config(arg=""):
  if arg:
    raise ValueError(f"configs/coco_voc.py:{arg}: takes no argument")
  c = default_config.get_config()
  c.data.name = "coco_voc"
  c.data.crop_size = 473
  c.model.num_classes = 21
  c.model.depth = 101
  c.global_batch_size = 16
  c.num_train_steps = 120_000
  c.eval.base_size = 512
  c.eval.num_images = 500
  return c
