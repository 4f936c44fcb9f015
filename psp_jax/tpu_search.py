"""The largest batch that fits, by as few compilations as will do."""

from psp_jax import progress


def search(first: dict, per_chip: int, compile_at, most: int = 4096) -> list:
  """Compilations that find the largest number of images a chip that fits.

  Memory is nearly linear in it: every guess is where the line through the
  last two (or through nothing) meets the limit, between the largest that fits
  and the smallest that does not.

  Args:
    first: `compile_tpu.measure`'s answer.
    per_chip: of this many images a chip.
    compile_at: images a chip -> `measure`'s answer.
    most: never more than this.

  Returns:
    [{"per_chip", "fits", "needed_bytes"}] in the order of the attempts.
  """
  attempts = []

  def note(n, memory):
    needed = memory["needed_bytes"]
    attempts.append({"per_chip": n, "fits": memory["fits"],
                     "needed_bytes": needed})
    progress.say(f"{n} a chip: " + (f"{needed / 2**30:.2f} GiB, " if needed
                                    else "")
                 + ("fits" if memory["fits"] else "does not fit"))

  note(per_chip, first["memory"])
  while True:
    low = max((a["per_chip"] for a in attempts if a["fits"]), default=0)
    high = min((a["per_chip"] for a in attempts if not a["fits"]),
               default=most + 1)
    if high - low <= 1:
      return attempts
    guess = low * 2 if high > most else (low + high) // 2
    if len(attempts) < 4:
      guess = _guess(attempts, first["memory"]["usable_bytes"]) or guess
    n = min(max(guess, low + 1), high - 1)
    progress.say(f"compiling for {n} a chip")
    note(n, compile_at(n)["memory"])


def _guess(attempts, limit: int) -> int | None:
  known = [a for a in attempts if a["needed_bytes"]][-2:]
  if not known:
    return None
  base = 0, 0
  if len(known) == 2:
    base = known[0]["per_chip"], known[0]["needed_bytes"]
  n, needed = known[-1]["per_chip"], known[-1]["needed_bytes"]
  slope = (needed - base[1]) / (n - base[0])
  return int(n + (limit - needed) / slope) if slope > 0 else None
