"""CIFAR10-DVS: recordings of a 128x128 event camera, as ten frames of event counts at 48x48."""

import logging
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .base import Data, DataError, digest, split
from .images import Items, check_whole, is_junk
from .places import PLACES
from .transforms import recipe

log = logging.getLogger(__name__)

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORDINGS = 1000  # of each class
FRAMES, SENSOR, SIZE = 10, 128, 48


def cifar10_dvs(root: Path, steps: int | None, augment: bool, validation: float, seed: int) -> Data:
    """CIFAR10-DVS from `root`/CIFAR10DVS/CLASS/*.aedat (the original) or *.aedat4 (tonic's re-packing).

    Of each class the first 90 % of the recordings, by their number, train and the rest test. A recording's events are
    cut into ten runs of equally many events, each counted per polarity on 48x48 cells (`frames_of`), unnormalised.
    They become T = `steps` frames (`merge`), or with None one static image, the mean of all ten (the released code's
    reading). The counts are kept in a file beside the recordings.
    """
    if steps is not None and not 1 <= steps <= FRAMES:
        raise ValueError(f"T is 1 to {FRAMES} for CIFAR10-DVS, which has {FRAMES} frames; got {steps}")
    folder = root / "CIFAR10DVS"
    paths = [path for label in CLASSES for path in _recordings(folder / label)]
    labels = np.repeat(np.arange(len(CLASSES)), RECORDINGS)
    names = "\n".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}" for path in paths)
    counts = _counts(folder, paths, digest(names))

    is_test = np.arange(len(paths)) % RECORDINGS >= round(0.9 * RECORDINGS)
    rest, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    train, val = (rest[part] for part in split(labels[rest], validation, seed))
    read = Merge(counts, steps or 1)

    def part(indices: np.ndarray, augmented: bool = False) -> Items:
        transform: Callable[[Tensor], Tensor] = recipe("cifar10-dvs", augmented)
        if steps is None:
            transform = Static(transform)
        return Items(read, indices, labels[indices], transform)

    return Data(
        name="cifar10-dvs" if steps else "cifar10-dvs-averaged",
        train=part(train, augment),
        val=part(val),
        test=part(test),
        classes=len(CLASSES),
        in_channels=2,
        size=SIZE,
        frames=steps is not None,
        digest=digest(names, train, val, test),
        source=str(folder),
    )


def merge(frames: Tensor, steps: int) -> Tensor:
    """[F, ...] -> [T, ...]: means of T groups of consecutive frames, as even as possible, the first groups the longer.

    F = 10, T = 4: frames 0-2, 3-5, 6-7, 8-9. T = 1 is the average of all frames, T = F leaves them as they are.
    """
    return torch.stack([group.mean(0) for group in frames.float().tensor_split(steps)])


class Merge:
    """Reads recording i's frames, merged into `steps`. It holds a path, as a worker would be sent the counts whole."""

    def __init__(self, counts: Path, steps: int) -> None:
        self.counts, self.steps = counts, steps

    def __call__(self, index: int) -> Tensor:
        return merge(torch.from_numpy(np.load(self.counts, mmap_mode="r")[index].copy()), self.steps)


class Static:
    """The transform of [1, C, H, W], and its only frame taken out."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.transform = transform

    def __call__(self, frames: Tensor) -> Tensor:
        return self.transform(frames)[0]


def frames_of(path: Path) -> np.ndarray:
    """Event counts [10, 2, 48, 48] (int16) of a recording: bins of equally many events, the few left over dropped.

    tonic reads and bins; of AEDAT 2.0 we take the addresses apart (its read_dvs_128 of version 1.7 does not run): bit 0
    is the polarity, 1-7 x and 8-14 y, in the camera's orientation, which shows the images mirrored at a diagonal.
    """
    try:
        from tonic.io import get_aer_events_from_file, make_structured_array, read_aedat4, read_aedat_header_from_file
        from tonic.transforms import Compose, Downsample, ToFrame
    except ImportError as error:
        raise DataError(f"CIFAR10-DVS needs tonic to read {path.name} ({error}); pip install tonic aedat") from None
    try:
        with path.open("rb") as file:
            header = file.readline(32).strip()
        if header == b"#!AER-DAT4.0":
            events = read_aedat4(str(path))
            events.dtype.names = ("t", "x", "y", "p")
        elif not header.startswith(b"#!AER-DAT2."):
            raise ValueError(f"its first line is {header!r}: neither AEDAT 2 nor AEDAT 4.0")
        else:
            version, start, *_ = read_aedat_header_from_file(str(path))
            if (path.stat().st_size - start) % 8:
                raise ValueError("it ends inside an event")
            raw = get_aer_events_from_file(str(path), version, start)
            address = raw["address"].astype(np.int64)
            if strange := address[address >> 16 != 0][:1].tolist():  # bit 15 is an event of the camera's plug
                raise ValueError(f"address {strange[0]:#x} has bits that no event of a {SENSOR}x{SENSOR} camera has")
            x, y = SENSOR - 1 - (address >> 8 & 127), SENSOR - 1 - (address >> 1 & 127)
            events = make_structured_array(x, y, raw["timeStamp"], 1 - (address & 1))
        if len(events) < FRAMES:
            raise ValueError(f"{len(events)} events, too few for {FRAMES} frames")
        down = Downsample(sensor_size=(SENSOR, SENSOR, 2), target_size=(SIZE, SIZE))
        return Compose([down, ToFrame(sensor_size=(SIZE, SIZE, 2), n_event_bins=FRAMES)])(events)
    except ImportError as error:
        raise DataError(f"tonic needs one more package to read {path.name} ({error}); pip install aedat") from None
    except Exception as error:  # whatever a decoder says of broken bytes
        raise DataError.damaged("cifar10-dvs", path, str(error)) from None


def _recordings(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError.missing("cifar10-dvs", folder, PLACES["cifar10-dvs"].where)
    names = [path.name for path in folder.iterdir() if path.suffix in (".aedat", ".aedat4") and not is_junk(path.name)]
    numbered = {int(found[2]): found for name in names if (found := re.fullmatch(r"(.*?)(\d+)(\.aedat4?)", name))}
    prefix, suffix = numbered[min(numbered)].group(1, 3) if numbered else (f"cifar10_{folder.name}_", ".aedat")
    first = int(RECORDINGS in numbered)  # from 0 as published, or from 1
    expected = {f"{prefix}{number}{suffix}" for number in range(first, first + RECORDINGS)}
    check_whole("cifar10-dvs", folder, names, (RECORDINGS, RECORDINGS), expected, "recordings")
    return [folder / found[0] for _, found in sorted(numbered.items())]


def _counts(folder: Path, paths: list[Path], key: str) -> Path:
    """All recordings' frames [n, 10, 2, 48, 48]: the file that belongs to these recordings, made if need be."""
    cache = folder / f"frames-{FRAMES}x{SIZE}x{SIZE}-{key[:16]}.npy"
    if not cache.exists():
        log.info("binning %d recordings into %s, once", len(paths), cache)
        partial = cache.with_suffix(f".{uuid.uuid4().hex}.partial")  # several processes may come here at once
        counts = np.lib.format.open_memmap(partial, "w+", np.int16, (len(paths), FRAMES, 2, SIZE, SIZE))
        for index, path in enumerate(paths):
            counts[index] = frames_of(path)
        counts.flush()
        partial.replace(cache)  # whole, or not at all
    return cache
