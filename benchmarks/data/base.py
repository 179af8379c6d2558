"""What every data set has in common: the record, the split, the digest, the seeded loaders, the two errors."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

Batch = tuple[Tensor, Tensor]


class DataError(Exception):
    """Data that are missing or damaged: one line with what, where, and the remedy."""

    @classmethod
    def missing(cls, name: str, path: Path | str, where: str) -> "DataError":
        return cls(f"data set {name} not found at {path}; get it from {where}")

    @classmethod
    def damaged(
        cls, name: str, path: Path | str, problem: str, remedy: str = "delete it and get it again"
    ) -> "DataError":
        return cls(f"data set {name} is damaged: {path}: {problem}; {remedy}")


class Part(Dataset[tuple[Tensor, int]]):
    """One part of a data set, map-style; `labels` [n] may be asked for without its images."""

    labels: Tensor | np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@contextmanager
def downloading(name: str, folder: Path) -> Iterator[None]:
    """Turns a download's errors into one."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise DataError(f"data set {name} not found at {folder}, and its download failed: {error}") from None


@dataclass(frozen=True)
class Data:
    """A data set with its fixed split. Items are (image, label): float32, normalised, [C, H, W], or [T, C, H, W] frames.

    Only `train` is augmented. `digest` is a SHA-256 over the data and the split; `source` says where the data came from.
    `batch_transform` acts on a training batch and may make labels soft ([N, classes] instead of [N]).
    """

    name: str
    train: Part
    val: Part
    test: Part
    classes: int
    in_channels: int
    size: int
    frames: bool
    digest: str
    source: str
    batch_transform: Callable[[Tensor, Tensor], Batch] | None = None


