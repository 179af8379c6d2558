"""Files written whole or not at all: under another name in the same folder, down to the disk, then renamed."""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED = 3600.0  # seconds after which a part file is taken for one that a killed process left


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path beside ``path``, with its suffix, to write to: it replaces ``path`` at the end, and goes without a trace on an error.

    A process killed at any moment leaves the old file or the new one, never half of one. The folder is made if it is missing.

    Raises:
        OSError: from the file system, with the old file untouched.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".part-*-{path.name}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    part = path.with_name(f".part-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield part
        _to_disk(part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    with written(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    with written(path) as part:
        part.write_bytes(content)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
