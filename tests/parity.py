"""What the comparisons with PyTorch share: networks, weights, photographs.

Weights are drawn from their names, so that both sides have them without a
file. BatchNorm statistics are random too: fresh ones would hide mistakes.

`python tests/parity.py` computes the reference's answers anew (needs PyTorch)
and writes tests/golden/parity.npz, by which the suite tests parity where
PyTorch is absent.
"""

import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden" / "parity.npz"
CLASSES = 11
GRID = 8  # Every eighth logit is kept, and every pixel's answer.
# case -> (fields of config.model, options of the reference, image sizes)
DEEP, V1C, PLAIN = (64, 64, 128), (32, 32, 64), (64,)
CASES = {
    "semseg_r50": ({}, {}, [(97, 97), (90, 123)]),
    "semseg_r101": ({"depth": 101}, {"depth": 101}, [(73, 105)]),
    "7x7_contracted_r50": (
        {"stem": "7x7", "contract_dilation": True},
        {"stem": PLAIN, "contract_dilation": True}, [(96, 80)]),
    "7x7_contracted_r101": (
        {"depth": 101, "stem": "7x7", "contract_dilation": True},
        {"depth": 101, "stem": PLAIN, "contract_dilation": True}, [(64, 64)]),
    "mmseg_r50": (
        {"stem": "32-32-64", "contract_dilation": True,
         "align_corners": False},
        {"stem": V1C, "contract_dilation": True, "align_corners": False},
        [(80, 101)]),
    "1x1_max_no_reduction_r50": (
        {"stride_in": "1x1", "pyramid.pool": "max", "pyramid.reduce": False},
        {"stride_in": "1x1", "pool": "max", "reduce": False}, [(65, 81)]),
    "d_r50": ({"stem": "32-32-64", "avg_down": True},
              {"stem": V1C, "avg_down": True}, [(75, 82)]),
    "smp_r50": (
        {"stem": "7x7", "num_stages": 2, "auxiliary": False,
         "pyramid.bin1_norm": False, "pyramid.fuse_size": 1,
         "classifier_size": 3, "head_channels": 512},
        {"stem": PLAIN, "num_stages": 2, "aux_channels": 0,
         "bin1_norm": False, "fuse_size": 1, "classifier_size": 3},
        [(64, 96)]),
}
# The train step: R50, and for a trajectory of many steps a small one.
TRAIN_SIZE, TRAIN_BATCH = 49, 2
STEPS, STEPS_BATCH = 20, 6
NARROW = {"depth": 14, "width_multiplier": 0.25}
PROJECTIONS = 3


def value_of(name: str, shape) -> np.ndarray:
  """The float32 array of that PyTorch name and shape."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  if len(shape) == 4:
    return rng.normal(0, (2 / np.prod(shape[1:]))**0.5, shape).astype("f4")
  if name.endswith(("running_var", "weight")):
    # A small last gain keeps a hundred residual blocks from growing.
    small = 0.3 if name.endswith("bn3.weight") else 1.0
    return (small * rng.uniform(0.7, 1.4, shape)).astype("f4")
  return rng.normal(0, 0.3, shape).astype("f4")


def tensors_of(fields, num_classes: int = CLASSES) -> dict[str, np.ndarray]:
  """The weights of a network under semseg's names."""
  from psp_jax.models import create_model
  from psp_jax.pretrained import names, networks
  config = networks.config_of({**fields, "num_classes": num_classes})
  out = {}
  for path, shape in networks._shapes(create_model(config)).items():
    if path[-1] == "kernel":
      shape = (shape[3], shape[2], *shape[:2])
    name = names.source_name("semseg", path, (1, 2, 3, 6))
    out[name] = value_of(name, shape)
  return out


def photo(*shape, seed=1) -> np.ndarray:
  """(N, H, W, 3) float32, smooth and noisy."""
  rng = np.random.default_rng(seed)
  n, h, w, c = shape
  y, x = np.mgrid[:h, :w] / 40
  waves = np.sin(rng.uniform(0, 6, (n, 1, 1, c)) + x[..., None] * 2
                 + y[..., None] * rng.uniform(1, 4, (n, 1, 1, c)))
  return (waves + rng.normal(0, 0.5, shape)).astype("f4")


