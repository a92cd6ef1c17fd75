"""A translation GAN small enough to train in a test."""

from functools import partial

import torch

from trainkit import Runtime, Tracker
from trainkit.data import Datasets, SideBySide, Unpaired
from trainkit_recipes.translation_gan.evaluation import Evaluation
from trainkit_recipes.translation_gan.networks import Shape
from trainkit_recipes.translation_gan.train import Losses, TranslationGAN

# Not 8: an instance norm of 2x2 pixels, where few differ, makes rounding errors a hundred times larger.
TINY = Shape(resolution=16, channels=3, generator_channels=4, discriminator_channels=4, num_blocks=1)
ADAM = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))


def pictures(num, seed=0, size=16):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator)
    return [{"images": image} for image in images]


def make_recipe(grad_accumulation_steps=1, *, strategy="ddp", precision="fp64", optimizer=ADAM, **settings):
    """A recipe on 24 and 16 random pictures; `settings` are arguments of TranslationGAN."""
    runtime = Runtime(strategy=strategy, precision=precision, seed=5, tracker=Tracker(), device="cpu")
    data = Datasets(train=Unpaired(pictures(24), pictures(16, 1)), held_out=SideBySide(pictures(9, 2), pictures(7, 3)))
    arguments = {
        "networks": TINY,
        "batch_size": 8,
        "num_steps": 4,
        "ema_decay": 0.9,
        "losses": Losses(identity=0.5),
        "pool_size": 10,
        "evaluation": Evaluation(num_directions=16, num_patches=2, batch_size=4, num_shown=2),
        **settings,
    }
    return TranslationGAN(
        runtime, data=data, optimizer=optimizer, grad_accumulation_steps=grad_accumulation_steps, **arguments
    )


def tensors_of(recipe, *parts):
    """Parts of all engines' states, float64. Collective: every rank calls; rank 0 holds everything."""
    states = {name: engine.state_dict() for name, engine in recipe.engines().items()}
    return {
        f"{name}.{part}.{key}": tensor.double().clone()
        for name, state in states.items()
        for part in parts
        for key, tensor in state[part].items()
    }
