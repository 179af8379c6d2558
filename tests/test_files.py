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


def test_a_name_may_hold_what_a_pattern_reads(tmp_path: Path) -> None:
    path = tmp_path / "a**b[x].csv"
    left = tmp_path / f".part-0-{path.name}"
    left.touch()
    os.utime(left, times=(time.time() - 2 * files.ABANDONED,) * 2)
    files.write_text(path, "a,b\n")
    assert os.listdir(tmp_path) == [path.name]


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


def test_files_written_together_replace_the_old_ones_together(tmp_path: Path) -> None:
    table, page = tmp_path / "new" / "table.csv", tmp_path / "page.html"
    page.write_text("old")
    gone = tmp_path / "old.svg"
    gone.write_text("<svg>")
    with files.together():
        files.write_text(table, "1\n")
        files.write_text(page, "first")
        files.write_text(page, "second")
        assert not table.exists()
        assert page.read_text() == "old"
        assert files.newest(page).read_text() == "second"
        assert files.newest(tmp_path / "other") is None
        files.remove(gone)
        assert files.newest(gone) is None
        assert gone.exists()
    assert not gone.exists()
    assert (table.read_text(), page.read_text()) == ("1\n", "second")
    assert sorted(os.listdir(tmp_path)) == ["new", "page.html"]
    assert files.newest(page) == page


@pytest.mark.parametrize("end", ["raise OSError(28, 'No space left on device')", "os.kill(os.getpid(), 9)"])
def test_of_files_written_together_an_error_or_a_kill_leaves_all_the_old_ones(end: str, tmp_path: Path) -> None:
    names = ("table.csv", "page.html")
    for name in names:
        (tmp_path / name).write_text("old")
    script = (
        "import os, sys; from pathlib import Path; from benchmarks import files\n"
        "with files.together():\n"
        f"    for name in {names}: files.write_text(Path(sys.argv[1], name), 'new')\n"
        f"    {end}"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == (1 if "raise" in end else -9)
    assert [(tmp_path / name).read_text() for name in names] == ["old", "old"]
    if "raise" in end:
        assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "table.csv")
    files.write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "table.csv").read_text() == "x"
