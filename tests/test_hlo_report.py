"""The HLO report on small modules whose figures are worked out by hand."""

import pathlib

import pytest

from psp_jax import hlo_layers, hlo_report, hlo_text

SMALL = (pathlib.Path(__file__).parent / "golden/small.hlo").read_text()


@pytest.fixture(scope="module")
def module():
  return hlo_text.parse(SMALL)


@pytest.fixture(scope="module")
def report(module):
  return hlo_report.analyse(module, top=2)


@pytest.mark.parametrize("text, logical, padded", [
    ("f32[]{:T(128)}", 4, 512),
    ("f32[64]{0:T(128)S(1)}", 256, 512),
    ("f32[200]{0:T(8,128)}", 800, 8 * 256 * 4),
    ("f32[3,5]{1,0:T(8,128)}", 60, 8 * 128 * 4),
    ("f32[3,5]{0,1:T(4,128)}", 60, 8 * 128 * 4),  # 5 rows of 3, in fours.
    ("bf16[2,3,130]{2,1,0:T(8,128)(2,1)}", 1560, 2 * 8 * 256 * 2),
    ("bf16[2,3,130]{2,1,0:T(2,128)(2,1)}", 1560, 2 * 4 * 256 * 2),
    ("pred[16,30]{0,1:T(8,128)(4,1)}", 480, 32 * 128),
    ("u8[2,473,473,3]{2,1,3,0:T(8,128)(4,1)}", 2 * 473 * 473 * 3,
     2 * 3 * 480 * 512),
    ("bf16[60,2,64,2048]{3,1,0,2:T(2,128)(2,1)S(1)}", 31457280, 31457280),
    ("s4[3,5]{1,0}", 8, 8),
    ("f8e4m3fn[3,5]{1,0:T(8,128)(4,1)}", 15, 1024),
    ("(f32[2]{0:T(128)}, (s32[], bf16[3]{0:T(256)(128)(2,1)}))", 18,
     512 + 4 + 512),
])
def test_bytes_of_shapes(text, logical, padded):
  shapes = hlo_text.parse_shapes(text)
  assert sum(shape.bytes for shape in shapes) == logical
  assert sum(shape.padded_bytes for shape in shapes) == padded


def test_lines_are_read_whole(module):
  entry = module.computations["main_spmd"]
  assert module.entry == "main_spmd" and len(entry) == 18
  fusion = entry["fusion.1"]
  assert (fusion.opcode, fusion.operands) == ("fusion", ("cast.1", "cast.1"))
  assert fusion.called == {"calls": ("fused_conv",)}
  assert fusion.cycles == 1000 and not fusion.root
  assert entry["param.0"].op_name == "state.params['pyramid']['kernel']"
  assert module.trip_count(entry["while.1"]) == 3
  assert [str(s) for s in entry["result"].shapes] == [
      "f32[5,3]", "f32[512,1024]"] and entry["result"].root
  assert module.stack(entry["fusion.4"]) == (
      ("/lib/site-packages/optax/_src/update.py", 42, "apply_updates"),
      ("/src/psp_jax/train_step.py", 76, "train_step"),
      ("/src/run.py", 3, "<module>"))


def test_what_is_no_hlo_is_refused():
  with pytest.raises(ValueError, match="ENTRY"):
    hlo_text.parse("nothing of the kind")


def test_cycles_count_loops_by_their_trips_and_the_longest_branch(report):
  loop = 3 * (100 + 2)
  assert report["cycles"] == 30 + 1000 + 400 + 20 + 7 + loop + 70
  assert report["loops_of_unknown_length"] == 0
  unsaid = SMALL.replace('{"known_trip_count":{"n":"3"}}', "{}")
  by_condition = hlo_report.analyse(hlo_text.parse(
      unsaid.replace("constant(3)", "constant(5)")))
  assert by_condition["cycles"] == report["cycles"] + 2 * (100 + 2)
  assert by_condition["loops_of_unknown_length"] == 0
  unknown = unsaid.replace("direction=LT", "direction=NE")
  once = hlo_report.analyse(hlo_text.parse(unknown))
  assert once["cycles"] == report["cycles"] - 2 * (100 + 2)
  assert once["loops_of_unknown_length"] == 1


def test_cycles_by_kind_layer_and_phase(report):
  def nonzero(part):
    return {name: cycles for name, cycles in part.items() if cycles}

  assert nonzero(report["by_kind"]) == {
      "convolution": 1000, "matmul": 400, "copy": 7, "reduction": 20,
      "element-wise": 30 + 3 * (100 + 2) + 70}
  layers = nonzero(report["by_layer"])
  # fusion.1 is layer2's although an addition of the optimizer ends it.
  assert nonzero(report["by_layer_and_kind"]["layer2"]) == {
      "convolution": 1000, "element-wise": 30}
  # The nameless cast before it is its own as well.
  assert layers["layer2"] == 1000 + 30
  assert layers["heads"] == 400
  assert layers["loss"] == 20 + 70
  assert layers["optimizer"] == 7
  assert layers["pyramid"] >= 300
  assert sum(layers.values()) == report["cycles"]
  phases = nonzero(report["by_phase"])
  assert phases.pop("backward") == 1000 + 30
  assert phases.pop("update") == 7
  assert phases.pop("forward") >= 400 + 20 + 300 + 70
  assert sum(phases.values()) <= 6  # The loop's nameless condition.


