"""A traced function of images as an ONNX graph.

For what `models` computes at inference, equation after equation of its jaxpr.
(jax2onnx wants an Orbax older than the one that checkpoints are tested with,
and writes max pooling of NHWC maps as ONNX Runtime cannot run it.)

What depends on parameters alone is computed here, by one program that JAX makes
of it while the graph is put together: below, known values are being traced.
Runtimes want maps as NCHW: so are they from a convolution on, until something
needs them as they were; a scale and a shift of channels (BatchNorm) join it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import helper, numpy_helper

OPSET, _IR_VERSION = 18, 8  # Of 2022: read by every runtime since.
_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
# Primitives that stand for the jaxpr in one of their parameters.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr",
          "custom_vjp_call": "call_jaxpr"}
_ELEMENTWISE = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div",
                "max": "Max", "exp": "Exp", "eq": "Equal"}


@dataclasses.dataclass
class _Tensor:
  """A value known when the graph runs; names by layout, NCHW where it is.

  The graph's names come into being when somebody asks: a convolution waits in
  `conv` (input, kernel (kh, kw, C, O), bias (O,), attributes) for its scale.
  """
  shape: tuple
  nhwc: str | None = None
  nchw: str | None = None
  conv: tuple | None = None

  @property
  def ndim(self) -> int:
    return len(self.shape)


def _tensor(aval, name: str, nchw=False) -> _Tensor:
  return _Tensor(aval.shape, *((None, name) if nchw else (name,)))


class _Integers(tuple):
  """A constant that JAX would make 32 bits of."""


class _Graph:
  """Nodes and constants (name -> array) so far."""

  def __init__(self):
    self.nodes, self.constants, self._kept = [], {}, {}

  def node(self, op, inputs, **attributes) -> str:
    name = f"{op.lower()}_{len(self.nodes)}"
    self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
    return name

  def constant(self, array) -> str:
    name = f"constant_{len(self.constants)}"
    self.constants[name] = array
    return name

  def integers(self, values) -> str:
    values = _Integers(map(int, values))
    if values not in self._kept:
      self._kept[values] = self.constant(values)
    return self._kept[values]

  def name(self, x, nchw=False) -> str:
    """Of a value in a layout; what that takes joins the graph."""
    if not isinstance(x, _Tensor):
      return self.constant(jnp.transpose(x, _TO_NCHW) if nchw else x)
    if x.conv and not x.nchw:
      source, kernel, bias, attributes = x.conv
      inputs = [self.name(source, nchw=True),
                self.constant(kernel.transpose(3, 2, 0, 1))]
      if bias is not None:
        inputs.append(self.constant(bias))
      x.nchw = self.node("Conv", inputs, **attributes)
    if nchw and not x.nchw:
      x.nchw = self.node("Transpose", [x.nhwc], perm=_TO_NCHW)
    if not nchw and not x.nhwc:
      x.nhwc = self.node("Transpose", [x.nchw], perm=_TO_NHWC)
    return (x.nchw if nchw else x.nhwc) or ""  # Never "": both are there now.


def to_model(function, images, input_name: str,
             output_name: str) -> onnx.ModelProto:
  """The ONNX model of a function of one array, with its constants inside.

  Args:
    function: traceable by JAX; of `jax.lax.platform_dependent` it gets the
      default.
    images: `jax.ShapeDtypeStruct`; its first dimension may be symbolic.
    input_name: of the model's input.
    output_name: of the model's only output.

  Raises:
    NotImplementedError: a primitive that no network of ours has.
  """
  closed = jax.make_jaxpr(function)(images)
  graph = _Graph()

  @jax.jit
  def computed(constants):
    given = _Tensor(images.shape, nhwc=input_name)
    result, = _evaluate(graph, closed.jaxpr, constants, [given])
    graph.nodes.append(helper.make_node(
        "Identity", [graph.name(result)], [output_name], output_name))
    return {name: array for name, array in graph.constants.items()
            if not isinstance(array, _Integers)}

  arrays = jax.device_get(computed(closed.consts))
  arrays |= {name: np.array(values, np.int64)
             for name, values in graph.constants.items()
             if isinstance(values, _Integers)}
  initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name)
                  for name, array in arrays.items()]
  model = helper.make_model(helper.make_graph(
      graph.nodes, "pspnet", [_value_info(input_name, images)],
      [_value_info(output_name, closed.out_avals[0])], initializers),
      opset_imports=[helper.make_opsetid("", OPSET)], producer_name="psp_jax")
  model.ir_version = _IR_VERSION
  return model


def _value_info(name, aval):
  return helper.make_tensor_value_info(
      name, helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)),
      [d if isinstance(d, int) else "N" for d in aval.shape])


def _evaluate(graph, jaxpr, constants, inputs):
  """The jaxpr's results: arrays where they are known, else tensors."""
  values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs]))

  def read(v):
    return v.val if isinstance(v, Literal) else values[v]

  for eqn in jaxpr.eqns:
    xs, name = [read(v) for v in eqn.invars], eqn.primitive.name
    if name == "platform_index":
      results = [next(i for i, names in enumerate(eqn.params["platforms"])
                      if names is None)]
    elif name in _CALLS or name == "cond":
      if name == "cond":
        inner, xs = eqn.params["branches"][int(xs[0])], xs[1:]
      else:
        inner = eqn.params[_CALLS[name]]
      results = _evaluate(graph, getattr(inner, "jaxpr", inner),
                          getattr(inner, "consts", ()), xs)
    elif any(isinstance(x, _Tensor) for x in xs):
      if name not in _RULES:
        raise NotImplementedError(f"{name}")
      results = [_RULES[name](graph, *xs, aval=eqn.outvars[0].aval,
                              **eqn.params)]
    else:
      results = _known(eqn, xs)
    values.update(zip(eqn.outvars, results))
  return [read(v) for v in jaxpr.outvars]


