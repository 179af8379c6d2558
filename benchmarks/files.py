"""Files written whole or not at all: under another name in the same folder, down to the disk, then renamed."""

import glob
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

ABANDONED = 3600.0  # seconds after which a part file is taken for one that a killed process left
# of a block together: what replaces a file at its end (None: the file goes)
_parts: ContextVar[dict[Path, Path | None] | None] = ContextVar("_parts", default=None)


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path beside ``path``, with its suffix, to write to: it replaces ``path`` at the end, and goes without a trace on an error.

    A process killed at any moment leaves the old file or the new one, never half of one. The folder is made if it is missing.

    Raises:
        OSError: from the file system, with the old file untouched.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".part-*-{glob.escape(path.name)}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()
    part = path.with_name(f".part-{uuid.uuid4().hex[:8]}-{path.name}")
    parts = _parts.get()
    try:
        yield part
        to_disk(part)
        if parts is None:
            os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if parts is None:
        to_disk(path.parent)
        return
    _drop(parts.get(path))
    parts[path] = part


@contextmanager
def together() -> Iterator[None]:
    """A block whose files replace the old ones at its end, one rename right after another: what takes long comes before the first.

    An error or a kill within it leaves all the old files.
    """
    parts: dict[Path, Path | None] = {}
    token = _parts.set(parts)
    try:
        yield
        for path, part in parts.items():
            if part:
                os.replace(part, path)
            else:
                path.unlink(missing_ok=True)
    finally:
        _parts.reset(token)
        for part in parts.values():
            _drop(part)
    for folder in {path.parent for path in parts}:
        to_disk(folder)


def remove(path: Path) -> None:
    """Remove a file; in a block :func:`together` at its end."""
    parts, path = _parts.get(), Path(os.path.realpath(path))
    if parts is None:
        path.unlink(missing_ok=True)
        return
    _drop(parts.get(path))
    parts[path] = None


def newest(path: Path) -> Path | None:
    """Where a file's newest content is, in a block :func:`together` beside it; None for one that is not there, or is to go."""
    found = (_parts.get() or {}).get(Path(os.path.realpath(path)), path)
    return found if found and found.exists() else None


def _drop(part: Path | None) -> None:
    if part:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with written(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    with written(path) as part:
        part.write_bytes(content)


def to_disk(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
