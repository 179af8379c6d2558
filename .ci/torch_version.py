"""Fail unless the installed torch is the one in a tox environment's name (torch211-py312: torch 2.11; lowest: the lowest that
pyproject.toml allows); print what is installed.

Usage: python .ci/torch_version.py ENVIRONMENT
"""

import platform
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def expected(environment: str) -> tuple[str, str]:
    """torch's and Python's version, as major.minor, in the name torch<major><minor>-py<major><minor>; for lowest, the project's."""
    if environment == "lowest":
        project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
        torch = next(line for line in project["dependencies"] if line.startswith("torch>="))
        return torch.removeprefix("torch>="), project["requires-python"].removeprefix(">=")
    match = re.fullmatch(r"torch(\d)(\d+)-py(\d)(\d+)", environment)
    if not match:
        raise SystemExit(f"{environment!r} names no torch and Python version: expected a name like torch211-py312")
    return f"{match[1]}.{match[2]}", f"{match[3]}.{match[4]}"


def check(environment: str, torch: str, python: str) -> None:
    """Raise SystemExit unless the versions `torch` and `python` (full, such as 2.11.0+cpu) are those the environment names."""
    for name, want, got in zip(("torch", "Python"), expected(environment), (torch, python), strict=True):
        if got.split(".")[:2] != want.split("."):
            raise SystemExit(f"{environment} needs {name} {want}, but {got} is installed: recreate it (tox run -r)")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    import torch

    print(
        f"torch {torch.__version__}, torchvision {installed('torchvision')}, triton {installed('triton')}, "
        f"Python {platform.python_version()}"
    )
    check(sys.argv[1], torch.__version__, platform.python_version())
