"""The training of own_loop.py in plain PyTorch: DistributedDataParallel, and all the rest by hand.

    python examples/raw_pytorch.py
    torchrun --standalone --nproc-per-node=2 examples/raw_pytorch.py

Not in it: precision, other strategies, an order of the data and random numbers that do not depend on the number of
ranks after a resume, a checkpoint that appears whole or not at all, trackers, and what happens when a rank fails.
"""

import copy
import os
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.parallel import DistributedDataParallel

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


def train(generator: nn.Module, discriminator: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Trains both networks; samples [26, SIDE * SIDE] of the averaged generator. Collective: every rank must call."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    average = copy.deepcopy(generator)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    G: nn.Module = DistributedDataParallel(generator) if world_size > 1 else generator
    D: nn.Module = DistributedDataParallel(discriminator) if world_size > 1 else discriminator
    losses = torch.zeros(2)

    for step, (images, latent) in enumerate(batches, start=1):
        real = images[rank::world_size]
        fake = G(latent[rank::world_size])

        d_loss = softplus(D(fake.detach())).mean() + softplus(-D(real)).mean()
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()

        discriminator.requires_grad_(False)
        g_loss = softplus(-discriminator(fake)).mean()  # not D: DDP would wait for gradients that do not come
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        discriminator.requires_grad_(True)

        with torch.no_grad():
            for averaged, p in zip(average.parameters(), generator.parameters(), strict=True):
                averaged.lerp_(p, 1 - 0.98)
        losses += torch.stack([d_loss.detach(), g_loss.detach()])
        if step % LOG_EVERY == 0:
            mean = losses / (LOG_EVERY * world_size)
            if world_size > 1:
                dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step:>8}  d_loss {mean[0]:.4f}  g_loss {mean[1]:.4f}")
            losses.zero_()

    latent = torch.randn(26, LATENT_DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        samples: Tensor = average(latent.to(next(average.parameters()).dtype))
    return samples


def main() -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    generator, discriminator = networks()
    train(generator, discriminator, global_batches(letters(), NUM_STEPS))
    if not dist.is_initialized() or dist.get_rank() == 0:
        Path("runs").mkdir(exist_ok=True)
        torch.save({"G": generator.state_dict(), "D": discriminator.state_dict()}, "runs/raw_pytorch.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
