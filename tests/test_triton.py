"""The Triton kernels without a GPU: in Triton's interpreter, and compiled to PTX for one."""

import inspect
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_in_the_interpreter() -> None:
    """The tests of all fused backends; a process of its own, as Triton reads the variable when it is imported."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(Path(__file__).with_name("test_kernels.py")),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def ptx(function: str, steps: int, block: int, dtype: str = "fp32", **flags: object) -> str:
    """What Triton generates for an H100-class GPU, aligned rows, learned Omega and scale."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lmht.kernels import gpu

    if "constexprs" not in inspect.signature(ASTSource).parameters:
        pytest.skip("Triton 3.2 is told what to compile in another way")
    kernel = getattr(gpu, function)
    constants = {
        "T": steps,
        "MIXED": True,
        "POTENTIALS": False,
        "LEVELS": 4,
        "WIDE": tl.float32,
        "BLOCK": block,
        "GROUP": 4,
        **flags,
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    integers = ("size", "stride", "grad_stride", "blocks", "steps")
    signature = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name in integers
        else f"*{dtype if name in ('x', 'grad', 'dx', 'out') else 'fp32'}"
        for name in kernel.arg_names
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in constants},
    )
    options = {"num_warps": gpu.WARPS, "enable_fp_fusion": False}
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


def assert_ieee(code: str) -> None:
    assert re.search(r"div\.rn(\.ftz)?\.f32", code)  # Triton 3.5 takes subnormal numbers for 0
    assert not re.search(r"\b(fma|mad)\.\w*\.?f32|div\.(approx|full)", code)


def test_generated_code() -> None:
    """It compiles; ties are safe (IEEE division, no fused multiply-add); rows are read once, 16 bytes at a time."""
    forward = ptx("_forward", 2, 1024)
    backward = ptx("_backward", 2, 1024, CHAIN=False, PARAMETERS=True)
    chained = ptx("_backward", 2, 1024, CHAIN=True, PARAMETERS=True)
    qcfs = ptx("_qcfs_forward", 1, 1024), ptx("_qcfs_backward", 1, 1024, PARAMETERS=True)
    for code, rows in ((forward, 2), (backward, 4), (chained, 4), (qcfs[0], 1), (qcfs[1], 2)):
        assert_ieee(code)
        assert len(re.findall(r"ld\.global\S*\.v4", code)) == 2 * rows  # 8 elements a thread and row
    for code in ptx("_long_forward", 64, 512), ptx("_long_backward", 64, 512, CHAIN=True, PARAMETERS=True):
        assert_ieee(code)
        assert re.search(r"ld\.global\S*\.v4", code)


# the fullest of each kind: learned Omega (16 bytes a load, where they fit), the input's gradient alone, IF
FULLEST = [(2, 5, "learned"), (2, 8, "learned"), (4, 7, "learned"), (4, 8, "learned"), (4, 8, "dx"), (4, 11, "dx")]
FULLEST += [(4, 16, "chain")]


@pytest.mark.parametrize(("size", "steps", "kind"), FULLEST, ids=str)
def test_no_register_spills(size: int, steps: int, kind: str, tmp_path: Path) -> None:
    compiler = pytest.importorskip("triton.backends.nvidia.compiler")
    if not hasattr(compiler, "get_ptxas"):
        pytest.skip("this Triton does not say where its ptxas is")
    if (size, steps, kind) == (4, 7, "learned") and version("triton").startswith("3.6."):
        pytest.skip("Triton 3.6 spills 8 bytes here")
    from lmht.kernels import gpu

    mixed, parameters = kind != "chain", kind == "learned"
    each = gpu.elements(steps, size, mixed=mixed, parameters=parameters)
    assert each
    flags = {"MIXED": mixed, "PARAMETERS": parameters, "CHAIN": kind == "chain", "GROUP": gpu.vector(size, each)}
    code = ptx("_backward", steps, gpu.WARPS * 32 * each, {2: "bf16", 4: "fp32"}[size], **flags)
    (file := tmp_path / "kernel.ptx").write_text(code)
    architecture = (90,) * len(inspect.signature(compiler.get_ptxas).parameters)  # Triton 3.5 asks for none
    command = [compiler.get_ptxas(*architecture).path, "-v", "-arch=sm_90a", str(file), "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    assert " 0 bytes spill stores" in done.stderr, done.stderr
    shuffles = len(re.findall(r"shfl", code))  # of the sums' last step: what lies in one thread is summed there
    assert shuffles <= 7 * steps * (steps * mixed + 1) * parameters


def test_what_does_not_fit_the_registers_is_read_again() -> None:
    from lmht.kernels.gpu import elements

    assert [elements(t, 4, mixed=True, parameters=True) for t in (1, 2, 4, 8, 9, 16)] == [8, 8, 4, 2, 0, 0]
    assert [elements(t, 2, mixed=True, parameters=True) for t in (1, 2, 4, 8, 9, 16)] == [8, 8, 8, 2, 0, 0]
    assert [elements(t, 4, mixed=False, parameters=False) for t in (1, 16, 17)] == [8, 4, 0]
