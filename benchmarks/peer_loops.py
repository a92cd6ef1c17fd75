"""Loops that train one model on one text: ours, and transformers' model in a plain loop, in its Trainer and in Fabric.

Each is an iterator: its next step trains on a batch, and gives the number of tokens in it that are no padding.
"""

import importlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainkit import Recipe

LR, MAX_GRAD_NORM, MASK_SHARE = 1e-4, 1.0, 0.15
Inputs = Mapping[str, Tensor]
Collate = Callable[[Sequence[Any]], dict[str, Tensor]]


@dataclass
class Loop:
    """A loop, and its model's loss on given inputs.

    Args:
        steps: trains; see the module.
        loss: of the model as it is, without dropout.
    """

    steps: Iterator[int]
    loss: Callable[[Any], float]


@dataclass
class Peer:
    """A model of transformers, and what it is trained on.

    Args:
        make: makes the model, the same weights at every call.
        samples: of the training set.
        collate: makes a batch of samples.
        batch_size: samples in a batch.
        folder: for what a Trainer writes.
    """

    make: Callable[[], nn.Module]
    samples: Sequence[Any]
    collate: Collate
    batch_size: int
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)  # of TrainingArguments


def own_steps(recipe: Recipe) -> Iterator[int]:
    """Trains a recipe: Engine and Runtime; what Trainer adds is measured by overhead.py."""
    for batch in recipe.batches():
        recipe.train_step(batch)
        data = batch.data
        if "documents" in data:
            yield int((data["documents"] >= 0).sum())
        else:
            yield int(data["lengths"].sum()) if "lengths" in data else data["tokens"].numel()


def plain(peer: Peer, compiled: bool) -> Loop:
    model = peer.make()
    forward = cast(nn.Module, torch.compile(model)) if compiled else model
    return Loop(_plain_steps(peer, model, forward), _loss_of(model, forward))


def _plain_steps(peer: Peer, model: nn.Module, forward: nn.Module) -> Iterator[int]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    for inputs in _batches(peer):
        loss = forward(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        yield num_tokens(inputs)


def fabric(peer: Peer, compiled: bool) -> Loop:
    from lightning.fabric import Fabric

    one = Fabric(accelerator="cpu", devices=1)
    module = peer.make()
    compiled_module = torch.compile(module) if compiled else module
    model, optimizer = one.setup(compiled_module, torch.optim.AdamW(module.parameters(), lr=LR, fused=True))

    def steps() -> Iterator[int]:
        for inputs in _batches(peer):
            loss = model(**inputs).loss
            optimizer.zero_grad()
            one.backward(loss)
            one.clip_gradients(model, optimizer, max_norm=MAX_GRAD_NORM)
            optimizer.step()
            yield num_tokens(inputs)

    return Loop(steps(), _loss_of(module, model))


def trainer(peer: Peer, compiled: bool) -> Loop:
    """The Trainer with its own defaults, apart from what the others do too; in a thread that waits between steps."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    sizes: deque[int] = deque()

    def collate(samples: Sequence[Any]) -> dict[str, Tensor]:
        inputs = peer.collate(samples)
        sizes.append(num_tokens(inputs))
        return inputs

    arguments = TrainingArguments(
        output_dir=str(peer.folder),
        per_device_train_batch_size=peer.batch_size,
        max_steps=1_000_000,
        learning_rate=LR,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        torch_compile=compiled,
        **peer.options,
    )
    pauses = _Pauses()

    class Pausing(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pauses.give(sizes.popleft())  # batches are made ahead of their steps

    model = peer.make()
    made = Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=cast(Any, peer.samples),
        callbacks=[Pausing()],
    )

    def loss(inputs: Inputs) -> float:
        model.eval()
        with torch.no_grad():
            value: Any = made.compute_loss(model, dict(inputs))
        model.train()
        return float(value)

    return Loop(pauses.over(made.train), loss)


LOOPS: Mapping[str, tuple[str, Callable[[Peer, bool], Loop]]] = {
    "transformers, plain loop": ("transformers", plain),
    "HF Trainer": ("accelerate", trainer),
    "Fabric + transformers": ("lightning", fabric),
}
"""By name: the library that it needs besides transformers, and the loop."""


def installed() -> tuple[dict[str, Callable[[Peer, bool], Loop]], dict[str, str]]:
    """The loops that can be measured here, and of the others what to type."""
    found: dict[str, Callable[[Peer, bool], Loop]] = {}
    missing: dict[str, str] = {}
    for name, (library, loop) in LOOPS.items():
        try:
            importlib.import_module(library)
        except ImportError as error:
            missing[name] = f"not measured, {error}: pip install {library}"
        else:
            found[name] = loop
    return found, missing


def num_tokens(inputs: Inputs) -> int:
    return int(inputs["attention_mask"].sum())


def _batches(peer: Peer) -> Iterator[dict[str, Tensor]]:
    for epoch in count():
        order = torch.randperm(len(peer.samples), generator=torch.Generator().manual_seed(epoch))
        loader: Any = torch.utils.data.DataLoader(
            cast(Any, peer.samples), peer.batch_size, sampler=order.tolist(), collate_fn=peer.collate, drop_last=True
        )
        yield from loader


def _loss_of(model: nn.Module, forward: nn.Module) -> Callable[[Inputs], float]:
    def loss(inputs: Inputs) -> float:
        model.eval()
        with torch.no_grad():
            value = forward(**inputs).loss
        model.train()
        return float(value)

    return loss


class _Pauses:
    """Between what a function in a thread of its own gives, it waits until it is asked for the next."""

    def __init__(self) -> None:
        self._asked, self._given = threading.Semaphore(0), queue.SimpleQueue[Any]()

    def give(self, value: int) -> None:
        self._given.put(value)
        self._asked.acquire()

    def over(self, function: Callable[[], Any]) -> Iterator[int]:
        def run() -> None:
            self._asked.acquire()
            try:
                function()
                raise RuntimeError("the loop ended")
            except BaseException as error:
                self._given.put(error)

        threading.Thread(target=run, daemon=True).start()
        while True:
            self._asked.release()
            value = self._given.get()
            if isinstance(value, BaseException):
                raise value
            yield value
