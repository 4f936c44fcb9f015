"""`compile_tpu`'s report, in words and figures that a person can act on."""

import importlib.metadata
import math

from psp_jax.progress import duration

_GIB = 2**30


def describe(config, topology, mode: str, image_size=None) -> dict:
  """What is compiled: the report's first fields."""
  c = config
  chips = topology.num_chips
  if mode == "train":
    size = c.data.crop_size, c.data.crop_width or c.data.crop_size
    batch = c.global_batch_size
    per_chip = batch * max(1, c.mesh.space) / chips
  else:
    size = image_size or (c.eval.window_size or c.data.crop_size,) * 2
    per_chip = c.eval.window_batch
    batch = per_chip * chips // max(1, c.mesh.space)
  return {
      "depth": c.model.depth, "crop": size[0], "width": size[1],
      "space": c.mesh.space, "accumulation_steps": c.accumulation_steps,
      "batch": batch,
      "per_chip": per_chip, "dtype": c.model.dtype,
      "classes": c.model.num_classes,
      "remat": c.model.remat,
      "topology": topology.name, "chips": chips,
      "jax": importlib.metadata.version("jax"),
      "libtpu": _version("libtpu")}


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "of TPU_LIBRARY_PATH"


def add_estimates(report: dict, topology) -> None:
  """Adds "estimate": time by the compiler's cycles, and two lower bounds.

  Seconds of a step by the chip's peak arithmetic and by its memory's
  bandwidth are bounds as good as the compiler's counts of both.
  """
  chip = topology.chip
  if "cycles" not in report:
    return
  estimate = {
      "clock_hz": chip.clock_hz,
      "seconds_at_peak_flops": report["flops"] / chip.peak_flops,
      "seconds_at_peak_bandwidth": (
          report["bytes_accessed"] / chip.hbm_bytes_per_second)}
  if chip.clock_hz:
    seconds = report["cycles"] / chip.clock_hz
    estimate |= {"seconds": seconds, "images_per_second":
                 report["batch"] / seconds if seconds else None}
  report["estimate"] = estimate


def text(report: dict) -> str:
  """The report for a terminal."""
  r = report
  what = {"train": "train step, crops", "eval": "evaluation, windows"}
  many = {"train": "crops", "eval": "windows"}[r["mode"]]
  each = "a chip" if r["space"] == 1 else f"on each {r['space']} chips"
  lines = [
      f"compiled   PSPNet, ResNet-{r['depth']}, {what[r['mode']]} of "
      f"{r['crop']}x{r['width']}, {r['classes']} classes, {r['dtype']}",
      f"for        {r['topology']}: {r['chips']} chip(s), {r['batch']} {many}, "
      f"{r['per_chip']:g} {each}",
      f"by         jax {r['jax']}, libtpu {r['libtpu']}, in "
      f"{duration(r['compile_seconds'])}",
      *_memory(r)]
  if "cycles" in r:
    lines += [*_work(r), *_shares(r), *_collectives(r), *_replicated(r),
              *_padding(r), *_top(r)]
  return "\n".join([*lines, *_search(r)])


def _memory(r) -> list[str]:
  m = r["memory"]
  needed, usable = m["needed_bytes"], m["usable_bytes"]
  if m["fits"]:
    parts = ", ".join(f"{name} {m[field] / _GIB:.2f}" for name, field in (
        ("temporaries", "temporary_bytes"), ("arguments", "argument_bytes"),
        ("outputs", "output_bytes"), ("code", "code_bytes")))
    return [
        f"memory     fits: {needed / _GIB:.2f} GiB a chip, "
        f"{(usable - needed) / _GIB:.2f} of {usable / _GIB:.2f} left",
        f"           {parts}; {m['aliased_bytes'] / _GIB:.2f} of the arguments "
        "become outputs"]
  if not needed:
    return ["memory     DOES NOT FIT: the compiler ran out of it, and does "
            "not say by how much", *_remedies(r)]
  return [
      f"memory     DOES NOT FIT: {needed / _GIB:.2f} GiB a chip of "
      f"{usable / _GIB:.2f}, {(needed - usable) / _GIB:.2f} too many",
      *_remedies(r)]