def split(labels: Sequence[int] | np.ndarray, fraction: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Stratified split: sorted indices of the rest and of the part, which takes round(fraction * n) of each class's n.

    The generator is MT19937 with NumPy's legacy seeding, whose stream NumPy promises never to change (NEP 19).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"a split's fraction is in [0, 1), got {fraction}")
    random, labels, part = np.random.RandomState(seed), np.asarray(labels), [np.empty(0, np.int64)]
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        part.append(members[: round(fraction * len(members))])
    chosen = np.sort(np.concatenate(part))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def digest(*parts: np.ndarray | str | bytes) -> str:
    """SHA-256 over arrays (dtype, shape and bytes), strings and bytes, each with its length in front."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = np.ascontiguousarray(part)
            sha.update(f"{part.dtype.str}{part.shape}".encode())
            sha.update(part.data)
        else:
            raw = part.encode() if isinstance(part, str) else part
            sha.update(f"{len(raw)}:".encode() + raw)
    return sha.hexdigest()


class Batches(Sampler[tuple[int, Tensor]]):
    """Keys (seed, indices) of an epoch's chunks of `together` batches: a function of (seed, epoch) alone, not of workers or time.

    With `shuffle`, each pass over the sampler is the next epoch, and `set_epoch(k, b)` goes to the chunk of batch b of epoch k. Of
    `world` processes, `rank` takes every world-th index; a shuffled epoch is cut so that all take equally many.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        together: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is at least 1, got {batch_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank is in 0..world-1, got rank {rank} of world {world}")
        self.n, self.batch_size, self.seed, self.shuffle = n, batch_size, seed, shuffle
        self.rank, self.world, self.together, self.epoch, self.first = rank, world, together, 0, 0

    def set_epoch(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.first = epoch, batch

    def _indices(self) -> int:
        return self.n // self.world if self.shuffle else len(range(self.rank, self.n, self.world))

    @property
    def batches(self) -> int:
        return -(-self._indices() // self.batch_size)

    def __len__(self) -> int:
        return -(-self.batches // self.together)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        # SeedSequence mixes its entries, so that (seed, epoch) and (seed + 1, epoch - 1) have nothing in common
        words = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1 + len(self) * self.world, np.uint64)
        seeds = [int(word) >> 1 for word in words]
        order = torch.arange(self.n)
        if self.shuffle:
            self.epoch += 1
            order = torch.randperm(self.n, generator=torch.Generator().manual_seed(seeds[0]))
        mine = order[self.rank :: self.world][: self._indices()]
        first, self.first = self.first, 0
        for number, indices in enumerate(mine.split(self.together * self.batch_size) if len(mine) else ()):
            if number < first // self.together:
                continue
            yield seeds[1 + number * self.world + self.rank], indices


class Collated(Dataset[Batch]):
    """The data set indexed by a key of `Batches`: fetch, collate and transform a chunk under the chunk's own seed.

    A data set in memory is asked for the chunk at once, any other item by item.
    """

    def __init__(self, data: Part, frames: bool, transform: Callable[[Tensor, Tensor], Batch] | None) -> None:
        self.data, self.frames, self.transform = data, frames, transform

    def __getitem__(self, key: tuple[int, Tensor]) -> Batch:
        seed, indices = key
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
            if isinstance(self.data, InMemory):
                images, labels = self.data.batch(indices)
            else:
                images, labels = default_collate([self.data[i] for i in indices.tolist()])
            if self.frames:
                images = images.transpose(0, 1).contiguous()
            return self.transform(images, labels) if self.transform else (images, labels)


class InMemory(Part):
    """Images [N, C, H, W] of any dtype and labels [N] in memory; many are augmented and normalised at once.

    Args:
        transform: of raw images [n, C, H, W]; it draws from torch's global generator, which the loader seeds.
        together: images that go through it at once, at most, and at least one batch.
    """

    labels: Tensor

    def __init__(
        self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor], together: int = 0
    ) -> None:
        self.images, self.labels, self.transform, self.together = images, labels, transform, together

    def batch(self, indices: Tensor) -> Batch:
        indices = indices.to(self.labels.device)
        return self.transform(self.images[indices]), self.labels[indices]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} images")
        images, labels = self.batch(torch.tensor([index]))
        return images[0], int(labels[0])

    def to(self, device: torch.device) -> "InMemory":
        return InMemory(self.images.to(device), self.labels.to(device), self.transform, self.together)


class Loader:
    """The batches of one part, each pass the next epoch; `sampler.set_epoch(k, b)` goes to batch b of epoch k (from 0).

    Workers begin with a pass when it is made (`iter`), not when its first batch is asked for.
    """

    def __init__(self, chunks: DataLoader[Batch], sampler: Batches, device: torch.device) -> None:
        self.chunks, self.sampler, self.device = chunks, sampler, device

    def __len__(self) -> int:
        return self.sampler.batches

    def __iter__(self) -> Iterator[Batch]:
        return self._batches(self.sampler.first % self.sampler.together, iter(self.chunks))

    def _batches(self, done: int, chunks: Iterator[Batch]) -> Iterator[Batch]:
        for images, labels in self._moved(chunks):
            if self.sampler.together == 1:
                yield images, labels
                continue
            batches = zip(images.split(self.sampler.batch_size), labels.split(self.sampler.batch_size), strict=True)
            yield from itertools.islice(batches, done, None)
            done = 0

    def _moved(self, chunks: Iterator[Batch]) -> Iterator[Batch]:
        try:
            for images, labels in chunks:
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except DataError as error:  # of a worker, with its traceback in front
            raise DataError(str(error).rsplit("DataError: ", 1)[-1].strip()) from None


def loaders(
    data: Data,
    batch_size: int,
    *,
    seed: int,
    workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> tuple[Loader, Loader, Loader]:
    """Iterables over (images, labels) of train (shuffled, augmented), validation and test (in order).

    Images are [N, C, H, W], frames [T, N, C, H, W], labels int64 [N], or [N, classes] after a batch transform. The training
    batches are a function of `seed` and the epoch alone: the same for any number of workers and on any device.

    Batches lie on `device`. Data sets in memory are kept there, but for training images that `workers` augment; what does not lie
    on a GPU comes to it from pinned memory, a chunk at a time.
    Of `world` processes this one, `rank`, gets its part, in batches of `batch_size` each.
    """
    device = torch.device(device)

    def loader(part: Part, train: bool) -> Loader:
        in_memory, together, size = isinstance(part, InMemory), 1, batch_size
        apart = workers > 0 and (train or not in_memory)
        if isinstance(part, InMemory):
            part = part if apart else part.to(device)
            if device.type == "cuda" and not train:
                size = max(batch_size, part.together)  # or a GPU would wait for launches
            together = max(1, part.together // max(1, size))
        sampler = Batches(len(part), size, seed=seed, shuffle=train, rank=rank, world=world, together=together)
        chunks = DataLoader(
            Collated(part, data.frames, data.batch_transform if train else None),
            sampler=sampler,
            batch_size=None,
            num_workers=workers if apart else 0,
            pin_memory=device.type == "cuda" and (apart or not in_memory),
            persistent_workers=apart,
            generator=torch.Generator(),  # for the workers' base seed, else drawn from the global one
        )
        return Loader(chunks, sampler, device)

    return loader(data.train, True), loader(data.val, False), loader(data.test, False)


def crop_and_flip(images: Tensor, pad: int) -> Tensor:
    """Every image of a batch [N, C, H, W] cropped at its own place out of its zero-padded self, half of them mirrored.

    One gather for the batch: what RandomCrop(H, padding=pad) and RandomHorizontalFlip do image by image.
    """
    n, _, height, width = images.shape
    # drawn on the CPU, so that a seed gives the same images on every device
    top, left, flip = torch.randint(2 * pad + 1, (n, 1)), torch.randint(2 * pad + 1, (n, 1)), torch.rand(n, 1) < 0.5
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    rows, columns = rows.to(images.device), torch.where(flip, columns.flip(1), columns).to(images.device)
    padded = F.pad(images, (pad, pad, pad, pad))
    each = torch.arange(n, device=images.device)[:, None, None]
    return padded.movedim(1, -1)[each, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
