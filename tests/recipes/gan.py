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
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"images": self.images[index]}


def make_recipe(grad_accumulation_steps=1, batch_size=16, precision="fp64", runtime=None, **settings):
    """A recipe on 80 random pictures; `settings` are arguments of ProgressiveGAN."""
    runtime = runtime or Runtime(precision=precision, seed=5, tracker=Tracker(), device="cpu")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8, generator=generator)
    data = Datasets(train=Rows(images[:80]), held_out=Rows(images[80:]))
    arguments = {
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
        optimizer=partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99)),
        batch_size=batch_size,
        grad_accumulation_steps=grad_accumulation_steps,
        **arguments,
    )
