"""A recipe and a data set of your own: which letter is drawn in a picture with noise?

trainkit train --config-dir examples/own_recipe/conf recipe=letters
trainkit train --config-dir examples/own_recipe/conf experiment=letters_short --processes 2
"""

import string
from collections.abc import Callable, Iterator

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

import trainkit
from trainkit.data import Batch, Datasets

SIDE = 16


class NoisyLetters(Dataset[dict[str, Tensor]]):
    """Letters drawn at one of nine places, with noise.

    Args:
        num_samples: Number of pictures.
        seed: Of letters, places and noise.
        noise: Its standard deviation; black is 0 and white is 1.
    """

    def __init__(self, num_samples: int, seed: int, noise: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.letter = torch.randint(26, (num_samples,), generator=generator)
        drawn = _drawn()[self.letter, torch.randint(9, (num_samples,), generator=generator)]
        self.pixels = drawn + noise * torch.randn(drawn.shape, generator=generator)

    def __len__(self) -> int:
        return len(self.letter)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index], "letter": self.letter[index]}


def _drawn() -> Tensor:
    """float32 [26 letters, 9 places, SIDE, SIDE] in 0 .. 1, with the font that Pillow brings."""
    font, images = ImageFont.load_default(), []
    for letter in string.ascii_uppercase:
        for place in range(9):
            image = Image.new("L", (SIDE, SIDE))
            ImageDraw.Draw(image).text((3 + place % 3, place // 3), letter, fill=255, font=font)
            images.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8))
    return torch.stack(images).view(26, 9, SIDE, SIDE).float() / 255


class Letters(trainkit.Recipe):
    """Its arguments after `runtime` are the keys of conf/recipe/letters.yaml."""

    datasets: Datasets
    best_metric = "-accuracy"  # the checkpoint with the highest one is kept

    def __init__(
        self,
        runtime: trainkit.Runtime,
        *,
        data: Datasets,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[int, int], float] | None = None,
        batch_size: int = 64,
        num_steps: int = 300,
        hidden_size: int = 128,
        grad_accumulation_steps: int = 1,
    ) -> None:
        self.runtime, self.datasets, self.batch_size = runtime, data.load(), batch_size
        self.num_samples = num_steps * batch_size
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE * SIDE, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 26)
        )
        self.network = runtime.setup(
            network,
            optimizer,
            name="network",
            schedule=schedule,
            max_grad_norm=1.0,
            grad_accumulation_steps=grad_accumulation_steps,
        )

    def engines(self) -> dict[str, trainkit.Engine]:
        return {"network": self.network}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return self.runtime.batches(self.datasets.train, batch_size=self.batch_size, start=start)

    def train_step(self, batch: Batch) -> dict[str, Tensor | float | trainkit.Last]:
        for micro in self.network.micro_batches(batch):
            self.network.backward(cross_entropy(self.network(micro.pixels), micro.letter))
        return self.network.step().metrics()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        loss, correct, count = torch.zeros(()), torch.zeros(()), 0
        for batch in self.runtime.evaluation_batches(self.datasets.held_out, batch_size=256):
            scores = self.network(batch.pixels)
            loss = loss + cross_entropy(scores, batch.letter, reduction="sum").cpu()
            correct = correct + (scores.argmax(dim=1) == batch.letter).sum().cpu()
            count += len(batch)
        total = self.runtime.ranks.all_reduce_sum({"loss": loss, "correct": correct, "count": count})
        return {"held_out_loss": total["loss"] / total["count"], "accuracy": total["correct"] / total["count"]}

    def baselines(self) -> dict[str, dict[str, float]]:
        return {"accuracy": {"chance": 1 / 26}}  # a dashed line in curve.png
