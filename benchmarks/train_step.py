"""python -m benchmarks.train_step [--depth=50] [--crop=233] [--batch=2]

Seconds of a training step and of inference on the CPU, fp32, beside PyTorch:
the textbook PSPNet of tests/torch_pspnet.py with semseg's loss and SGD, as
NCHW and as channels_last. Every contender is a process of its own on the same
cores; all stay and take turns, so that whatever else the machine does meets
them alike. Prints medians, and ratios within rounds against the layout that is
quicker by its median; CPU seconds leave out what others take of a core. Ours
starts from uint8 and normalises, as in training; PyTorch is given normalised
float tensors. Inference is the logits at the images' resolution in evaluation
mode, without the auxiliary head.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

from benchmarks import machine

TESTS = pathlib.Path(__file__).parent.parent / "tests"
CLASSES, BASE_LR, STEPS = 150, 0.01, 10_000
KINDS = ("psp_jax", "PyTorch, NCHW", "PyTorch, channels_last")
WORK = ("train step", "inference")


def make_batch(args):
  """uint8 images and labels, a tenth of them ignored."""
  rng = np.random.default_rng(0)
  shape = args.batch, args.crop, args.crop
  label = rng.integers(0, CLASSES, shape).astype(np.uint8)
  label[rng.random(shape) < 0.1] = 255
  return {"image": rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
          "label": label}


def ours(args):
  """{work: a function that does it once and waits}."""
  import jax
  import jax.numpy as jnp

  from psp_jax import default_config, train_step
  from psp_jax.data.normalize import normalize
  from psp_jax.models import create_model, prepack
  config = default_config.get_config()
  config.model.depth, config.model.num_classes = args.depth, CLASSES
  config.num_train_steps, config.optimizer.base_lr = STEPS, BASE_LR
  config.global_batch_size = args.batch
  model = create_model(config)
  state = train_step.create_train_state(model, config)
  variables = jax.tree.map(jnp.copy, {"params": state.params,
                                      "batch_stats": state.batch_stats})
  batch = jax.device_put(make_batch(args))
  step = jax.jit(functools.partial(
      train_step.train_step, model=model, config=config), donate_argnums=0)
  infer = jax.jit(lambda v, x: model.apply(v, normalize(x)))
  variables |= jax.jit(functools.partial(
      prepack, model, shape=batch["image"].shape))(variables)

  def train():
    nonlocal state
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))

  return {"train step": train, "inference": lambda: jax.block_until_ready(
      infer(variables, batch["image"]))}


def pytorch(args, channels_last: bool):
  """The same of PyTorch."""
  sys.path.insert(0, str(TESTS))
  import torch
  from torch.nn import functional
  from torch_pspnet import PSPNet
  torch.set_num_threads(args.threads)
  layout = torch.channels_last if channels_last else torch.contiguous_format
  torch.manual_seed(0)
  model = PSPNet(CLASSES, args.depth).to(memory_format=layout)
  backbone = [p for n, p in model.named_parameters() if n.startswith("layer")]
  heads = [p for n, p in model.named_parameters() if not n.startswith("layer")]
  optimizer = torch.optim.SGD(
      [{"params": backbone, "lr": BASE_LR},
       {"params": heads, "lr": 10 * BASE_LR}],
      momentum=0.9, weight_decay=1e-4)
  batch = make_batch(args)
  images = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)
  mean, std = (torch.tensor(v)[:, None, None] for v in (
      [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
  images = ((images - mean) / std).contiguous(memory_format=layout)
  labels = torch.from_numpy(batch["label"]).long()

  def train():
    model.train()
    logits, aux = model(images)
    loss = (functional.cross_entropy(logits, labels, ignore_index=255)
            + 0.4 * functional.cross_entropy(aux, labels, ignore_index=255))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  @torch.inference_mode()
  def infer():
    model.eval()
    model(images)

  return {"train step": train, "inference": infer}


# ---- Processes that take turns.


def keep_freed_memory() -> None:
  """glibc returns nothing to the system: no page fault after the first run."""
  mallopt = ctypes.CDLL(None).mallopt
  arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h's M_...
  mallopt(arena_max, 1)
  mallopt(mmap_max, 0)
  mallopt(trim_threshold, -1)


def serve(args) -> None:
  """Answers each work named on stdin with its seconds, and the CPU's."""
  if args.keep_freed:
    keep_freed_memory()
  work = (ours(args) if args.serve == KINDS[0]
          else pytorch(args, args.serve == KINDS[2]))
  first = {}
  for name, run in work.items():
    began = time.perf_counter()
    run()  # Compiles.
    first[name] = time.perf_counter() - began
    run()
  print(json.dumps(first), flush=True)
  for line in sys.stdin:
    began, cpu = time.perf_counter(), time.process_time()
    work[line.strip()]()
    print(json.dumps([time.perf_counter() - began, time.process_time() - cpu]),
          flush=True)


