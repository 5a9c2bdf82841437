"""`benchmark program`: what is read from a compiled program, and the bars of the real step."""

import json
import os
import subprocess
import sys

import jax
import pytest

from alexnet_jax import config
from alexnet_jax.benchmark import __main__ as benchmark
from alexnet_jax.benchmark.gpu import program
from alexnet_jax.benchmark.gpu.instructions import Code, Launch, count_longest, launches
from alexnet_jax.benchmark.gpu.kernels import Kernel, kernels, parse, sizes
from alexnet_jax.benchmark.gpu.targets import TARGETS
from alexnet_jax.configs import alexnet, alexnet_2012
from alexnet_jax.model.describe import layer_table
from alexnet_jax.runtime import host
from alexnet_jax.runtime.errors import UserError
from alexnet_jax.training.setup import make_network
from tests.test_main import fails_in_one_line

# The step of alexnet_2012 in bfloat16, batch 1024, on one H200: not more than this.
GIGABYTES, PEAK_MEGABYTES = 23.5, 4_200

# Written by hand, in the form of a program that XLA has compiled.
PROGRAM = """HloModule jit_step, is_scheduled=true

%half (param_0.1: bf16[8,100], param_1.1: f32[8,50]) -> f32[8,50] {
  %param_0.1 = bf16[8,100]{1,0} parameter(0)
  %convert.1 = f32[8,100]{1,0} convert(%param_0.1)
  %slice.1 = f32[8,50]{1,0} slice(%convert.1), slice={[0:8], [0:50]}
  %param_1.1 = f32[8,50]{1,0} parameter(1)
  ROOT %add.1 = f32[8,50]{1,0} add(%slice.1, %param_1.1), metadata={op_name="jit(step)/jvp(conv1)/add"}
}

%windows (param_0.2: f32[10]) -> f32[8] {
  %param_0.2 = f32[10]{0} parameter(0)
  %slice.2 = f32[8]{0} slice(%param_0.2), slice={[0:8]}
  %slice.3 = f32[8]{0} slice(%param_0.2), slice={[2:10]}
  ROOT %add.2 = f32[8]{0} add(%slice.2, %slice.3)
}

%in_place (param_0.3: f32[100], param_1.3: f32[5], param_2.3: s32[]) -> f32[100] {
  %param_0.3 = f32[100]{0} parameter(0)
  %param_1.3 = f32[5]{0} parameter(1)
  %param_2.3 = s32[] parameter(2)
  ROOT %dus.1 = f32[100]{0} dynamic-update-slice(%param_0.3, %param_1.3, %param_2.3)
}

%body (state.1: (f32[10], s32[])) -> (f32[10], s32[]) {
  %state.1 = (f32[10]{0}, s32[]) parameter(0)
  %gte.1 = f32[10]{0} get-tuple-element(%state.1), index=0
  %gte.2 = s32[] get-tuple-element(%state.1), index=1
  %copy.1 = f32[10]{0} copy(%gte.1)
  ROOT %tuple.1 = (f32[10]{0}, s32[]) tuple(%copy.1, %gte.2)
}

%condition (state.2: (f32[10], s32[])) -> pred[] {
  %state.2 = (f32[10]{0}, s32[]) parameter(0)
  ROOT %constant.1 = pred[] constant(true)
}

%graph (p.1: f32[10]) -> f32[8] {
  %p.1 = f32[10]{0} parameter(0)
  ROOT %windows_fusion = f32[8]{0} fusion(%p.1), kind=kLoop, calls=%windows, metadata={op_name="jit(step)/transpose(jvp(conv1))/add"}
}

ENTRY %main.1 (a: bf16[8,100], b: f32[8,50], c: f32[10], d: f32[100], e: f32[5], f: s32[]) -> f32[8] {
  %a = bf16[8,100]{1,0} parameter(0), metadata={op_name="state['params']['conv1']"}
  %b = f32[8,50]{1,0} parameter(1)
  %c = f32[10]{0} parameter(2)
  %d = f32[100]{0} parameter(3)
  %e = f32[5]{0} parameter(4)
  %f = s32[] parameter(5)
  %half_fusion.7 = f32[8,50]{1,0} fusion(%a, %b), kind=kLoop, calls=%half, metadata={op_name="jit(step)/jvp()/add"}
  %in_place_fusion = f32[100]{0} fusion(%d, %e, %f), kind=kLoop, calls=%in_place
  %tuple.2 = (f32[10]{0}, s32[]) tuple(%c, %f)
  %while.1 = (f32[10]{0}, s32[]) while(%tuple.2), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %gather = (bf16[8,100]{1,0}, bf16[8,200]{1,0}) all-gather-start(%a), channel_id=1, replica_groups={{0,1}}, dimensions={1}, metadata={op_name="jit(step)/jvp(fc6)/all_gather"}
  %gathered = bf16[8,200]{1,0} all-gather-done(%gather)
  %product = (f32[200,50]{1,0}, s8[4194304]{0}) custom-call(%gathered, %half_fusion.7), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/transpose(jvp(fc6))/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["0"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %call.1 = f32[8]{0} call(%c), to_apply=%graph
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def found() -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in kernels(PROGRAM, ("conv1", "fc6"))}


def test_only_what_runs_on_the_device_is_a_kernel(found):
    names = ["half_fusion.7", "in_place_fusion", "copy.1", "gather", "product", "windows_fusion"]
    assert list(found) == names


@pytest.mark.parametrize(
    ("name", "read", "written"),
    [
        ("half_fusion.7", 8 * 50 * 2 + 8 * 50 * 4, 8 * 50 * 4),  # half of the first operand
        ("windows_fusion", 10 * 4, 8 * 4),  # the windows overlap: all of it, not more
        ("in_place_fusion", 5 * 4 + 4, 5 * 4),  # the other 95 values stay where they are
        ("copy.1", 40, 40),
        ("gather", 8 * 100 * 2, 8 * 200 * 2),  # its tuple has the operand, too
        ("product", 8 * 200 * 2 + 8 * 50 * 4, 200 * 50 * 4),  # without cuBLAS's scratch memory
    ],
)
def test_bytes_are_counted(found, name, read, written):
    assert (found[name].read, found[name].written) == (read, written)


def test_a_loop_multiplies_its_kernels(found):
    assert found["copy.1"].times == 6
    assert found["copy.1"].moved == 6 * 80
    assert found["half_fusion.7"].times == 1


def test_layer_and_pass_come_from_the_scopes(found):
    places = {name: (kernel.layer, kernel.direction) for name, kernel in found.items()}
    assert places["half_fusion.7"] == ("conv1", "forward")  # only its part names the layer
    assert places["windows_fusion"] == ("conv1", "backward")
    assert places["gather"] == ("fc6", "forward")
    assert places["in_place_fusion"] == ("", "")


def test_products_have_operations(found):
    assert found["product"].flop == 2 * 8 * 200 * 50
    assert (found["product"].kind, found["product"].dtype) == ("product", "bf16")
    assert found["half_fusion.7"].flop == 0


@pytest.mark.parametrize(
    ("call", "operands", "result"),
    [
        ("convForward", ("[64,27,27,96]", "[256,5,5,48]"), "[64,27,27,256]"),
        ("convBackwardInput", ("[64,27,27,256]", "[256,5,5,48]"), "[64,27,27,96]"),
        ("convBackwardFilter", ("[64,27,27,96]", "[64,27,27,256]"), "[256,5,5,48]"),
    ],
)
def test_convolutions_have_the_operations_of_their_outputs(call, operands, result):
    """Each of 64 x 27 x 27 x 256 outputs sees 5 x 5 x 48 values: two groups."""
    text = f"""