def _remedies(r) -> list[str]:
  """What would fit, if memory went with the number of pixels."""
  field = ("--config.global_batch_size" if r["mode"] == "train"
           else "--config.eval.window_batch")
  per_step = r["batch"] / r["per_chip"] if r["mode"] == "train" else 1
  share = r["memory"]["usable_bytes"] / (r["memory"]["needed_bytes"]
                                         or 2 * r["memory"]["usable_bytes"])
  said = []
  per_chip = math.floor(r["per_chip"] * share)
  if per_chip:
    said.append(f"{field}={round(per_chip * per_step)} ({per_chip} a chip)")
  if r["mode"] == "train" and not r["remat"]:
    said.append("--config.model.remat=True (activations computed again)")
  if r["mode"] == "train" and per_chip and r["accumulation_steps"] == 1:
    said.append(f"--config.accumulation_steps={math.ceil(1 / share)} (parts of "
                "a batch in turn)")
  if r["space"] == 1 and r["chips"] > 1:
    said.append("--config.mesh.space=2 (chips share the rows of an image)")
  crop = max(8 * math.floor((r["crop"] * share**0.5 - 1) / 8) + 1, 65)
  where = "data.crop_size" if r["mode"] == "train" else "eval.window_size"
  if crop < r["crop"]:
    said.append(f"--config.{where}={crop}")
  return ["           would fit, by proportion (--search compiles to find "
          "out):", *(f"             {each}" for each in said)]


def _work(r) -> list[str]:
  estimate = r["estimate"]
  lines = [
      f"work       {r['flops'] / 1e12:.4g} TFLOP and "
      f"{_size(r['bytes_accessed'])} read and written a chip: at the chip's "
      f"peak {1e3 * estimate['seconds_at_peak_flops']:.3g} ms and "
      f"{1e3 * estimate['seconds_at_peak_bandwidth']:.3g} ms"]
  said = f"{r['cycles'] / 1e6:.2f} M cycles"
  if estimate.get("seconds"):
    said += (f", {1e3 * estimate['seconds']:.3g} ms at "
             f"{estimate['clock_hz'] / 1e9:.2f} GHz, "
             f"{estimate['images_per_second']:.0f} "
             f"{'images' if r['mode'] == 'train' else 'windows'}/s on "
             f"{r['chips']} chip(s)")
  lines.append(f"estimate   {said}")
  left_out = ", ".join(f"{n} {name}" for name, n in r["unestimated"].items())
  lines.append("           by the compiler's model, not measured"
               + (f"; it gives none for {left_out}" if left_out else ""))
  if r["loops_of_unknown_length"]:
    lines.append(f"           {r['loops_of_unknown_length']} loop(s) of "
                 "unknown length count once")
  copies = r["async_copies"]
  lines.append(f"           nor for {copies['count']:,} copies of "
               f"{_size(copies['bytes'])} beside the arithmetic")
  return lines


def _shares(r) -> list[str]:
  """Layers by kinds; kinds that nothing is of are left out."""
  kinds = [kind for kind, cycles in r["by_kind"].items() if cycles]
  widths = [max(len(kind), 6) for kind in kinds]

  def row(name, cycles, parts):
    said = [f"{part / 1e6:{w}.2f}" if part else " " * w
            for part, w in zip(parts, widths)]
    return (f"  {name:<10} {cycles / 1e6:8.2f} {cycles / r['cycles']:6.1%}  "
            + "  ".join(said)).rstrip()

  lines = ["", "M cycles, estimated",
           "  layer         total  share  "
           + "  ".join(f"{k:>{w}}" for k, w in zip(kinds, widths))]
  for layer, parts in r["by_layer_and_kind"].items():
    if r["by_layer"][layer]:
      lines.append(row(layer, r["by_layer"][layer],
                       [parts[kind] for kind in kinds]))
  lines.append(row("all", r["cycles"], [r["by_kind"][kind] for kind in kinds]))
  phases = ", ".join(f"{name} {cycles / 1e6:.2f}"
                     for name, cycles in r["by_phase"].items() if cycles)
  return [*lines, f"  {phases}"]


