"""Every row of the paper's Tables 1 to 4, and its VOC and Cityscapes scores.

Reproduces, one row at a time, what psp_jax/published.py lists; its ROWS are
this config's arguments, and the figures to compare with. None is reproduced
here yet: an ADE20K row took the authors' eight GPUs of 2019 14 hours with
ResNet-50.

    python -m psp_jax.main --config=configs/ablations.py:table1_b1_max \
        --config.data.manual_dir=ADEChallengeData2016 \
        --config.model.pretrained=resnet50s.safetensors
    python -m psp_jax.tables runs/ablations_table1_b1_max/eval.json

The ADE20K rows are configs/ade20k.py's recipe but for what their names say.

Multi-scale rows train as the row without `_multiscale` does; its workdir is
all they need (`table4_multiscale`: that of `table4_269`):

    python -m psp_jax.main --mode=eval \
        --workdir=runs/ablations_table3_resnet50 \
        --config=configs/ablations.py:table3_resnet50_multiscale

It replaces that folder's eval.json: keep a copy there under another name.

Several names are one run, since the paper's tables share rows:
table1_baseline, table2_aux_0.4 and table4_da_al; table2_aux_none and
table4_da; table1_b1236_average_dr, table3_resnet50 and table4_psp;
table3_resnet269 and table4_269.

Weights: `model.pretrained` stays "", random weights; the published figures
start from an ImageNet backbone of the row's depth with the deep stem.

voc2012, voc2012_coco, cityscapes and cityscapes_coarse are the paper's test
scores (labels are not public: submit the predictions), the others semseg's
validation scores. Two rows are the second of two stages: voc2012_coco follows
configs/coco_voc.py (MS-COCO in VOC's classes), cityscapes_coarse follows
configs/cityscapes.py:coarse (fine and coarse labels together); they differ from
voc2012 and cityscapes only in the weights that they start from:
--config.model.pretrained=FOLDER, the first stage's run. How to get the
datasets: docs/datasets.md.
"""

from psp_jax import default_config, published


def get_config(arg=""):
  if arg not in published.ROWS:
    raise ValueError(f"configs/ablations.py{arg and ':' + arg}: name a row, "
                     f"configs/ablations.py:NAME, of "
                     f"{', '.join(published.ROWS)}")
  row = published.ROWS[arg]
  c = default_config.get_config()
  c.update_from_flattened_dict(row.changes)
  c.published = published.describe(row)
  return c