ENTRY %main (a: f32{operands[0]}, b: f32{operands[1]}) -> f32{result} {{
  %a = f32{operands[0]}{{3,2,1,0}} parameter(0)
  %b = f32{operands[1]}{{3,2,1,0}} parameter(1)
  ROOT %c = (f32{result}{{3,2,1,0}}, u8[0]{{0}}) custom-call(%a, %b), window={{size=5x5}}, \
dim_labels=b01f_o01i->b01f, feature_group_count=2, custom_call_target="__cudnn${call}"
}}
"""
    (kernel,) = kernels(text, ())
    assert kernel.flop == 2 * 64 * 27 * 27 * 256 * 5 * 5 * 48
    assert kernel.kind == "convolution"


def test_the_sizes_of_a_tuple():
    assert sizes("((bf16[2,3]{1,0}), f32[], /*index=2*/pred[7]{0})") == [12, 4, 7]


def test_the_roofline_is_the_slower_of_bytes_and_products():
    h100 = TARGETS["h100"]
    kernel = Kernel("a", "fusion", "", "", 10**9, 10**9, 0, "", 3)
    assert program.roofline(kernel, h100) == pytest.approx(3 * 2e9 / (0.9 * 3.352e12))
    kernel = kernel._replace(flop=10**12, dtype="bf16", times=1)
    assert program.roofline(kernel, h100) == pytest.approx(1e12 / (0.8 * 989e12))
    assert program.roofline(kernel._replace(dtype="f32"), h100) == pytest.approx(
        1e12 / (0.8 * 494.5e12)
    )
    assert program.roofline(Kernel("a", "copy", "", "", 4, 4, 0, "", 2), h100) == 2 * 2.5e-6


# --- instructions -------------------------------------------------------------------------------


def code(*lines: str) -> list[dict[str, str]]:
    """'@P0 BRA 0x40' and the like, as nvdisasm lists them."""
    split = [line.split(" ") for line in lines]
    return [
        {"predicate": words.pop(0)} | {"opcode": words[0], "operands": words[-1]}
        if words[0].startswith("@")
        else {"opcode": words[0], "operands": words[-1]}
        for words in split
    ]


def test_instructions_are_counted_by_unit():
    counts = count_longest(code("IADD3", "FFMA", "MUFU.RSQ", "LDG.E.128", "STG.E.64", "EXIT"))
    assert counts == {"all": 6, "integer": 1, "float": 1, "special": 1, "memory": 4 + 2}


def test_of_two_branches_the_longer_one_counts():
    """0: to 3 or on; 1, 2: the short branch; 3 to 5: the long one; 6: both."""
    lines = ["@P0 BRA 0x30", "FADD", "BRA 0x60", "FMUL", "FMUL", "FMUL", "EXIT", "BRA 0x70"]
    assert count_longest(code(*lines)) == {"all": 5, "float": 3}


def test_a_loop_counts_once_and_an_early_end_is_not_taken():
    lines = ["@P0 EXIT", "FADD", "LDG.E", "@P1 BRA 0x10", "STG.E", "EXIT", "BRA 0x60", "NOP"]
    assert count_longest(code(*lines)) == {"all": 6, "float": 1, "memory": 2}


def test_the_slowest_unit_decides_how_long_it_takes_to_issue():
    """A core of an H100 issues 4 instructions of a warp in a clock, and half a special one."""
    h100 = TARGETS["h100"]
    second = h100.cores * int(h100.clock)  # clocks of all cores
    assert Code(32, 0, {"all": 4}).seconds(second, h100) == pytest.approx(1)
    assert Code(32, 0, {"all": 4, "special": 1}).seconds(second, h100) == pytest.approx(2)
    a100 = TARGETS["a100"]
    second = a100.cores * int(a100.clock)
    assert Code(32, 0, {"all": 4, "float": 4}).seconds(second, a100) == pytest.approx(2)


def test_launches_are_found_by_the_instruction_that_starts_them(tmp_path):
    """Two instructions may share one kernel; a copy starts none."""
    (tmp_path / "m.thunk_sequence.txt").write_text(
        "001: kCustomKernel [source | next=002 (1) ] add_1 grid: [10, 2, 1] threads: [96, 1, 1] "
        "shared_memory: 0 bytes\n"
        "002: kCopy [prev=001 (1) | sink ] kCopy\n"
        "003: kCustomKernel [prev=001] add_1 grid: [1, 1, 1] threads: [33, 1, 1]  shared\n"
    )
    (tmp_path / "m.thunk_metadata.txt").write_text(
        "".join(
            f'thunk_metadata {{\n  thunk_info {{\n    profile_annotation: "{name}"\n'
            f"    thunk_id: {i}\n  }}\n}}\n"
            for i, name in enumerate(["add.1", "copy.5", "add.9"], 1)
        )
    )
    assert launches(tmp_path) == {"add.1": Launch("add_1", 60), "add.9": Launch("add_1", 2)}


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["program", "--target=h300"], "error: --target=h300: give one or more of h100, h200"),
        (["program"], "error: --target is missing: give it, as --target=h100"),
        (["memory", "--target=h100"], "error: --target: only the section program compiles"),
    ],
)
def test_a_wrong_target_gets_one_clear_line(arguments, said, capsys, monkeypatch):
    fails_in_one_line(
        benchmark.main, [*arguments, "--config=configs/tiny.py"], said, capsys, monkeypatch
    )


def test_without_the_extra_a_line_names_it(monkeypatch):
    def missing(_package: str) -> str:
        raise program.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(program.importlib.metadata, "version", missing)
    with pytest.raises(UserError, match=r"jax-cuda13-plugin is missing.*\[gpu-program\]"):
        program.require_compiler()
    monkeypatch.setattr(program.importlib.metadata, "version", lambda _: "0.9.9")
    with pytest.raises(UserError, match=r"jax-cuda13-plugin is 0\.9\.9, but jax is"):
        program.require_compiler()
    monkeypatch.setattr(program.importlib.metadata, "version", lambda _: jax.__version__)
    monkeypatch.setattr(program, "TOOLS", ("no-such-tool",))
    with pytest.raises(UserError, match=r"no-such-tool is missing.*\[gpu-program\]"):
        program.require_compiler()


NEW_PROCESS = """
import logging, pathlib, sys
pathlib.Path.glob = lambda *_: iter(sys.argv[1:])  # the GPUs in /dev
from alexnet_jax.runtime import host
host.configure_jax(1)
for name in ("xla_cuda13", "xla_other"):
    logging.getLogger("jax._src.xla_bridge").error("when calling %s.initialize()", name)