def _known(eqn, xs):
  """What needs no image."""
  params, name = eqn.params, eqn.primitive.name
  if not all(isinstance(d, int) for v in eqn.outvars for d in v.aval.shape):
    # Along the batch all is equal: left to the broadcasting of who uses it.
    shape = tuple(d if isinstance(d, int) else 1
                  for d in params.get("shape", ()))
    if name == "broadcast_in_dim":
      return [jax.lax.broadcast_in_dim(
          xs[0], shape, params["broadcast_dimensions"])]
    if name == "iota":
      return [jax.lax.broadcasted_iota(
          params["dtype"], shape, params["dimension"])]
    raise NotImplementedError(f"{name} of an unknown batch")
  results = eqn.primitive.bind(*xs, **params)
  return results if eqn.primitive.multiple_results else [results]


def _elementwise(op):
  def rule(graph, *xs, aval, **_):
    if op in ("Mul", "Add") and (folded := _into_convolution(op, *xs)):
      return folded
    nchw = len(aval.shape) == 4 and any(
        isinstance(x, _Tensor) and not x.nhwc for x in xs)
    if nchw:  # Numbers without axes have no layout.
      xs = tuple(x if isinstance(x, _Tensor) or np.ndim(x)
                 else jnp.reshape(x, (1, 1, 1, 1)) for x in xs)
    return _tensor(aval, graph.node(op, [graph.name(x, nchw) for x in xs]),
                   nchw)
  return rule


def _into_convolution(op, x, y):
  """A waiting convolution, scaled or shifted by channels; else None."""
  if not isinstance(x, _Tensor):
    x, y = y, x
  if (isinstance(y, _Tensor) or not x.conv or x.nchw
      or np.shape(y)[:-1] != (1, 1, 1)):
    return None
  source, kernel, bias, attributes = x.conv
  if bias is not None:
    return None
  by = jnp.broadcast_to(jnp.ravel(y), kernel.shape[-1:])
  folded = (kernel * by, None) if op == "Mul" else (kernel, by)
  return _Tensor(x.shape, conv=(source, *folded, attributes))


def _convolution(graph, x, kernel, *, aval, window_strides, padding,
                 lhs_dilation, rhs_dilation, dimension_numbers,
                 feature_group_count, batch_group_count, **_):
  if (tuple(dimension_numbers) != (_TO_NCHW, (3, 2, 0, 1), _TO_NCHW) or max(
      *lhs_dilation, feature_group_count, batch_group_count) > 1):
    raise NotImplementedError(f"a convolution of {dimension_numbers}")
  (top, bottom), (left, right) = padding
  return _Tensor(aval.shape, conv=(x, kernel, None, dict(
      kernel_shape=kernel.shape[:2], strides=window_strides,
      pads=(top, left, bottom, right), dilations=rhs_dilation)))


def _product(graph, x, y, *, aval, dimension_numbers, **_):
  (cx, cy), (bx, by) = dimension_numbers
  if (x.ndim == 4 and (cx, cy, bx) == ((3,), (0,), ()) and y.ndim == 2
      and not isinstance(y, _Tensor)):
    return _Tensor(aval.shape, conv=(x, y[None, None], None, dict(
        kernel_shape=(1, 1))))
  of_x, of_y = list("abcdefgh"[:x.ndim]), list("pqrstuvw"[:y.ndim])
  for i, j in zip((*cx, *bx), (*cy, *by)):
    of_y[j] = of_x[i]
  out = [of_x[i] for i in bx]
  out += [of_x[i] for i in range(len(of_x)) if i not in (*cx, *bx)]
  out += [of_y[j] for j in range(len(of_y)) if j not in (*cy, *by)]
  equation = f"{''.join(of_x)},{''.join(of_y)}->{''.join(out)}"
  return _tensor(aval, graph.node(
      "Einsum", [graph.name(x), graph.name(y)], equation=equation))


