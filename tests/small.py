"""The command line on the digits profile cut to seconds: python tests/small.py run table1 --rows 3 ...

SMALL_EPOCHS and SMALL_DEVICES in the environment say how long its trainings are (one epoch), and by how many processes (one).
"""

import os

from benchmarks import spec
from benchmarks.cli import app


def small(profile: spec.Profile) -> spec.Profile:
    recipe = {"epochs": int(os.environ.get("SMALL_EPOCHS", "1")), "epoch_images": 256, "batch_size": 64}

    def shorter(book: spec.RecipeBook) -> spec.RecipeBook:
        return spec.RecipeBook(base=book.base.model_copy(update=recipe))

    networks = {name: options | {"width": 1 / 16} for name, options in profile.networks.items()}
    books = {"direct": shorter(profile.direct), "ann": shorter(profile.ann), "finetune": shorter(profile.finetune)}
    devices = int(os.environ.get("SMALL_DEVICES", "1"))
    return profile.model_copy(update=books | {"networks": networks, "float64_checks": False, "devices": devices})


def main(words: list[str] | None = None) -> None:
    load = spec.load_profile
    spec.load_profile = lambda name: small(load(name))
    app(words)


if __name__ == "__main__":
    main()
