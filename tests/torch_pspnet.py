"""PSPNet in PyTorch, for comparison: written from its published description.

The textbook form, with nothing folded: bins are upsampled, concatenated and
convolved. Modules are named as in hszhao/semseg's checkpoints. The options are
those in which published PSPNets differ; the defaults are semseg's.
"""

import torch
from torch import nn
from torch.nn import functional

BLOCKS = {14: (1, 1, 1, 1), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
  """1x1 - 3x3 - 1x1 and a shortcut."""

  def __init__(self, inputs, inner, stride, dilation, first, stride_in,
               avg_down):
    super().__init__()
    in_1x1, in_3x3 = (stride, 1) if stride_in == "1x1" else (1, stride)
    self.conv1 = nn.Conv2d(inputs, inner, 1, in_1x1, bias=False)
    self.bn1 = nn.BatchNorm2d(inner)
    self.conv2 = nn.Conv2d(inner, inner, 3, in_3x3, dilation, dilation,
                           bias=False)
    self.bn2 = nn.BatchNorm2d(inner)
    self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
    self.bn3 = nn.BatchNorm2d(4 * inner)
    self.downsample, self.pool = None, None
    if first:
      if avg_down:
        # timm: in a dilated stage 2x2 at stride 1, padded to the same size.
        self.pool = nn.Sequential(
            *([nn.ZeroPad2d((0, 1, 0, 1))] if stride == 1 else []),
            nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False))
        self.pads = stride == 1
        stride = 1
      self.downsample = nn.Sequential(
          nn.Conv2d(inputs, 4 * inner, 1, stride, bias=False),
          nn.BatchNorm2d(4 * inner))

  def forward(self, x):
    y = functional.relu(self.bn1(self.conv1(x)))
    y = functional.relu(self.bn2(self.conv2(y)))
    y = self.bn3(self.conv3(y))
    if self.pool is not None:
      pooled = self.pool(x)
      if self.pads:  # Zeros do not count: divide by what is real.
        pooled = pooled / self.pool(torch.ones_like(x))
      x = pooled
    if self.downsample is not None:
      x = self.downsample(x)
    return functional.relu(x + y)


class Pyramid(nn.Module):
  """Upsampled bins beside the features."""

  def __init__(self, channels, bins, pool, reduce, bin1_norm, align_corners):
    super().__init__()
    adaptive = {"average": nn.AdaptiveAvgPool2d,
                "max": nn.AdaptiveMaxPool2d}[pool]
    each = channels // len(bins) if bins else 0
    self.align_corners = align_corners
    self.features = nn.ModuleList()
    for size in bins:
      layers = [adaptive(size)]
      if reduce:
        norm = size > 1 or bin1_norm
        layers.append(nn.Conv2d(channels, each, 1, bias=not norm))
        layers += [nn.BatchNorm2d(each)] * norm + [nn.ReLU()]
      self.features.append(nn.Sequential(*layers))
    self.channels = channels + len(bins) * (each if reduce else channels)

  def forward(self, x):
    maps = [functional.interpolate(
        branch(x), x.shape[2:], mode="bilinear",
        align_corners=self.align_corners) for branch in self.features]
    return torch.cat([x, *maps], 1)


class PSPNet(nn.Module):
  """(N, 3, H, W) -> logits; in training mode (logits, auxiliary logits)."""

  def __init__(self, num_classes=150, depth=50, stem=(64, 64, 128),
               stride_in="3x3", contract_dilation=False, avg_down=False,
               num_stages=4, bins=(1, 2, 3, 6), pool="average", reduce=True,
               bin1_norm=True, fuse_size=3, classifier_size=1,
               align_corners=True, aux_channels=256, width=1.0, dropout=0.1,
               head_channels=512):
    super().__init__()
    self.align_corners = align_corners
    stem = [int(c * width) for c in stem]
    layers, inputs = [], 3
    for i, features in enumerate(stem):
      size = 7 if len(stem) == 1 else 3
      layers += [nn.Conv2d(inputs, features, size, 2 if i == 0 else 1,
                           size // 2, bias=False),
                 nn.BatchNorm2d(features), nn.ReLU()]
      inputs = features
    self.layer0 = nn.Sequential(*layers, nn.MaxPool2d(3, 2, 1))

    self.num_stages = num_stages
    before = 1
    for stage, (stride, dilation) in enumerate(
        ((1, 1), (2, 1), (1, 2), (1, 4))[:num_stages], start=1):
      inner = int(64 * 2**(stage - 1) * width)
      blocks = []
      for b in range(BLOCKS[depth][stage - 1]):
        d = before if b == 0 and contract_dilation else dilation
        blocks.append(Bottleneck(
            inputs, inner, stride if b == 0 else 1, d, b == 0, stride_in,
            avg_down and stage > 1))
        inputs = 4 * inner
      before = dilation
      setattr(self, f"layer{stage}", nn.Sequential(*blocks))

    self.ppm = Pyramid(inputs, bins, pool, reduce, bin1_norm, align_corners)
    head = int(head_channels * width)
    self.cls = nn.Sequential(
        nn.Conv2d(self.ppm.channels, head, fuse_size, padding=fuse_size // 2,
                  bias=False),
        nn.BatchNorm2d(head), nn.ReLU(), nn.Dropout2d(dropout),
        nn.Conv2d(head, num_classes, classifier_size,
                  padding=classifier_size // 2))
    if aux_channels:
      aux = int(aux_channels * width)
      self.aux = nn.Sequential(
          nn.Conv2d(inputs // 2, aux, 3, padding=1, bias=False),
          nn.BatchNorm2d(aux), nn.ReLU(), nn.Dropout2d(dropout),
          nn.Conv2d(aux, num_classes, 1))

  def forward(self, x):
    size = x.shape[2:]
    features = [self.layer0(x)]
    for stage in range(1, self.num_stages + 1):
      features.append(getattr(self, f"layer{stage}")(features[-1]))
    logits = self._to_image(self.cls(self.ppm(features[-1])), size)
    if not self.training:
      return logits
    return logits, self._to_image(self.aux(features[-2]), size)

  def _to_image(self, logits, size):
    return functional.interpolate(logits, size, mode="bilinear",
                                  align_corners=self.align_corners)
