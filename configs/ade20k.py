"""PSPNet50 on ADE20K scene parsing: the paper's recipe in full.

Reproduces Table 1's best row and Table 3's first (Zhao et al., CVPR 2017):
mIoU 41.68 % and pixel accuracy 80.04 % at a single scale, 42.78 % and 80.76 %
at six; the authors' PyTorch release reports 41.89 / 80.39 and 42.84 / 81.06
for 100 epochs. Not reproduced here yet: it wants an accelerator.

    python -m psp_jax.main --config=configs/ade20k.py \
        --config.data.manual_dir=ADEChallengeData2016 \
        --config.model.pretrained=resnet50s.safetensors

`manual_dir` is the unpacked ADEChallengeData2016.zip (20,210 and 2,000 pairs);
without it the archive is downloaded.
The published figures start from an ImageNet backbone with the deep stem, such
as timm's resnet50s. With the original ResNet-50 (docs/camvid.md), add
--config.model.stem=7x7 --config.model.stride_in=1x1. For the multi-scale
score add --config.eval.scales='(0.5,0.75,1.0,1.25,1.5,1.75)'.

Cost: 150,000 steps of 16 crops of 473x473, 170 GMAC forward each. On 8 GPUs of
2019 the authors' 126,300 steps took 14 hours. Ours has run on CPUs only.
"""

from psp_jax import default_config


def get_config(arg=""):
  if arg:
    raise ValueError(f"configs/ade20k.py:{arg}: takes no argument")
  # The defaults are this recipe; what makes it ADE20K's is said again.
  c = default_config.get_config()
  c.data.name = "ade20k"
  c.model.num_classes = 150
  c.model.depth = 50
  c.data.crop_size = 473
  c.global_batch_size = 16
  c.num_train_steps = 150_000
  c.eval.split = "val"
  c.eval.base_size = 512
  return c
