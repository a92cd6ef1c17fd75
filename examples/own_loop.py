"""A GAN on letters in a loop of your own: two optimizers, averaged weights, a checkpoint.

    python examples/own_loop.py
    torchrun --standalone --nproc-per-node=2 examples/own_loop.py

raw_pytorch.py and fabric.py train the same in plain PyTorch and in Lightning Fabric.
"""

import string

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import softplus

import trainkit

SIDE, LATENT_DIM, BATCH_SIZE, NUM_STEPS = 16, 16, 64, 200


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


def train(
    runtime: trainkit.Runtime, generator: nn.Module, discriminator: nn.Module, images: Tensor, num_steps: int
) -> Tensor:
    """Trains both networks; samples [26, SIDE * SIDE] of the averaged generator. Collective: every rank must call."""
    G = runtime.setup(generator, torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.99)), ema_decay=0.98)
    D = runtime.setup(discriminator, torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.99)))

    for step, batch in enumerate(runtime.batches(images, batch_size=BATCH_SIZE, num_steps=num_steps), start=1):
        fake = G(runtime.randn(batch, LATENT_DIM, name="latent"))  # the same numbers on any number of ranks

        D.backward(softplus(D(fake.detach())).mean() + softplus(-D(batch.data)).mean())
        d_loss = D.step().loss  # the mean over the global batch

        with D.frozen():  # no gradient of this loss reaches D's parameters
            G.backward(softplus(-D(fake)).mean())
        g_loss = G.step().loss
        runtime.log(step, d_loss=d_loss, g_loss=g_loss)

    if runtime.run_dir is not None:
        runtime.save(runtime.run_dir / "last", G=G, D=D, step=num_steps)
    latent = torch.randn(26, LATENT_DIM, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), G.averaged():
        samples: Tensor = G(latent.to(runtime.device, runtime.dtype))
    return samples


def main() -> None:
    runtime = trainkit.Runtime(strategy="ddp", seed=0, run_dir="runs/own_loop")
    samples = train(runtime, *networks(), letters(), NUM_STEPS)
    runtime.log_image(
        NUM_STEPS, samples=samples.view(2, 13, SIDE, SIDE).transpose(1, 2).reshape(2 * SIDE, -1) / 2 + 0.5
    )


if __name__ == "__main__":
    main()