class Server:
  """One contender's process."""

  def __init__(self, kind, args):
    command = [sys.executable, "-m", "benchmarks.train_step",
               f"--serve={kind}"]
    for name in ("depth", "crop", "batch", "threads"):
      command.append(f"--{name}={getattr(args, name)}")
    command += ["--keep_freed"] * args.keep_freed
    self._process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    self.first = self._answer()

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f"a contender ended with {self._process.wait()}")
    return json.loads(line)

  def seconds(self, name: str) -> list[float]:
    print(name, file=self._process.stdin, flush=True)
    return self._answer()

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


# ---- Rounds.


def measure(args):
  """[seconds, CPU seconds] of each (kind, work) by round; ours compiling."""
  found = {(kind, work): [] for kind in KINDS for work in WORK}
  with contextlib.ExitStack() as stack:
    servers = {}
    for kind in KINDS:
      servers[kind] = Server(kind, args)
      stack.callback(servers[kind].close)
    for _ in range(args.rounds):
      for work in WORK:
        for kind, server in servers.items():
          found[kind, work].append(server.seconds(work))
        print(work, *(f"{found[kind, work][-1][0]:.2f}" for kind in KINDS),
              file=sys.stderr, flush=True)
    return found, servers[KINDS[0]].first


def report(found, first, args) -> None:
  where = machine.describe(args.threads, ("jax", "jaxlib", "flax", "torch"))
  print(f"\n{where}\nPSPNet{args.depth}, {args.crop}x{args.crop}, batch "
        f"{args.batch}{', keeping freed memory' * args.keep_freed}; medians "
        f"of {args.rounds} rounds; first train step {first[WORK[0]]:.0f} s, "
        f"first inference {first[WORK[1]]:.0f} s\n\n"
        "| | seconds | best PyTorch / this | CPU seconds | best PyTorch / "
        "this |\n|---|---|---|---|---|")
  for work in WORK:
    times = {kind: np.array(found[kind, work]).T for kind in KINDS}
    for kind in KINDS:
      cells = []
      for which in (0, 1):
        best = min(KINDS[1:], key=lambda k, i=which: np.median(times[k][i]))
        cells += [spread(times[kind][which]),
                  spread(times[best][which] / times[kind][which])]
      print(f"| {work}, {kind} | {' | '.join(cells)} |")


def spread(values) -> str:
  return f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
  cores = sorted(os.sched_getaffinity(0))
  parser = machine.arguments(__doc__)
  parser.add_argument("--depth", type=int, default=50, choices=(50, 101),
                      help="of the ResNet")
  parser.add_argument("--crop", type=int, default=233, metavar="N",
                      help="pixels of a side")
  parser.add_argument("--batch", type=int, default=2, metavar="N",
                      help="crops a step")
  parser.add_argument("--rounds", type=int, default=9, metavar="N",
                      help="turns of each")
  parser.add_argument("--threads", type=int, default=len(cores), metavar="N",
                      help="cores, of this machine's first")
  parser.add_argument("--keep_freed", action="store_true", help="freed memory "
                      "stays with the process, for all contenders")
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.serve:
    serve(args)
    return
  if not 1 <= args.threads <= len(cores):
    parser.error(f"--threads={args.threads}: 1 to {len(cores)} here")
  os.sched_setaffinity(0, cores[:args.threads])  # And the contenders.
  os.environ["JAX_PLATFORMS"] = "cpu"
  report(*measure(args), args)


if __name__ == "__main__":
  main()