"""


@pytest.mark.parametrize(("gpus", "heard"), [((), False), (("/dev/nvidia0",), True)])
def test_cuda_that_cannot_start_is_an_error_only_with_a_gpu(gpus, heard):
    """The compiler alone, without CUDA's libraries, is no installation that failed."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    line = [sys.executable, "-c", NEW_PROCESS, *gpus]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    assert ("xla_cuda13" in done.stderr) == heard
    assert "xla_other" in done.stderr
    assert ("Traceback" in done.stderr) <= heard


def test_images_per_second_are_called_bounds():
    row = {"target": "h100", "batch": 8, "dtype": "float32", "devices": 1, "gigabytes": 1.5}
    row |= {"roofline_images_per_s": 12345.6, "exchanges": [], "largest": [], "layers": []}
    said = program.report([row])
    assert "bound by bytes and FLOP, images/s" in said
    assert "not speeds: nothing was timed" in said
    assert "12,346" in said


# --- with the compiler: two compilations --------------------------------------------------------


@pytest.fixture(scope="module")
def compiler() -> None:
    try:
        program.require_compiler()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def full(compiler, tmp_path_factory):
    """alexnet_2012 at full size: the config, the compiled step and the folder of XLA's files."""
    plain = alexnet_2012.get_config().to_dict() | {"batch": 1024, "dtype": "bfloat16", "devices": 1}
    c, dump = config.parse(plain), tmp_path_factory.mktemp("dump")
    with pytest.MonkeyPatch.context() as patch:  # XLA's own figures are written beside the kernels
        own = program.OPTIONS | {"xla_gpu_collect_cost_model_stats": True}
        patch.setattr(program, "OPTIONS", own)
        return c, program.compile_step(TARGETS["h200"], c, dump), dump