def _collectives(r) -> list[str]:
  c = r["collectives"]
  if not c["by_kind"]:
    return ["", "collectives    none"]
  lines = ["", f"collectives    {_size(c['bytes'])} a chip"]
  lines += [f"  {kind:<20} {each['count']:>5}  {_size(each['bytes'])}"
            for kind, each in c["by_kind"].items()]
  lines += [f"  largest: {each['kind']} of {each['tensors']} tensor(s), "
            f"{_size(each['bytes'])}  {each['op_name']}"
            for each in c["largest"][:1]]
  if c["activations"]:
    lines.append("  WARNING: activations pass between chips"
                 if r["space"] == 1 else
                 "  borders of rows, and logits, pass between chips")
  lines += [f"  {_size(each['bytes']):>9}  {each['name']}  {each['op_name']}"
            for each in c["activations"][:5]]
  return lines


def _replicated(r) -> list[str]:
  found = r["replicated"]
  if not found["count"]:
    return []
  lines = ["", f"on every chip in full   {found['count']} arguments of 1 MiB "
           f"or more, {_size(found['bytes'])}"]
  return lines + [f"  {_size(each['bytes']):>9}  {each['shape']}  "
                  f"{each['name']}" for each in found["largest"]]


def _padding(r) -> list[str]:
  p = r["padding"]
  if not p["logical_bytes"]:
    return []
  lines = ["", "padding by tiled layouts   "
           f"{p['padded_bytes'] / p['logical_bytes'] - 1:.1%} of all results"]
  return lines + [
      f"  {_size(each['padded_bytes'] - each['bytes']):>9} on "
      f"{_size(each['bytes'])}  {each['name']} {each['shape']}  "
      f"{each['op_name']}" for each in p["worst"]]


def _top(r) -> list[str]:
  if not r["top"]:
    return []
  lines = ["", f"the {len(r['top'])} most expensive", "  M cycles  share"]
  for each in r["top"]:
    lines.append(
        f"  {each['cycles'] / 1e6:>8.3f} {each['cycles'] / r['cycles']:>6.1%}  "
        f"{each['kind']}, {each['layer']} {each['phase']}: {each['name']} "
        f"{each['result']}")
    where = "  ".join(filter(None, (each["op_name"], each["source"])))
    if where:
      lines.append(f"{'':>19}{where}")
  return lines


def _search(r) -> list[str]:
  if "search" not in r:
    return []
  lines = ["", "search for the largest batch that fits"]
  for remat in sorted({each["remat"] for each in r["search"]}):
    tried = [each for each in r["search"] if each["remat"] == remat]
    best = max((each for each in tried if each["fits"]), default=None,
               key=lambda each: each["per_chip"])
    lines.append(f"  remat={remat}: " + (
        f"{best['per_chip']} a chip, {best['needed_bytes'] / _GIB:.2f} GiB"
        if best else "not even one a chip"))
    lines += [f"    {each['per_chip']:>5} a chip  "
              + (f"{each['needed_bytes'] / _GIB:7.2f} GiB"
                 if each["needed_bytes"] else "      ? GiB")
              + ("" if each["fits"] else "  does not fit")
              for each in sorted(tried, key=lambda e: e["per_chip"])]
  return lines


def _size(count: int) -> str:
  for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
    if count >= factor:
      return f"{count / factor:.1f} {unit}"
  return f"{count} B"
