"""The network under a protocol, on this process's devices: what scoring and
predicting share.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from psp_jax import kept_programs, sharding, sliding_window, stitching
from psp_jax.models import prepack


def local_mesh(config, devices, total: int) -> Mesh:
  """Of a process's own of all devices: rows are split as far as they reach."""
  space = config.mesh.space
  if space < 1:
    space = total // max(1, config.mesh.data)
  return sharding.create_mesh(
      -1, math.gcd(max(1, space), len(devices)), devices)


def compiled_forward(model, protocol: sliding_window.Protocol, mesh: Mesh,
                     height: int):
  """`stitching.make_forward` under jit, windows sharded as batches are.

  (variables, windows) -> answers; rows beyond `height` are filler.
  """
  whole = stitching.make_forward(model, protocol.flip, protocol.average)

  def forward(variables, windows):
    return _pad(whole(variables, windows[:, :height]), windows.shape[1])

  sharded = sharding.batch_sharding(mesh)
  return jax.jit(forward, out_shardings=sharded,
                 in_shardings=(sharding.replicated(mesh), sharded))


def _pad(array, rows: int):
  return jnp.pad(array, [(0, 0), (0, rows - array.shape[1]), (0, 0), (0, 0)])


class Inference:
  """Compiled once, run as often as wanted.

  Attributes:
    num_classes: of the model.
    window_batch: windows in one call of the network, over all devices.
  """

  def __init__(self, model, config, protocol: sliding_window.Protocol):
    self.num_classes = model.num_classes
    mesh = local_mesh(config, jax.local_devices(), jax.device_count())
    self.window_batch = config.eval.window_batch * mesh.shape["data"]
    self._replicated = sharding.replicated(mesh)
    sharded = sharding.batch_sharding(mesh)
    self._prepack = lambda variables: {}
    if mesh.devices.flat[0].platform == "cpu":
      side = protocol.window or config.data.crop_size
      shape = (self.window_batch * (1 + protocol.flip), side, side, 3)
      packs = jax.jit(functools.partial(prepack, model, shape=shape),
                      out_shardings=self._replicated)
      self._prepack = kept_programs.kept(
          "prepack", packs, config, model, shape)
    # Cutting and stitching run on the first device: a copy of every canvas
    # on every device would take as many times the memory.
    first = jax.local_devices()[0]
    forwards: dict[tuple, Any] = {}

    def spread(variables, windows):
      height = windows.shape[1]
      if windows.shape not in forwards:
        forwards[windows.shape] = kept_programs.kept(
            "forward", compiled_forward(model, protocol, mesh, height), config,
            model, protocol, height)
      padded = _pad(windows, sharding.padded(height, mesh))
      answers = forwards[windows.shape](
          variables, jax.device_put(padded, sharded))
      return jax.device_put(answers, first)[:, :height]

    self._forward = spread

  def variables(self, state):
    """What `stitched` wants, of a state with params and batch_stats."""
    variables = jax.device_put(
        jax.tree.map(lambda x: x.addressable_data(0) if isinstance(
            x, jax.Array) else x,
            {"params": state.params, "batch_stats": state.batch_stats}),
        self._replicated)
    return variables | self._prepack(variables)

  def stitched(self, variables, images, protocol: sliding_window.Protocol,
               alive=lambda windows: None):
    """`stitching.stitched` of (anything, (H, W, 3) uint8 RGB).

    `protocol` may differ in its sizes and scales from that of the start;
    `alive` is called with the number of windows, filler included, that each
    call of the network takes.
    """
    def forward(variables, windows):
      alive(len(windows))
      return self._forward(variables, windows)

    return stitching.stitched(forward, variables, images, self.num_classes,
                              protocol, self.window_batch)