def labels_of(n, h, w, seed=2) -> np.ndarray:
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, CLASSES, (n, -(-h // 8), -(-w // 8)))
  label = coarse.repeat(8, 1).repeat(8, 2)[:, :h, :w].astype(np.uint8)
  label[rng.random(label.shape) < 0.1] = 255
  return label


def projections(name: str, array) -> np.ndarray:
  """The norm and random projections that stand for an array."""
  rng = np.random.default_rng(zlib.crc32(name.encode()) + 1)
  flat = np.asarray(array, np.float64).ravel()
  return np.array([np.linalg.norm(flat), *(
      flat @ rng.choice([-1.0, 1.0], flat.size) for _ in range(PROJECTIONS))])


# ---- The reference's answers.


def reference(options, tensors, dtype=None):
  import torch
  from torch_pspnet import PSPNet
  model = PSPNet(**{"num_classes": CLASSES, **options})
  state = {name: torch.from_numpy(value) for name, value in tensors.items()}
  missing, left = model.load_state_dict(state, strict=False)
  assert not left and all("num_batches" in m for m in missing), (missing, left)
  return model.to(dtype or torch.float32)


def reference_logits(case, size) -> np.ndarray:
  """(H, W, C) of one photograph."""
  import torch
  fields, options, _ = CASES[case]
  model = reference(options, tensors_of(fields)).eval()
  with torch.no_grad():
    image = torch.from_numpy(photo(1, *size, 3)).permute(0, 3, 1, 2)
    return model(image)[0].permute(1, 2, 0).numpy()


def torch_loss(model, images, labels, dtype):
  """semseg's loss: both means over the valid pixels, the second times 0.4."""
  import torch
  from torch.nn import functional
  x = torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype)
  y = torch.from_numpy(labels.astype(np.int64))
  main, aux = (functional.cross_entropy(z, y, ignore_index=255)
               for z in model(x))
  return main + 0.4 * aux


def reference_gradients():
  """The loss and {name: gradient} of R50 at batch 2, in float64."""
  import torch
  model = reference({"dropout": 0.0}, tensors_of({}), torch.float64).train()
  shape = (TRAIN_BATCH, TRAIN_SIZE, TRAIN_SIZE)
  loss = torch_loss(model, photo(*shape, 3), labels_of(*shape), torch.float64)
  loss.backward()
  return loss.item(), {name: p.grad.numpy()
                       for name, p in model.named_parameters()}


def training_batch(step):
  """uint8 images and labels of one step of the trajectory."""
  shape = (STEPS_BATCH, TRAIN_SIZE, TRAIN_SIZE)
  images = photo(*shape, 3, seed=10 + step) * 50 + 120
  return (images.clip(0, 255).astype(np.uint8),
          labels_of(*shape, seed=50 + step))


def normalised(images):
  mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
  return (images - np.float64(mean)) / np.float64(std)


def reference_trajectory():
  """20 steps of semseg's recipe: losses, and what the network became."""
  import torch
  options = {"dropout": 0.0, "depth": 14, "width": 0.25}
  model = reference(
      options, tensors_of(NARROW), torch.float64).train()
  backbone = [p for n, p in model.named_parameters() if n.startswith("layer")]
  heads = [p for n, p in model.named_parameters() if not n.startswith("layer")]
  optimizer = torch.optim.SGD(
      [{"params": backbone, "lr": 0.01}, {"params": heads, "lr": 0.1}],
      lr=0.01, momentum=0.9, weight_decay=1e-4)
  losses = []
  for step in range(STEPS):
    lr = 0.01 * (1 - step / STEPS)**0.9
    for group, factor in zip(optimizer.param_groups, (1, 10), strict=True):
      group["lr"] = lr * factor
    images, labels = training_batch(step)
    loss = torch_loss(model, normalised(images), labels, torch.float64)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  state = {name: value.numpy() for name, value in model.state_dict().items()
           if not name.endswith("num_batches_tracked")}
  return losses, state


def main():
  arrays = {}
  for case, (_, _, sizes) in CASES.items():
    for size in sizes:
      logits = reference_logits(case, size)
      arrays[f"{case}/{size}/logits"] = logits[::GRID, ::GRID]
      arrays[f"{case}/{size}/answer"] = logits.argmax(-1).astype(np.uint8)
      arrays[f"{case}/{size}/largest"] = np.abs(logits).max()
  loss, gradients = reference_gradients()
  arrays["gradients/loss"] = np.array(loss)
  for name, gradient in gradients.items():
    arrays[f"gradients/{name}"] = projections(name, gradient)
  losses, state = reference_trajectory()
  arrays["trajectory/losses"] = np.array(losses)
  for name, value in state.items():
    arrays[f"trajectory/{name}"] = projections(name, value)
  # One array instead of hundreds: an .npz pays for each.
  for group in ("gradients", "trajectory"):
    names = sorted(n for n in arrays if n.startswith(f"{group}/")
                   and arrays[n].shape == (1 + PROJECTIONS,))
    arrays[f"{group}_names"] = np.array([n.split("/")[1] for n in names])
    arrays[f"{group}_projections"] = np.stack([arrays.pop(n) for n in names])
  GOLDEN.parent.mkdir(exist_ok=True)
  np.savez_compressed(GOLDEN, **arrays)
  print(f"{GOLDEN}: {GOLDEN.stat().st_size:,} bytes")


if __name__ == "__main__":
  main()
