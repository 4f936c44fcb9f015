"""Every config field with its default: the paper's recipe for ADE20K.

Files in configs/ start from here and change what they need. The only import
is ml_collections, so that a config can be read anywhere.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.seed = 0
  c.num_train_steps = 150_000
  c.global_batch_size = 16
  c.batch_per_device = 0  # Not 0: sets global_batch_size, by the devices.
  c.accumulation_steps = 1  # Parts of a batch, one after another: less memory.
  c.published = ""  # The score to compare with, in words.

  c.model = ml_collections.ConfigDict()
  c.model.num_classes = 150  # 0: as many as the dataset has.
  c.model.depth = 50  # 10, 14, 18, 34, 50, 101, 152, 269.
  c.model.stem = "64-64-128"  # Or "32-32-64" (V1c), "7x7".
  c.model.stride_in = "3x3"  # Or "1x1" (the original ResNet).
  c.model.output_stride = 8  # Or 16, 32.
  c.model.contract_dilation = False  # True: mmseg, torchvision, timm.
  c.model.avg_down = False  # True: the "d" nets' average-pooled shortcut.
  c.model.num_stages = 4  # SMP's net ends after layer2.
  c.model.width_multiplier = 1.0  # Of the backbone; the heads follow.
  c.model.pyramid = ml_collections.ConfigDict()
  c.model.pyramid.bins = (1, 2, 3, 6)  # () for no pyramid.
  c.model.pyramid.pool = "average"  # Or "max".
  c.model.pyramid.reduce = True  # 1x1 dimension reduction, Table 1's "DR".
  c.model.pyramid.bin1_norm = True  # False: SMP's bias instead.
  c.model.pyramid.fuse_size = 3  # Or 1 (SMP).
  c.model.classifier_size = 1  # Or 3 (SMP).
  c.model.align_corners = True  # False: mmseg, mit_semseg.
  c.model.head_channels = config_dict.placeholder(int)  # None: a quarter.
  c.model.auxiliary = True
  c.model.aux_channels = config_dict.placeholder(int)  # None: a quarter.
  c.model.aux_loss_weight = 0.4
  c.model.dropout = 0.1
  c.model.layout = "auto"  # "packed" on TPUs, "plain" elsewhere: one function.
  c.model.remat = False  # True: compute blocks again, for larger batches.
  c.model.dtype = "auto"  # bfloat16 on TPU and GPU, float32 on CPU.
  c.model.pretrained = ""  # A backbone's file, or the folder of a run.

  c.loss = ml_collections.ConfigDict()
  # "global": mean over valid pixels; "per_replica": mean of groups' means
  # (semseg); "all_pixels": the ignored count in the divisor (mmsegmentation).
  c.loss.normalizer = "global"
  c.loss.num_replicas = 8  # Groups of "per_replica"; semseg's GPUs.

  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.base_lr = 0.01
  c.optimizer.end_lr = 0.0
  c.optimizer.poly_power = 0.9
  c.optimizer.momentum = 0.9
  c.optimizer.weight_decay = 1e-4
  c.optimizer.decay_norm_and_bias = True  # semseg; False: the Caffe release.
  c.optimizer.head_lr_multiplier = 10.0

  c.data = ml_collections.ConfigDict()
  c.data.name = "ade20k"
  c.data.train_split = "train"  # Or a sum, "train+val".
  c.data.manual_dir = ""  # A copy of the dataset on this machine.
  c.data.data_dir = ""  # Of the prepared files; "": ~/tensorflow_datasets.
  c.data.allow_partial = False  # True: a part of the dataset will do.
  c.data.reduce_zero_label = False  # Of "folder": stored 0 is unlabelled.
  c.data.crop_size = 473
  c.data.crop_width = config_dict.placeholder(int)  # None: crops are square.
  c.data.workers = "threads"  # Or "processes": no interpreter in common.
  c.data.num_threads = 16  # Threads or processes, as `workers` says.
  c.data.cache_gib = 0.0  # Of memory a host, for decoded training records.
  c.data.augment = ml_collections.ConfigDict()
  c.data.augment.scale = (0.5, 2.0)
  c.data.augment.rotate_degrees = 10.0
  c.data.augment.rotate_probability = 0.5
  c.data.augment.blur_probability = 0.5
  c.data.augment.mirror_probability = 0.5
  # mmsegmentation's: below 1, no class fills a larger share of a crop's valid
  # pixels, where ten more positions allow it (it has 0.75).
  c.data.augment.cat_max_ratio = 1.0
  c.data.augment.photometric_distortion = False

  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # -1: all devices that `space` leaves.
  c.mesh.space = 1

  c.eval = ml_collections.ConfigDict()
  c.eval.split = "val"
  c.eval.window = "sliding"  # Or "whole": each image in one piece.
  c.eval.window_size = config_dict.placeholder(int)  # None: the crop size.
  c.eval.stride_fraction = 2 / 3
  c.eval.scales = (1.0,)
  c.eval.base_size = 512  # Of the base side at scale 1; 0: the image's own.
  c.eval.base_side = "long"  # Or "short" (mmseg).
  c.eval.flip = True
  c.eval.average = "probabilities"  # Or "logits" (mmseg), over windows.
  c.eval.window_batch = 4  # Windows a device in one forward pass.
  c.eval.absent_classes = "skip"  # Or "zero" (semseg), in the means.
  c.eval.num_images = 0  # 0: the whole split.
  c.eval.step = config_dict.placeholder(int)  # None: the last checkpoint.
  c.eval.contact_sheet_images = 8
  c.eval.report = True  # report.html, where psp_jax[report] is installed.
  c.eval.write_predictions = False  # workdir/predictions/NAME.png.

  c.validation = ml_collections.ConfigDict()
  c.validation.split = "val"
  c.validation.every_steps = 5_000  # 0: never.
  c.validation.num_images = 100
  c.validation.contact_sheet_images = 4  # For TensorBoard; the same each time.

  c.checkpoint = ml_collections.ConfigDict()
  c.checkpoint.every_steps = 1_000  # Validated steps are saved as well.
  c.checkpoint.asynchronous = True  # False: training waits for the disk.
  c.checkpoint.keep = 3  # The last ones; the best by mIoU stays too,
  c.checkpoint.keep_every_steps = 0  # and those of multiples of this.

  c.log_every_steps = 50
  c.profile = ""  # "10:13": a trace of steps 10 to 13, for XProf.
  c.non_finite = "stop"  # Or "skip" the steps that are NaN or infinite,
  c.max_skipped_steps = 10  # so many in a row.
  c.stall_seconds = 1_800  # Without a sign of life, then it ends; 0: never.
  c.peer_timeout_seconds = 100  # Without one of another process, likewise.
  return c
