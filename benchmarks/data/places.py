"""Where each data set is looked for, and how to get it."""

from dataclasses import dataclass
from pathlib import Path

IMAGENET = "https://image-net.org/download-images.php (ILSVRC 2012), in torchvision's layout train/WNID, val/WNID"
CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html, or python -m benchmarks data {name} --download"
DVS = (
    "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 (the ten archives, unpacked into one folder per class)"
    ' or tonic.datasets.CIFAR10DVS("ROOT")'
)


@dataclass(frozen=True)
class Place:
    """A data set's folders under the root (an absolute one stands for itself), the first found is taken; where to get it."""

    folders: tuple[str, ...]
    where: str
    downloads: bool = False

    def find(self, root: Path) -> Path | None:
        return next((root / folder for folder in self.folders if (root / folder).is_dir()), None)


PLACES = {
    "digits": Place((), "comes with scikit-learn"),
    "fashion-mnist": Place(
        ("FashionMNIST/raw", "/usr/share/datasets/fashion-mnist"),
        "Debian's package dataset-fashion-mnist, or python -m benchmarks data fashion-mnist --download",
        downloads=True,
    ),
    "cifar10": Place(("cifar-10-batches-py", "cifar10"), CIFAR.format(name="cifar10"), downloads=True),
    "cifar100": Place(("cifar-100-python", "cifar100"), CIFAR.format(name="cifar100"), downloads=True),
    "imagenet200": Place(("tiny-imagenet-200",), "http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked"),
    "imagenet100": Place(("imagenet",), IMAGENET),
    "imagenet1k": Place(("imagenet",), IMAGENET),
    "cifar10-dvs": Place(("CIFAR10DVS",), DVS),
    "cifar10-dvs-averaged": Place(("CIFAR10DVS",), DVS),
}
