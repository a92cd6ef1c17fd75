"""A progressive GAN of two resolutions, small enough to train in a test."""

from functools import partial

import torch

from trainkit import Runtime, Tracker
from trainkit.data import Datasets
from trainkit_recipes.progressive_gan.evaluation import Evaluation
from trainkit_recipes.progressive_gan.networks import Widths
from trainkit_recipes.progressive_gan.train import ProgressiveGAN

SMALL = Widths(latent_dim=8, fmap_base=64, fmap_max=16, channels=3)


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, images, labels=None):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        item = {"images": self.images[index]}
        return item if self.labels is None else {**item, "labels": self.labels[index]}


def make_recipe(
    grad_accumulation_steps=1, batch_size=16, precision="fp64", strategy="ddp", classes=(), runtime=None, **settings
):
    """A recipe on 80 random pictures, with `classes` in turns; `settings` are arguments of ProgressiveGAN."""
    runtime = runtime or Runtime(precision=precision, seed=5, tracker=Tracker(), device="cpu", strategy=strategy)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, settings.get("channels", 3), 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(96) % len(classes) if classes else None
    of_both = (None, None) if labels is None else (labels[:80], labels[80:])
    data = Datasets(train=Rows(images[:80], of_both[0]), held_out=Rows(images[80:], of_both[1]), classes=tuple(classes))
    arguments = {
        "optimizer": partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99)),
        "resolution": 8,
        "latent_dim": 8,
        "fmap_base": 32,
        "fmap_max": 8,
        "stable_images": 32,
        "fade_images": 128,
        "evaluation": Evaluation(num_directions=16),
        **settings,
    }
    return ProgressiveGAN(
        runtime,
        data=data,
        batch_size=batch_size,
        grad_accumulation_steps=grad_accumulation_steps,
        **arguments,
    )