@pytest.fixture(scope="module")
def row(full):
    """The row of the table of the same step, which is not compiled again."""
    c, compiled, dump = full
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "compile_step", lambda *_: compiled)
        return program.measure_case("h200", c, dump)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changed", "gigabytes"),
    [
        (alexnet, {}, 20.0),
        (alexnet_2012, {"devices": 2}, 14.0),
        (alexnet_2012, {"dtype": "float32"}, 45.0),
    ],
)
def test_other_steps_move_no_more_than_they_may(compiler, tmp_path, recipe, changed, gigabytes):
    plain = recipe.get_config().to_dict() | {"batch": 1024, "dtype": "bfloat16", "devices": 1}
    row = program.measure_case("h200", config.parse(plain | changed), tmp_path)
    assert row["gigabytes"] < gigabytes


def test_the_step_moves_and_holds_no_more_than_it_may(row):
    assert row["gigabytes"] < GIGABYTES
    assert row["peak_megabytes"] < PEAK_MEGABYTES
    assert row["issue_images_per_s"] <= row["roofline_images_per_s"]


def test_bytes_of_the_layers_add_up(row):
    assert sum(one["megabytes"] for one in row["layers"]) == pytest.approx(1e3 * row["gigabytes"])
    assert sum(one["kernels"] for one in row["layers"]) == row["kernels"]
    largest = [one["megabytes"] for one in row["largest"]]
    assert len(largest) == 10
    assert largest == sorted(largest, reverse=True)


