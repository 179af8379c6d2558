"""Recipes of the paper as torchvision transforms of one image, of many at once, of one batch; constants are of pixels in [0, 1]."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .base import crop_and_flip

STATISTICS = {  # mean and standard deviation per channel
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": (tuple(x / 255 for x in (129.3, 124.1, 112.4)), tuple(x / 255 for x in (68.2, 65.4, 70.4))),
    "imagenet200": ((0.480, 0.448, 0.398), (0.272, 0.266, 0.274)),
    "imagenet1k": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's: the paper gives none
}
STATISTICS["imagenet100"] = STATISTICS["imagenet1k"]


class Cutout(nn.Module):
    """Zero a square of the last two axes, centred anywhere in the image and clipped by its border (DeVries 2017).

    Images are [..., H, W], or with `each` [n, C, H, W], a square each. The side is drawn from `sides`, a number or an inclusive
    range. After normalisation zero is the mean colour. (RandomErasing always erases a whole rectangle inside the image.)
    """

    def __init__(self, sides: int | tuple[int, int], each: bool = False) -> None:
        super().__init__()
        self.low, self.high = (sides, sides) if isinstance(sides, int) else sides
        self.each = each

    def forward(self, images: Tensor) -> Tensor:
        shape = (len(images), 1, 1, 1) if self.each else (1,)
        height, width = images.shape[-2:]
        side = torch.randint(self.low, self.high + 1, shape)
        top, left = torch.randint(height, shape) - side // 2, torch.randint(width, shape) - side // 2
        rows, columns = torch.arange(height)[:, None], torch.arange(width)
        inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        return images.masked_fill(inside.to(images.device), 0)


class AutoAugmentEach(v2.AutoAugment):
    """AutoAugment of images [n, C, H, W] of bytes, each with a policy of its own; torchvision's gives one policy to all of them.

    The images that draw the same operation and magnitude, one of a policy's fixed values, go through it together.
    """

    def forward(self, images: Tensor) -> Tensor:
        images = images.clone()
        policies = torch.randint(len(self._policies), (len(images),))
        chances, signs = torch.rand(2, len(images)), torch.rand(2, len(images))
        for place, chance, sign in zip(range(2), chances, signs, strict=True):  # a policy has two operations
            kinds: dict[tuple[str, float], int] = {}
            drawn = torch.full((len(self._policies), 2), -1)  # kind of operation, by policy and sign
            for number, policy in enumerate(self._policies):
                operation, _, index = policy[place]
                values, signed = self._AUGMENTATION_SPACE[operation]
                magnitudes = values(10, *images.shape[-2:])
                magnitude = 0.0 if magnitudes is None else float(magnitudes[index])
                for negative in range(2):
                    value = -magnitude if signed and negative else magnitude
                    drawn[number, negative] = kinds.setdefault((operation, value), len(kinds))
            probabilities = torch.tensor([policy[place][1] for policy in self._policies])
            mine = drawn[policies, (sign <= 0.5).long()]
            mine[chance > probabilities[policies]] = len(kinds)
            counts = mine.bincount(minlength=len(kinds) + 1).tolist()
            order = mine.argsort(stable=True).to(images.device)  # once: a GPU waits for each list that it is given
            for (operation, value), rows in zip([*kinds, ("Identity", 0.0)], order.split(counts), strict=True):
                if len(rows) and operation != "Identity":
                    images[rows] = self._apply_image_or_video_transform(
                        images[rows], operation, value, interpolation=self.interpolation, fill=self._fill
                    )
        return images


class CifarEach(nn.Module):
    """CIFAR's recipe for many images [n, 3, 32, 32] of bytes at once: each draws its own crop, flip, policy and square."""

    def __init__(self, name: str, augment: bool) -> None:
        super().__init__()
        self.statistics = [list(x) for x in STATISTICS[name]]
        crop = partial(crop_and_flip, pad=4)
        self.before = v2.Compose([crop, AutoAugmentEach(v2.AutoAugmentPolicy.CIFAR10)]) if augment else None
        self.after = Cutout(16 if name == "cifar10" else 12, each=True) if augment else None

    def forward(self, images: Tensor) -> Tensor:
        images = self.before(images) if self.before else images
        images = F.normalize(F.to_dtype(images, torch.float32, scale=True), *self.statistics, inplace=True)
        return self.after(images) if self.after else images


def roll(frames: Tensor, most: int = 5) -> Tensor:
    """Frames [..., H, W] shifted by up to `most` pixels along both axes, what leaves at one side entering at the other."""
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    return frames.roll((down, right), (-2, -1))


def recipe(name: str, augment: bool) -> v2.Transform:
    """The transform of one training image of ImageNet or CIFAR10-DVS, or, without `augment`, of one evaluated image."""
    if name == "cifar10-dvs":  # of frames [T, 2, 48, 48]: all frames of a recording get the same
        one_of = v2.RandomChoice([v2.Lambda(roll), v2.RandomRotation(15), Cutout((1, 8))])
        return v2.Compose([v2.RandomHorizontalFlip(), one_of] if augment else [v2.Identity()])
    to_tensor = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*STATISTICS[name])]
    evaluate: list[nn.Module] = []
    if name == "imagenet200":
        train = v2.RandomResizedCrop(64, antialias=True)
    else:
        train = v2.RandomResizedCrop(224, antialias=True)
        evaluate = [v2.Resize(256, antialias=True), v2.CenterCrop(224)]
    if not augment:
        return v2.Compose([v2.ToImage(), *evaluate, *to_tensor])
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.IMAGENET)
    return v2.Compose([v2.ToImage(), train, v2.RandomHorizontalFlip(), policy, *to_tensor])


class MixAndSmooth(nn.Module):
    """MixUp (alpha) or CutMix (alpha), one of them for each batch, then labels smoothed: y (1 - s) + s / classes."""

    def __init__(self, classes: int, mixup: float, cutmix: float, smoothing: float) -> None:
        super().__init__()
        mixes = [v2.MixUp(alpha=mixup, num_classes=classes), v2.CutMix(alpha=cutmix, num_classes=classes)]
        self.mix, self.smoothing, self.classes = v2.RandomChoice(mixes), smoothing, classes

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, soft = self.mix(images, labels)
        return images, soft * (1 - self.smoothing) + self.smoothing / self.classes


def batch_transform(name: str, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """The recipe's transform of a training batch (images, labels [N]) into (images, soft labels [N, classes]).

    ImageNet-1k's MixUp 0.8, CutMix 1.0 and label smoothing 0.1, for its 100-class subset as well; None for the others.
    """
    return MixAndSmooth(classes, 0.8, 1.0, 0.1) if name in ("imagenet1k", "imagenet100") else None
