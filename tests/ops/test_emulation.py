"""The CUDA kernels on an emulated machine: a sample of what `make emulate` asks, and faults that it has to see."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ops.emulation import __main__ as emulation
from tests.ops.emulation import build, translate
from tests.ops.emulation.fault import barriers
from tests.ops.emulation.fault_list import FAULTS
from tests.ops.emulation.runs import FIRST, ROOT, ask

CSRC = ROOT / "csrc"
SAMPLE = replace(FIRST, tests="native-cpu and (257-torch.float32 or views or sums_of or (float64 and 33))")
compiled = pytest.mark.skipif(build.compiler() is None, reason="no C++ compiler")
# Beside `make emulate`, which CI runs, these compile the kernels several times more.
slow = pytest.mark.slow
bounded = pytest.mark.skipif(
    build.compiler() is None or not build.sanitizer_libraries(), reason="no g++ with the sanitizers' libraries here"
)


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Path:
    """A folder with all of the library but the kernels."""
    folder = tmp_path_factory.mktemp("emulated")
    for part in build.machine_parts(CSRC, folder):
        part()
    return folder


@slow
@compiled
def test_the_kernels_give_the_bytes_of_the_reference(machine):
    outcome = ask(SAMPLE, build.build("races", CSRC, machine))
    assert outcome.error is None
    assert outcome.tests > 5


@slow
@pytest.mark.parametrize(
    ("name", "variant", "word"),
    [
        pytest.param("__syncthreads 1 of", "races", "race: it stores", marks=compiled),
        pytest.param("a lane skips the sum of its warp", "races", "deadlock", marks=compiled),
        pytest.param("words in the wrong order", "races", "test_awkward_sizes", marks=compiled),
        pytest.param("levels read beyond the last", "bounds", "AddressSanitizer", marks=bounded),
    ],
    ids=str,
)
def test_a_fault_is_seen(machine, tmp_path, name, variant, word):
    kernels = build.kernel_text(CSRC)
    fault = next(fault for fault in [*barriers(kernels), *FAULTS] if fault.name.startswith(name))
    copy = shutil.copytree(CSRC, tmp_path / "csrc")
    build.write_kernels(copy, fault.plant(kernels))
    library = build.build(variant, copy, machine, f"fault_{len(name)}")
    assert word in (ask(replace(SAMPLE, variant=variant), library).error or "nothing is seen")


def test_every_fault_has_its_place_in_the_kernels():
    kernels = build.kernel_text(CSRC)
    unplaced = []
    for fault in [*barriers(kernels), *FAULTS]:
        try:
            assert fault.plant(kernels) != kernels
        except LookupError as error:
            unplaced.append(str(error))
    assert unplaced == []


def test_kernels_that_do_not_compile_are_an_error(tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(CSRC, tmp_path / "csrc")
    with (copy / "quantize_cuda.cu").open("a") as stream:
        stream.write("void launch() { kernel<<<1, 2; }")
    monkeypatch.setattr(build, "machine_parts", lambda csrc, folder: [])
    monkeypatch.setattr("sys.argv", ["emulation", "--csrc", str(copy)])
    assert emulation.main() == 1
    assert "is not built" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cuda", "cpp"),
    [
        (
            "f<g<2>><<<n, 32>>>(a, h(b));",
            'emulated::launch("f<g<2>>", emulated::configured(n, 32), [=](auto... a) { f<g<2>>(a...); }, a, h(b));',
        ),
        (
            "k<<<1, 32, 4 * n,\n  s>>>();",
            'emulated::launch("k", emulated::configured(1, 32, 4 * n,\n  s), [=](auto... a) { k(a...); });',
        ),
        ("// k<<<1, 2>>>(); __shared__ int x;", "// k<<<1, 2>>>(); __shared__ int x;"),
        (
            "extern __shared__ float v[];",
            "float* const v = static_cast<float*>(emulated::shared_memory(nullptr, 0));",
        ),
        (
            "__shared__ float v[2][kN];",
            "static const char v_site = 0; using v_type = float[2][kN]; "
            "auto& v = *static_cast<v_type*>(emulated::shared_memory(&v_site, sizeof(v_type)));",
        ),
        (
            "__global__ void __launch_bounds__(64, 2) k(F<(2)> x) { f(); }",
            "__global__ void __launch_bounds__(64, 2) k(F<(2)> x) { emulated::check_launch_bounds(64); f(); }",
        ),
    ],
)
def test_translation(cuda, cpp):
    assert translate.translate(cuda, "x.cu") == f'#line 1 "x.cu"\n{cpp}'


@pytest.mark.parametrize("odd", ["(f)<<<1, 2>>>();", "__shared__ float a, b;", "k<<<1, 2(3);"])
def test_what_is_not_translated_is_an_error(odd):
    with pytest.raises(translate.NotUnderstoodError, match=r"understood|close"):
        translate.translate(odd, "x.cu")
