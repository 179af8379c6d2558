"""The Triton kernels without a GPU: in Triton's interpreter, and compiled to PTX for one."""

import os
import re
import subprocess
import sys
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


def ptx(function: str, steps: int, block: int, **flags: object) -> str:
    """What Triton generates for an H100-class GPU, float32, aligned rows, learned Omega and scale."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lmht.kernels import gpu

    kernel = getattr(gpu, function)
    constants = {
        "T": steps,
        "MIXED": True,
        "POTENTIALS": False,
        "LEVELS": 4,
        "WIDE": tl.float32,
        "BLOCK": block,
        **flags,
    }
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    integers = ("size", "stride", "grad_stride", "blocks", "steps")
    signature = {
        name: "constexpr" if name in constants else "i32" if name in integers else "*fp32" for name in kernel.arg_names
    }
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in constants},
    )
    options = {"num_warps": gpu.WARPS, "enable_fp_fusion": False}
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


def test_generated_code() -> None:
    """It compiles; ties are safe (IEEE division, no fused multiply-add); rows are read once, 16 bytes at a time."""
    forward = ptx("_forward", 2, 1024)
    backward = ptx("_backward", 2, 1024, CHAIN=False, PARAMETERS=True)
    chained = ptx("_backward", 2, 1024, CHAIN=True, PARAMETERS=True)
    qcfs = ptx("_qcfs_forward", 1, 1024), ptx("_qcfs_backward", 1, 1024, PARAMETERS=True)
    for code, rows in ((forward, 2), (backward, 4), (chained, 4), (qcfs[0], 1), (qcfs[1], 2)):
        assert "div.rn.f32" in code
        assert not re.search(r"\b(fma|mad)\.\w*\.?f32|div\.(approx|full)", code)
        assert len(re.findall(r"ld\.global\S*\.v4", code)) == 2 * rows  # 8 elements a thread and row
    for code in ptx("_long_forward", 64, 512), ptx("_long_backward", 64, 512, CHAIN=True, PARAMETERS=True):
        assert "div.rn.f32" in code
        assert not re.search(r"\b(fma|mad)\.\w*\.?f32|div\.(approx|full)", code)
        assert re.search(r"ld\.global\S*\.v4", code)