def test_collectives_and_activations_that_are_gathered(report):
  found = report["collectives"]
  mib = 2**20
  assert found["by_kind"] == {
      "all-reduce": {"count": 3, "bytes": 3 * 2 * mib},
      "all-gather": {"count": 2, "bytes": 2 * 16 * mib}}
  assert found["bytes"] == 38 * mib
  # The other gathers an argument.
  assert [e["name"] for e in found["activations"]] == ["all-gather-start.1"]
  assert report["unestimated"] == {
      "all-reduce": 3, "all-gather-start": 1, "all-gather": 1}


def test_collectives_in_fusions_count_once():
  text = """HloModule m

%inner (p: f32[4096]) -> f32[4096] {
  %p = f32[4096]{0} parameter(0)
  ROOT %r = f32[4096]{0} all-reduce(%p), channel_id=7
}

%inner.1 (p.1: f32[4096]) -> f32[4096] {
  %p.1 = f32[4096]{0} parameter(0)
  ROOT %r.1 = f32[4096]{0} all-reduce(%p.1), channel_id=7
}

ENTRY %main (x: f32[4096]) -> f32[4096] {
  %x = f32[4096]{0} parameter(0)
  %start = f32[4096]{0} fusion(%x), kind=kCustom, calls=%inner
  ROOT %end = f32[4096]{0} fusion(%start), kind=kCustom, calls=%inner.1
}
"""
  report = hlo_report.analyse(hlo_text.parse(text))
  assert report["collectives"]["by_kind"] == {
      "all-reduce": {"count": 1, "bytes": 16384}}
  assert report["replicated"]["count"] == 0


def test_large_arguments_that_every_chip_holds(report):
  assert report["replicated"] == {
      "count": 1, "bytes": 9 * 512 * 512 * 4, "largest": [{
          "name": "state.params['pyramid']['kernel']",
          "bytes": 9 * 512 * 512 * 4, "shape": "f32[3,3,512,512]"}]}


def test_padding_of_results(report):
  mib = 2**20
  assert report["padding"]["logical_bytes"] == sum((
      9 * mib, 2 * mib, 60,  # Arguments.
      2 * mib, mib, 2 * 60 * 60 * 64 * 2, 2400, 4, 60,  # The copy, the cast...
      16 * mib, 16 * mib))  # What was gathered; loops have no own result.
  worst = report["padding"]["worst"]
  assert worst[0]["name"] == "fusion.1"  # 64 channels in 128 lanes.
  assert worst[0]["padded_bytes"] == 2 * 60 * 64 * 128 * 2
  assert all(w["padded_bytes"] > w["bytes"] for w in worst)


def test_the_most_expensive_come_first(report):
  assert [(each["name"], each["cycles"]) for each in report["top"]] == [
      ("fusion.1", 1000), ("fusion.2", 400)]
  assert report["top"][0]["source"] == "psp_jax/train_step.py:76"
  loop = hlo_report.analyse(hlo_text.parse(SMALL), top=3)["top"][2]
  assert (loop["cycles"], loop["times"]) == (300, 3)


def test_copies_beside_the_arithmetic(report):
  assert report["async_copies"] == {"count": 1, "bytes": 2 * 2**20}


MORE = """HloModule more

%inner (p: f32[9]) -> f32[9] {
  %p = f32[9]{0} parameter(0)
  ROOT %n = f32[9]{0} negate(%p), backend_config={"estimated_cycles":"99"}
}

%cast (q: f32[9]) -> bf16[9] {
  %q = f32[9]{0} parameter(0)
  %c = f32[9]{0} copy(%q)
  ROOT %b = bf16[9]{0} convert(%c)
}

ENTRY %main (x: f32[9], y: f32[64,512]) -> f32[9] {
  %x = f32[9]{0} parameter(0)
  %y = f32[64,512]{1,0} parameter(1)
  %s = ((f32[64,512]{1,0}), f32[1,512]{1,0:S(1)}, s32[]) slice-start(%y)
  %d = f32[1,512]{1,0:S(1)} slice-done(%s)
  %call.1 = f32[9]{0} call(%x), to_apply=%inner,
  %call.2 = f32[9]{0} call(%x), to_apply=%inner, config={"estimated_cycles":"5"}
  %fusion.1 = bf16[9]{0} fusion(%x), kind=kLoop, calls=%cast
  ROOT %l = f32[9]{0} log(%x), metadata={op_name="jit(train_step)/jvp()/log"}
}
"""


def test_calls_with_cycles_of_their_own_count_those():
  assert hlo_report.analyse(hlo_text.parse(MORE))["cycles"] == 99 + 5


def test_a_cast_is_no_copy_and_a_slice_is_as_long_as_itself():
  module = hlo_text.parse(MORE)
  entry = module.computations["main"]
  assert hlo_report.kind_of(module, entry["fusion.1"]) == "element-wise"
  steps, _ = hlo_report.schedule(module)
  assert hlo_report.async_copies(steps) == {"count": 1, "bytes": 2048}


def test_what_is_differentiated_but_of_no_module_is_the_loss():
  module = hlo_text.parse(MORE)
  assert hlo_layers.Layers(module).of(module.computations["main"]["l"]) == (
      "loss", "forward")
