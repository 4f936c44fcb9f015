"""PSPNet50 on Cityscapes, 19 classes, crops of 713: semseg's recipe.

Reproduces semseg's validation scores: mIoU 77.30 % and pixel accuracy 95.97 %
at a single scale, 78.38 / 96.17 at six; with --config.model.depth=101, 78.63 /
96.14 and 79.29 / 96.38. Not reproduced here yet: it wants an accelerator.

    python -m psp_jax.main --config=configs/cityscapes.py \
        --config.data.manual_dir=Cityscapes \
        --config.model.pretrained=resnet50s.pth

`Cityscapes` holds leftImg8bit and gtFine (and gtCoarse), which want an account
at cityscapes-dataset.com. eval.json has the official IoU and iIoU too.

    configs/cityscapes.py         semseg: 200 epochs of 2,975, 37,200 steps
    configs/cityscapes.py:paper   the paper: ResNet-101, 90,000 steps, no blur;
                                  its test score is 78.4 %
    configs/cityscapes.py:coarse  the paper's first stage for 80.2 %: fine and
                                  coarse labels together (22,972 images)
    configs/cityscapes.py:fine    its second: fine labels alone, from the
                                  weights in runs/cityscapes_coarse

The paper gives neither stage's length; 90,000 steps each are ours.

For the test server: --mode=eval --config.eval.split=test
--config.eval.write_predictions=True.

Cost: 2.3 times the arithmetic of a crop of 473; semseg's 37,200 steps took 7
hours on 8 GPUs of 2019.
"""

from psp_jax import default_config


def get_config(arg=""):
  c = default_config.get_config()
  c.data.name = "cityscapes"
  c.data.crop_size = 713
  c.model.num_classes = 19
  c.model.depth = 50
  c.global_batch_size = 16
  c.num_train_steps = 37_200
  c.eval.base_size = 2048
  if arg in ("paper", "coarse", "fine"):
    c.model.depth = 101
    c.num_train_steps = 90_000
    c.data.augment.blur_probability = 0.0
  if arg == "coarse":
    c.data.train_split = "train+train_extra"
  elif arg == "fine":
    c.model.pretrained = "runs/cityscapes_coarse"
  elif arg not in ("", "paper"):
    raise ValueError(f"configs/cityscapes.py:{arg}: no such variant; choose "
                     "configs/cityscapes.py, :paper, :coarse or :fine")
  return c