def _slice(graph, x, *, aval, start_indices, limit_indices, strides, **_):
  nchw = not x.nhwc
  axes = [i for i, d in enumerate(x.shape) if isinstance(d, int)]
  steps = strides or (1,) * len(x.shape)
  place = _TO_NCHW.index if nchw else int
  return _tensor(aval, graph.node("Slice", [graph.name(x, nchw), *(
      graph.integers(v) for v in (
          [start_indices[i] for i in axes], [limit_indices[i] for i in axes],
          [place(i) for i in axes], [steps[i] for i in axes]))]), nchw)


def _pad(graph, x, value, *, aval, padding_config, **_):
  low, high, unused_interior = zip(*padding_config)
  return _tensor(aval, graph.node("Pad", [
      graph.name(x), graph.integers([*low, *high]), graph.constant(value)]))


def _pool(op):
  """MaxPool or AveragePool over rows and columns."""
  def rule(graph, x, *, aval, window_dimensions, window_strides, padding,
           base_dilation, window_dilation, **_):
    if (window_dimensions[::3] != (1, 1) or max(
        *base_dilation, *window_dilation) > 1):
      raise NotImplementedError(f"a window {window_dimensions}")
    _, (top, bottom), (left, right), _ = padding
    more = {} if op == "MaxPool" else {"count_include_pad": 1}
    name = graph.node(
        op, [graph.name(x, nchw=True)], kernel_shape=window_dimensions[1:3],
        strides=window_strides[1:3], pads=(top, left, bottom, right), **more)
    if op == "AveragePool":  # Asked for is the sum.
      area = np.float32(np.prod(window_dimensions))
      name = graph.node("Mul", [name, graph.constant(area)])
    return _tensor(aval, name, nchw=True)
  return rule


def _reshape(graph, x, *, aval, **_):
  return _tensor(aval, graph.node(
      "Reshape", [graph.name(x), graph.integers(_sizes(aval.shape))]))


def _sizes(shape):
  return [d if isinstance(d, int) else -1 for d in shape]


def _broadcast(graph, x, *, aval, shape, broadcast_dimensions, **_):
  ones = [1] * len(shape)
  for i, size in zip(broadcast_dimensions, x.shape):
    ones[i] = size
  name = graph.node("Reshape", [graph.name(x), graph.integers(_sizes(ones))])
  grown = [d if isinstance(d, int) else 1 for d in shape]  # 1: as it is.
  if any(a != b for a, b in zip(_sizes(ones), grown) if a > 0):
    name = graph.node("Expand", [name, graph.integers(grown)])
  return _tensor(aval, name)


def _transpose(graph, x, *, aval, permutation, **_):
  return _tensor(aval, graph.node(
      "Transpose", [graph.name(x)], perm=permutation))


def _cast(graph, x, *, aval, **_):
  to = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
  nchw = not x.nhwc
  return _tensor(aval, graph.node("Cast", [graph.name(x, nchw)], to=to), nchw)


def _reduce(op):
  def rule(graph, x, *, aval, axes, **_):
    return _tensor(aval, graph.node(
        op, [graph.name(x), graph.integers(axes)], keepdims=0))
  return rule


def _argmax(graph, x, *, aval, axes, index_dtype, **_):
  axis, = axes
  name = graph.node("ArgMax", [graph.name(x)], axis=axis, keepdims=0)
  return _cast(graph, _tensor(aval, name), aval=aval)


def _stack(graph, *xs, aval, axis, **_):
  axes = graph.integers([axis])
  return _tensor(aval, graph.node("Concat", [
      graph.node("Unsqueeze", [graph.name(x), axes]) for x in xs], axis=axis))


def _select(graph, which, if_false, if_true, *, aval, **_):
  return _tensor(aval, graph.node(
      "Where", [graph.name(x) for x in (which, if_true, if_false)]))


_RULES = {name: _elementwise(op) for name, op in _ELEMENTWISE.items()} | {
    "conv_general_dilated": _convolution, "dot_general": _product,
    "slice": _slice, "pad": _pad, "reshape": _reshape, "squeeze": _reshape,
    "expand_dims": _reshape, "broadcast_in_dim": _broadcast,
    "transpose": _transpose, "convert_element_type": _cast,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_sum": _pool("AveragePool"),
    "reduce_max": _reduce("ReduceMax"), "reduce_sum": _reduce("ReduceSum"),
    "argmax": _argmax, "stack": _stack,
    "select_n": _select,
    "stop_gradient": lambda graph, x, **_: x, "copy": lambda graph, x, **_: x}
