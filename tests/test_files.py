"""Written whole or not at all."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import files

ROOT = Path(__file__).parents[1]


def test_a_file_is_replaced_whole_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    files.write_text(path, "a,b\n")
    files.write_bytes(path, b"c,d\n")
    assert path.read_text() == "c,d\n"
    assert os.listdir(path.parent) == ["table.csv"]


def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write_half() -> None:
        with files.written(path) as part:
            part.write_text("ha")
            assert part.suffix == ".csv"  # a figure's format is read off its name
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_killed_while_it_writes_the_old_file_stands(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    script = (
        "import os, sys; from pathlib import Path; from benchmarks import files\n"
        "with files.written(Path(sys.argv[1])) as part:\n"
        "    part.write_text('ha'); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    os.utime(left, (time.time() - 2 * files.ABANDONED,) * 2)
    files.write_text(path, "new")
    assert os.listdir(tmp_path) == ["table.csv"]  # what the dead process left is gone


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "table.csv")
    files.write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "table.csv").read_text() == "x"
