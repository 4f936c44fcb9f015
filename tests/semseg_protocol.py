"""The test programs of semseg and mmsegmentation, said again in numpy and cv2.

From the public description of semseg's tool/test.py and util/util.py and of
mmsegmentation's slide_inference and aug_test: cv2 for resizing, loops for
windows, float64 sums on the host. `network` maps a normalised (h, w, 3) array
to logits (h, w, classes), one image at a time.
"""

import cv2
import numpy as np

MEAN = np.array([0.485, 0.456, 0.406]) * 255
STD = np.array([0.229, 0.224, 0.225]) * 255


def softmax(logits):
  e = logits - logits.max(-1, keepdims=True)
  np.exp(e, out=e)  # In place: 150 classes of 473 x 473 are 134 MB.
  e /= e.sum(-1, keepdims=True)
  return e


def resize(array, height, width):
  # OpenCV 5 takes no 150 channels at once; semseg's OpenCV did.
  parts = [cv2.resize(np.ascontiguousarray(array[..., i:i + 64]),
                      (width, height), interpolation=cv2.INTER_LINEAR)
           for i in range(0, array.shape[-1], 64)]
  return np.concatenate(
      [p.reshape(height, width, -1) for p in parts], axis=-1)


def semseg_window(network, crop, flip):
  crop = (crop - MEAN) / STD
  answer = softmax(network(crop))
  if flip:
    answer += softmax(network(crop[:, ::-1]))[:, ::-1]
    answer /= 2
  return answer


def semseg_probabilities(network, image, scales, base_size, window, flip,
                         score_window=semseg_window):
  """(H, W, classes) of an RGB image; `window=None` is the whole image."""
  return sum(semseg_scale(network, image, round(scale * base_size), window,
                          flip, score_window) for scale in scales) / len(scales)


def semseg_scale(network, image, long_size, window, flip,
                 score_window=semseg_window):
  """(H, W, classes) float64 from the image with its long side so resized."""
  h, w = image.shape[:2]
  new_h = new_w = long_size
  if h > w:
    new_w = round(long_size / float(h) * w)
  else:
    new_h = round(long_size / float(w) * h)
  scaled = resize(image.astype(np.float32), new_h, new_w)
  crop_h, crop_w = window or new_h, window or new_w
  pad_h, pad_w = max(crop_h - new_h, 0), max(crop_w - new_w, 0)
  top, left = int(pad_h / 2), int(pad_w / 2)
  canvas = cv2.copyMakeBorder(
      scaled, top, pad_h - top, left, pad_w - left, cv2.BORDER_CONSTANT,
      value=MEAN.tolist())
  size_h, size_w = canvas.shape[:2]
  stride_h, stride_w = (int(np.ceil(c * 2 / 3)) for c in (crop_h, crop_w))
  grid_h = int(np.ceil((size_h - crop_h) / stride_h) + 1)
  grid_w = int(np.ceil((size_w - crop_w) / stride_w) + 1)
  summed, count = None, np.zeros((size_h, size_w, 1))
  for i in range(grid_h):
    for j in range(grid_w):
      end_h = min(i * stride_h + crop_h, size_h)
      end_w = min(j * stride_w + crop_w, size_w)
      at = np.s_[end_h - crop_h:end_h, end_w - crop_w:end_w]
      answer = score_window(network, canvas[at], flip)
      if summed is None:
        summed = np.zeros((size_h, size_w, answer.shape[-1]))
      summed[at] += answer
      count[at] += 1
  summed /= count
  return resize(summed[top:top + new_h, left:left + new_w], h, w)


def mmseg_probabilities(network, image, scales, short_size, window, flip):
  """(H, W, classes) of an RGB image; `window=None` is the whole image.

  The image is resized in floating point (mmcv's pipeline rounds to 8 bits).
  """
  h, w = image.shape[:2]
  views = []
  for scale in scales:
    factor = scale * short_size / min(h, w)
    new_h, new_w = int(h * factor + 0.5), int(w * factor + 0.5)
    scaled = (resize(image.astype(np.float32), new_h, new_w) - MEAN) / STD
    for mirror in (False, True) if flip else (False,):
      view = scaled[:, ::-1] if mirror else scaled
      logits = mmseg_slide(network, view, window or max(new_h, new_w))
      view = softmax(resize(logits, h, w))
      views.append(view[:, ::-1] if mirror else view)
  return np.mean(views, 0)


def mmseg_slide(network, image, window):
  """Mean logits over windows that are as large as the image allows."""
  h, w = image.shape[:2]
  stride = int(np.ceil(window * 2 / 3))  # 513 for 769, as published.
  total, count = 0, np.zeros((h, w, 1))
  for i in range(max(h - window + stride - 1, 0) // stride + 1):
    for j in range(max(w - window + stride - 1, 0) // stride + 1):
      y2, x2 = min(i * stride + window, h), min(j * stride + window, w)
      y1, x1 = max(y2 - window, 0), max(x2 - window, 0)
      logits = network(image[y1:y2, x1:x2])
      padding = (y1, h - y2), (x1, w - x2), (0, 0)
      total = total + np.pad(logits.astype(np.float64), padding)
      count[y1:y2, x1:x2] += 1
  return total / count


def intersection_and_union(prediction, target, classes):
  """Three histograms of one image, 255 in the target left out."""
  prediction = np.where(target == 255, 255, prediction)

  def histogram(ids):
    return np.histogram(ids, bins=np.arange(classes + 1))[0]

  intersection = histogram(prediction[prediction == target])
  area = histogram(target)
  return intersection, histogram(prediction) + area - intersection, area


def semseg_scores(predictions, targets, classes):
  """(mIoU, mAcc, allAcc): absent classes count as 0 in the means."""
  intersection, union, area = (sum(h) for h in zip(*(
      intersection_and_union(p, t, classes)
      for p, t in zip(predictions, targets, strict=True)), strict=True))
  return (np.mean(intersection / (union + 1e-10)),
          np.mean(intersection / (area + 1e-10)),
          intersection.sum() / (area.sum() + 1e-10))
