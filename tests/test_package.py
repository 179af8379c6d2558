"""The built wheel, from a directory that knows nothing of this repository."""

import os
import subprocess
import sys
from importlib.metadata import PathDistribution
from pathlib import Path

from tests import guards

MINE = """
from lmht import functional
class Mine:
    name = "mine"
    mht = staticmethod(functional.mht)
mine = Mine()
"""


def run(wheel: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


def test_content(wheel: Path) -> None:
    """Typed, with the suite and its command; neither benchmarks nor tests; torch is all that the library asks for."""
    (information,) = wheel.glob("*.dist-info")
    metadata = PathDistribution(information)
    assert {path.parent.name for path in wheel.glob("*/py.typed")} == {"lmht", "theorems"}
    assert {path.name for path in wheel.iterdir() if path.suffix == ""} - {"bin"} == {"lmht", "theorems"}
    (needed,) = [requirement for requirement in metadata.requires or () if "extra ==" not in requirement]
    assert needed.startswith("torch>=")
    (command,) = metadata.entry_points.select(group="console_scripts", name="lmht-theorems")
    assert command.value == "theorems.__main__:main"


def test_the_library_alone_needs_torch_only(wheel: Path, tmp_path: Path) -> None:
    extra = ["hypothesis", "pytest", "z3", "mlflow", "pandas", "sklearn", "torchvision", "ray", "theorems", "triton"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({extra}))  # not to be had
import lmht, lmht.networks, lmht.conversion, lmht.reparameterize
print(lmht.__file__)
print("torch._dynamo" in sys.modules)
"""
    done = run(wheel, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(wheel))
    assert done.stdout.splitlines()[-1] == "False", (
        "torch.compile's machinery takes seconds, and is imported when it is used"
    )


def test_the_suite_for_a_neuron_of_another_project(wheel: Path, tmp_path: Path) -> None:
    """``lmht-theorems`` and plain pytest, with a pytest configuration of the other project that must not matter to the command."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    chosen = ["--statement", "Lemma A.1", "--statement", "Eqs. 5-6"]
    done = run(wheel, tmp_path, "-m", "theorems", "mine:mine", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "about the neuron (mine)" in done.stdout
    assert "integrate_and_fire not provided" in done.stdout
    others = {"__pycache__", ".benchmarks", ".hypothesis"}  # Python's, pytest-benchmark's and Hypothesis's caches
    assert {path.name for path in tmp_path.iterdir()} - others == {"mine.py", "pytest.ini"}
    (tmp_path / "pytest.ini").unlink()
    plain = [
        "-m",
        "pytest",
        "-p",
        "theorems.plugin",
        "--pyargs",
        "theorems",
        "-p",
        "no:cacheprovider",
        "--impl",
        "mine:mine",
    ]
    done = run(wheel, tmp_path, *plain, "--statement", "Lemma A.1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "about the neuron (mine)" in done.stdout


def test_each_test_of_a_fault_has_a_guard_that_can_be_taken_out() -> None:
    """`tox run -e guards` takes each out, and sees the test fail."""
    listed = guards.guards()
    assert {guard.test for guard in listed} == guards.faults()
    assert [guard for guard in listed if (guards.ROOT / guard.file).read_text().count(guard.was) != 1] == []
