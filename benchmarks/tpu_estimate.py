"""python -m benchmarks.tpu_estimate [--crop=473] [--batch=16] [--topology=...]

The training step of PSPNet as a textbook has it (textbook_pspnet.py) and ours,
both compiled for a TPU by the same libtpu in one process, without a TPU: the
compiler's estimated cycles, the work and the memory, and their ratios. No
figure is a measurement. At full size each takes minutes.
"""

import functools
import json
import pathlib
import sys

from benchmarks import machine
from psp_jax import compile_tpu, default_config, progress, tpu_chips
from psp_jax.errors import UserError

_SIDES = ("textbook", "ours")


def make_config(args):
  """The paper's recipe at the size that `args` names."""
  config = default_config.get_config()
  config.model.depth = args.depth
  config.model.width_multiplier = args.width
  config.model.num_classes = args.classes
  config.data.crop_size = args.crop
  config.global_batch_size = args.batch
  return compile_tpu.settle(config)


def lower_textbook(config, devices):
  """The textbook's step, jitted and sharded as ours."""
  import jax
  import numpy as np

  from benchmarks import textbook_pspnet as textbook
  from psp_jax import sharding

  model = textbook.TextbookPSPNet(
      config.model.num_classes, config.model.depth,
      config.model.width_multiplier)
  mesh = sharding.create_mesh(devices=devices)
  sharding.check_batch(config.global_batch_size, mesh)
  replicated = sharding.replicated(mesh)
  sharded = sharding.batch_sharding(mesh)
  steps = config.num_train_steps
  state = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated),
      jax.eval_shape(lambda: textbook.create_state(model, steps)))
  shape = (config.global_batch_size, *(config.data.crop_size,) * 2)
  batch = {
      "image": jax.ShapeDtypeStruct((*shape, 3), np.uint8, sharding=sharded),
      "label": jax.ShapeDtypeStruct(shape, np.uint8, sharding=sharded)}
  return jax.jit(
      functools.partial(textbook.train_step, model=model, num_steps=steps),
      in_shardings=(replicated, sharded), out_shardings=replicated,
      donate_argnums=0).lower(state, batch)


def figures(report: dict) -> dict:
  """Row -> value; what does not fit has its memory alone."""
  memory = report["memory"]
  rows = {"HBM a chip, GiB": (memory["needed_bytes"] or 0) / 2**30}
  if "cycles" not in report:
    return rows
  rows = {"estimated cycles, M": report["cycles"] / 1e6,
          "TFLOP a chip": report["flops"] / 1e12,
          "GB read and written a chip": report["bytes_accessed"] / 1e9,
          "temporaries a chip, GB": memory["temporary_bytes"] / 1e9,
          **rows,
          "collectives a chip, MB": report["collectives"]["bytes"] / 1e6}
  for group in ("by_layer", "by_kind", "by_phase"):
    rows |= {f"M cycles, {name}": cycles / 1e6
             for name, cycles in report[group].items() if name != "other"}
  return rows


def table(reports: dict) -> str:
  """Markdown, with ours over the textbook's where both are there."""
  rows = {side: figures(report) for side, report in reports.items()}
  both = len(rows) == 2
  lines = [f"| | {' | '.join(rows)} |" + (" ratio |" if both else ""),
           "|---" * (1 + len(rows) + both) + "|"]
  for name in next(iter(rows.values())):
    values = [rows[side].get(name) for side in rows]
    if not any(values):
      continue
    line = f"| {name} | " + " | ".join(
        "" if v is None else f"{v:.4g}" for v in values) + " |"
    if both:
      known = all(values)
      line += f" {values[1] / values[0]:.3f} |" if known else " |"
    lines.append(line)
  return "\n".join(lines)


def run(args) -> dict:
  """Side -> report, in the order of _SIDES."""
  topology = tpu_chips.parse_topology(args.topology)
  devices = compile_tpu.topology_devices(topology)
  config = make_config(args)
  reports = {}
  for side in _SIDES:
    if side not in args.only.split(","):
      continue
    progress.say(f"compiling {side}")
    lowered = (lower_textbook(config, devices) if side == "textbook"
               else compile_tpu.lower(config, devices, "train"))
    reports[side] = compile_tpu.measure(lowered, topology.chip)
    hlo = reports[side].pop("hlo", "")
    if args.hlo_dir:
      (args.hlo_dir / f"{side}.hlo").write_text(hlo)
  return reports


def _main() -> None:
  parser = machine.arguments(__doc__)
  parser.add_argument("--topology", default="v5e:2x4", metavar="NAME",
                      help="chips and their shape")
  parser.add_argument("--depth", type=int, default=50, metavar="N",
                      help="of the ResNet")
  parser.add_argument("--width", type=float, default=1.0, metavar="X",
                      help="of the backbone; less for a quick look")
  parser.add_argument("--crop", type=int, default=473, metavar="N",
                      help="pixels of a side")
  parser.add_argument("--batch", type=int, default=16, metavar="N",
                      help="of all chips")
  parser.add_argument("--classes", type=int, default=150, metavar="N",
                      help="of the dataset")
  parser.add_argument("--only", default=",".join(_SIDES), metavar="SIDE",
                      help="textbook, ours, or both")
  parser.add_argument("--json", type=pathlib.Path, metavar="FILE",
                      help="write the figures there")
  parser.add_argument("--hlo_dir", type=pathlib.Path, metavar="DIR",
                      help="keep the optimised HLO there")
  args = parser.parse_args()
  if not set(args.only.split(",")) <= set(_SIDES):
    parser.error(f"--only={args.only}: choose of {', '.join(_SIDES)}")
  if args.hlo_dir:
    args.hlo_dir.mkdir(parents=True, exist_ok=True)
  try:
    reports = run(args)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  if args.json:
    args.json.write_text(json.dumps(reports, indent=1) + "\n")
  print(f"PSPNet, ResNet-{args.depth}, crops of {args.crop}x{args.crop}, "
        f"batch {args.batch}, bfloat16, {args.topology}; estimates of the "
        "compiler")
  print(table(reports))


if __name__ == "__main__":
  _main()
