"""The training of own_loop.py in Lightning Fabric, which trainkit does not need.

python examples/fabric.py
torchrun --standalone --nproc-per-node=2 examples/fabric.py
"""

import copy
import os
import string
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import softplus

try:
    from lightning.fabric import Fabric
except ImportError:
    sys.exit("examples/fabric.py needs Lightning Fabric: pip install lightning")

SIDE, LATENT_DIM, BATCH_SIZE, NUM_STEPS, LOG_EVERY = 16, 16, 64, 200, 10


def letters() -> Tensor:
    """float32 [26 letters x 9 offsets, SIDE * SIDE] in -1 .. 1, drawn with the font that Pillow brings."""
    font, images = ImageFont.load_default(), []
    for letter in string.ascii_uppercase:
        for offset in range(9):
            image = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(image).text((3 + offset % 3, offset // 3), letter, fill=255, font=font)
            images.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8))
    return torch.stack(images).float() / 127.5 - 1


def networks() -> tuple[nn.Module, nn.Module]:
    """A generator [N, LATENT_DIM] -> [N, SIDE * SIDE] and a discriminator [N, SIDE * SIDE] -> [N, 1]."""
    generator = nn.Sequential(nn.Linear(LATENT_DIM, 128), nn.ReLU(), nn.Linear(128, SIDE * SIDE), nn.Tanh())
    discriminator = nn.Sequential(nn.Linear(SIDE * SIDE, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
    return generator, discriminator


def global_batches(images: Tensor, num_steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and latent vectors of each global batch, the same on every rank."""
    generator = torch.Generator().manual_seed(0)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(num_steps):
        while len(order) < BATCH_SIZE:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        indices, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
        yield images[indices], torch.randn(BATCH_SIZE, LATENT_DIM, generator=generator)


def train(
    fabric: Any, generator: nn.Module, discriminator: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]
) -> Tensor:
    """Trains both networks; samples [26, SIDE * SIDE] of the averaged generator. Collective: every rank must call."""
    average = copy.deepcopy(generator)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    G, g_optimizer = fabric.setup(generator, g_optimizer)
    D, d_optimizer = fabric.setup(discriminator, d_optimizer)
    losses = torch.zeros(2)

    for step, (images, latent) in enumerate(batches, start=1):
        real = images[fabric.global_rank :: fabric.world_size]
        fake = G(latent[fabric.global_rank :: fabric.world_size])

        d_loss = softplus(D(fake.detach())).mean() + softplus(-D(real)).mean()
        d_optimizer.zero_grad()
        fabric.backward(d_loss)
        d_optimizer.step()

        discriminator.requires_grad_(False)
        g_loss = softplus(-discriminator(fake)).mean()  # not D: DDP would wait for gradients that do not come
        g_optimizer.zero_grad()
        fabric.backward(g_loss)
        g_optimizer.step()
        discriminator.requires_grad_(True)

        with torch.no_grad():
            for averaged, p in zip(average.parameters(), generator.parameters(), strict=True):
                averaged.lerp_(p, 1 - 0.98)
        losses += torch.stack([d_loss.detach(), g_loss.detach()])
        if step % LOG_EVERY == 0:
            mean = fabric.all_reduce(losses / LOG_EVERY, reduce_op="mean")
            fabric.print(f"step {step:>8}  d_loss {mean[0]:.4f}  g_loss {mean[1]:.4f}")
            losses.zero_()

    latent = torch.randn(26, LATENT_DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples: Tensor = average(latent.to(next(average.parameters()).dtype))
    return samples


def main() -> None:
    fabric = Fabric(accelerator="cpu", devices=int(os.environ.get("WORLD_SIZE", 1)), strategy="auto")
    fabric.launch()
    torch.manual_seed(0)
    generator, discriminator = networks()
    train(fabric, generator, discriminator, global_batches(letters(), NUM_STEPS))
    fabric.save("runs/fabric.pt", {"G": generator, "D": discriminator})


if __name__ == "__main__":
    main()