def test_operations_are_those_of_the_table_of_layers(full):
    """Thrice the forward pass, but conv1 needs no gradient of its input.

    By blocks of 4 x 4 pixels its kernels have 12 x 12 places, not 11 x 11.
    """
    c, (_, _, compiled), _ = full
    table = layer_table(make_network(c), c)
    conv1, *others = (row.multiply_adds for row in table)
    adds = 3 * sum(others) + 2 * conv1 * 12**2 // 11**2
    found = kernels(compiled.as_text(), c.model.names)
    assert sum(kernel.flop * kernel.times for kernel in found) == 2 * c.batch * adds


def test_arguments_have_the_bytes_that_xla_says(full):
    _, (_, _, compiled), _ = full
    computations, entry = parse(compiled.as_text())
    arguments = [one for one in computations[entry].values() if one.opcode == "parameter"]
    counted = sum(sum(sizes(one.shape)) for one in arguments)
    assert counted == compiled.memory_analysis().argument_size_in_bytes


def test_no_kernel_moves_more_than_xla_itself_thinks(full):
    """XLA's model has more where windows are read again; where nothing is, the same.

    It gives the time at the data sheet's bandwidth, and counts small arrays as cached.
    """
    c, (_, _, compiled), _ = full
    computations, entry = parse(compiled.as_text())
    same = 0
    for kernel in kernels(compiled.as_text(), c.model.names):
        if kernel.kind == "fusion" and kernel.moved > 100e6:
            one = computations[entry][kernel.name]
            time = float(one.attribute(r'"memory_access_time_us":([\d.e+-]+)'))
            theirs = time * 1e-6 * TARGETS["h200"].bandwidth
            assert kernel.moved < 1.02 * theirs
            same += kernel.moved > 0.98 * theirs
    assert same >= 5


def test_every_large_kernel_of_xla_has_its_instructions_counted(full):
    c, (_, _, compiled), dump = full
    found = program.costs(kernels(compiled.as_text(), c.model.names), TARGETS["h200"], dump)
    large = [one for one in found if one.kernel.kind == "fusion" and one.kernel.moved > 10e6]
    assert len(large) > 10
    assert all(one.code and one.issue > 0 for one in large)


def test_a_step_that_does_not_fit_is_refused_in_one_line(full, monkeypatch):
    c, compiled, dump = full
    small = TARGETS["h200"]._replace(memory=1_000_000_000)
    monkeypatch.setitem(program.TARGETS, "h200", small)
    monkeypatch.setattr(program, "compile_step", lambda *_: compiled)
    said = r"batch 1024, bfloat16, 1 device\(s\): a step needs [\d,]+ MB on each, .* has 1,000 MB"
    with pytest.raises(UserError, match=said):
        program.measure_case("h200", c, dump)


def test_the_command_prints_bounds_and_exchanges(compiler, tmp_path, capsys, monkeypatch):
    """It needs no records: it traces shapes only."""
    monkeypatch.setattr(benchmark, "with_records", None)
    monkeypatch.setattr(host, "configure_jax", lambda *_, **__: None)  # the process has begun
    file = tmp_path / "program.json"
    benchmark.main(["program", "--config=tiny", "--target=l4", "--batch=64", f"--json={file}"])
    (row,) = json.loads(file.read_text())["rows"]
    assert [row[key] for key in ("target", "batch", "devices")] == ["l4", 64, 2]
    assert min(row[key] for key in ("gigabytes", "kernels", "peak_megabytes")) > 0
    kinds = [one["kind"] for one in row["exchanges"]]
    assert kinds == ["all-gather"] * 3 + ["all-reduce"] + ["reduce-scatter"] * 3
    assert {"layer", "pass", "bytes"} < set(row["exchanges"][0])
    said = capsys.readouterr().out
    assert "l4, batch 64, float32, 2 device(s): exchanges" in said
