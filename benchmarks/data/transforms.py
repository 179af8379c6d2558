"""Recipes of the paper as torchvision transforms of one image and of one batch; constants are of pixels in [0, 1]."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

STATISTICS = {  # mean and standard deviation per channel
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": (tuple(x / 255 for x in (129.3, 124.1, 112.4)), tuple(x / 255 for x in (68.2, 65.4, 70.4))),
    "imagenet200": ((0.480, 0.448, 0.398), (0.272, 0.266, 0.274)),
    "imagenet1k": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's: the paper gives none
}
STATISTICS["imagenet100"] = STATISTICS["imagenet1k"]


class Cutout(nn.Module):
    """Zero a square of the last two axes, centred anywhere in the image and clipped by its border (DeVries 2017).

    The side is drawn from `sides`, a number or an inclusive range. After normalisation zero is the mean colour.
    (RandomErasing always erases a whole rectangle inside the image.)
    """

    def __init__(self, sides: int | tuple[int, int]) -> None:
        super().__init__()
        self.low, self.high = (sides, sides) if isinstance(sides, int) else sides

    def forward(self, image: Tensor) -> Tensor:
        side = int(torch.randint(self.low, self.high + 1, ()))
        spans = []
        for size in image.shape[-2:]:
            start = int(torch.randint(size, ())) - side // 2
            spans.append(slice(max(start, 0), max(start + side, 0)))
        image = image.clone()
        image[..., spans[0], spans[1]] = 0
        return image


def roll(frames: Tensor, most: int = 5) -> Tensor:
    """Frames [..., H, W] shifted by up to `most` pixels along both axes, what leaves at one side entering at the other."""
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    return frames.roll((down, right), (-2, -1))


def recipe(name: str, augment: bool) -> v2.Transform:
    """The transform of one training image of data set `name`, or, without `augment`, of one evaluated image."""
    if name == "cifar10-dvs":  # of frames [T, 2, 48, 48]: all frames of a recording get the same
        one_of = v2.RandomChoice([v2.Lambda(roll), v2.RandomRotation(15), Cutout((1, 8))])
        return v2.Compose([v2.RandomHorizontalFlip(), one_of] if augment else [v2.Identity()])
    to_tensor = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*STATISTICS[name])]
    flip, policy = v2.RandomHorizontalFlip(), v2.AutoAugmentPolicy.IMAGENET
    cutout: list[nn.Module] = []
    match name:
        case "cifar10" | "cifar100":
            train, policy = v2.RandomCrop(32, padding=4), v2.AutoAugmentPolicy.CIFAR10
            evaluate: list[nn.Module] = []
            cutout = [Cutout(16 if name == "cifar10" else 12)]
        case "imagenet200":
            train, evaluate = v2.RandomResizedCrop(64, antialias=True), []
        case _:
            train, evaluate = (
                v2.RandomResizedCrop(224, antialias=True),
                [v2.Resize(256, antialias=True), v2.CenterCrop(224)],
            )
    if not augment:
        return v2.Compose([v2.ToImage(), *evaluate, *to_tensor])
    return v2.Compose([v2.ToImage(), train, flip, v2.AutoAugment(policy), *to_tensor, *cutout])


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
