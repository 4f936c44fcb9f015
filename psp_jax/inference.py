"""The network under a protocol, on this process's devices: what scoring and
predicting share.
"""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from psp_jax import sliding_window, stitching
from psp_jax.models import prepack


def compiled_forward(model, protocol: sliding_window.Protocol, mesh: Mesh):
  """`stitching.make_forward` under jit: windows lie over "data"."""
  sharded = NamedSharding(mesh, PartitionSpec("data"))
  return jax.jit(
      stitching.make_forward(model, protocol.flip, protocol.average),
      in_shardings=(NamedSharding(mesh, PartitionSpec()), sharded),
      out_shardings=sharded)


class Inference:
  """Compiled once, run as often as wanted.

  Attributes:
    num_classes: of the model.
    window_batch: windows in one call of the network, over all devices.
  """

  def __init__(self, model, config, protocol: sliding_window.Protocol):
    self.num_classes = model.num_classes
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    self.window_batch = config.eval.window_batch * mesh.size
    self._replicated = NamedSharding(mesh, PartitionSpec())
    sharded = NamedSharding(mesh, PartitionSpec("data"))
    forward = compiled_forward(model, protocol, mesh)
    self._prepack = lambda variables: {}
    if mesh.devices.flat[0].platform == "cpu":
      side = protocol.window or config.data.crop_size
      shape = (self.window_batch * (1 + protocol.flip), side, side, 3)
      self._prepack = jax.jit(functools.partial(prepack, model, shape=shape),
                              out_shardings=self._replicated)
    # Cutting and stitching run on the first device: a copy of every canvas
    # on every device would take as many times the memory.
    first = jax.local_devices()[0]
    self._forward = lambda variables, windows: jax.device_put(
        forward(variables, jax.device_put(windows, sharded)), first)

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
