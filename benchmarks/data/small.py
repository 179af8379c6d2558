"""Digits (embedded in scikit-learn) and Fashion-MNIST: small enough to live in memory, augmented a batch at a time."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .base import Data, DataError, InMemory, crop_and_flip, digest, downloading, split
from .places import PLACES

DIGITS_MEAN, DIGITS_STD = 0.3058, 0.3766  # of the training and validation pixels / 16
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530  # of the 60 000 training images / 255
DEBIAN = Path("/usr/share/datasets/fashion-mnist")

# The four IDX files, unpacked: size in bytes and MD5. The gzip headers of the original archives and of Debian's package
# differ (Debian's keep neither name nor time; put back, the archives have the MD5 that torchvision lists), the data do not.
FASHION = {
    "train-images-idx3-ubyte": (47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": (60_008, "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": (7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": (10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
}


def digits(validation: float, seed: int) -> Data:
    """The 1 797 grey 8x8 digits of scikit-learn; a fixed stratified 20 % of them tests. Normalised, not augmented."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = images.astype(np.uint8).reshape(-1, 1, 8, 8), labels.astype(np.int64)
    rest, test = split(labels, 0.2)
    train, val = (rest[part] for part in split(labels[rest], validation, seed))

    def part(indices: np.ndarray) -> InMemory:
        pixels, classes = torch.from_numpy(images[indices]), torch.from_numpy(labels[indices])
        return InMemory(pixels, classes, Grey(16 * DIGITS_MEAN, 16 * DIGITS_STD))

    return Data(
        name="digits",
        train=part(train),
        val=part(val),
        test=part(test),
        classes=10,
        in_channels=1,
        size=8,
        frames=False,
        digest=digest(images, labels, train, val, test),
        source="scikit-learn load_digits",
    )


@dataclass(frozen=True)
class Grey:
    """Bytes [n, 1, H, W] as normalised floats, cropped and flipped before if `pad` is given; mean and deviation in bytes."""

    mean: float
    deviation: float
    pad: int = 0

    def __call__(self, images: Tensor) -> Tensor:
        if self.pad:
            images = crop_and_flip(images, self.pad)
        return (images.float() - self.mean) / self.deviation


def fashion_mnist(root: Path, augment: bool, validation: float, seed: int, download: bool) -> Data:
    """The 70 000 grey 28x28 images: torchvision's layout under `root`, else Debian's package dataset-fashion-mnist.

    The recipe (ours; the paper has none) is crop 28 with padding 2, and flip.
    """
    folder = root / "FashionMNIST" / "raw"
    if download:
        from torchvision.datasets import FashionMNIST

        with downloading("fashion-mnist", folder):
            FashionMNIST(root, download=True)
    elif not folder.is_dir() and DEBIAN.is_dir():
        folder = DEBIAN
    images, labels = _idx(folder, "train-images-idx3-ubyte", 28, 28), _idx(folder, "train-labels-idx1-ubyte")
    test_images, test_labels = _idx(folder, "t10k-images-idx3-ubyte", 28, 28), _idx(folder, "t10k-labels-idx1-ubyte")
    train, val = split(labels, validation, seed)

    def part(images: np.ndarray, labels: np.ndarray, augmented: bool = False) -> InMemory:
        pixels, classes = torch.from_numpy(images[:, None]), torch.from_numpy(labels.astype(np.int64))
        return InMemory(pixels, classes, Grey(255 * FASHION_MEAN, 255 * FASHION_STD, pad=2 * augmented))

    return Data(
        name="fashion-mnist",
        train=part(images[train], labels[train], augment),
        val=part(images[val], labels[val]),
        test=part(test_images.copy(), test_labels),
        classes=10,
        in_channels=1,
        size=28,
        frames=False,
        digest=digest(images, labels, test_images, test_labels, train, val),
        source=str(folder),
    )


def _idx(folder: Path, name: str, *shape: int) -> np.ndarray:
    """The bytes of an IDX file, packed or not, as [n, *shape], once size, header and MD5 have been checked."""
    path = next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if path is None:
        place = folder / f"{name}.gz" if folder.is_dir() else folder
        raise DataError.missing("fashion-mnist", place, PLACES["fashion-mnist"].where)
    raw, (size, md5) = path.read_bytes(), FASHION[name]
    if path.suffix == ".gz":
        try:
            raw = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw)  # of a cut file, all that is there
        except zlib.error as error:
            raise DataError.damaged("fashion-mnist", path, f"not a gzip file ({error})") from None
    if len(raw) != size:
        raise DataError.damaged("fashion-mnist", path, f"expected {size} bytes unpacked, found {len(raw)}")
    if (found := hashlib.md5(raw, usedforsecurity=False).hexdigest()) != md5:
        raise DataError.damaged("fashion-mnist", path, f"expected MD5 {md5} unpacked, found {found}")
    return np.frombuffer(raw, np.uint8, offset=8 + 4 * len(shape)).reshape(-1, *shape)
