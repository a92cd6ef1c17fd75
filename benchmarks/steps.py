"""Whole training steps, timed: BERT, the progressive GAN's top resolutions, and optimizers alone."""

import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import nn

import trainkit
from trainkit.precision import Name
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.model import BASE, LARGE, TINY, Architecture, Layer, MaskedLanguageModel, padded_vocab_size
from trainkit_recipes.bert.pretrain import parameter_groups
from trainkit_recipes.progressive_gan.losses import Loss
from trainkit_recipes.progressive_gan.networks import Discriminator, Generator, LowPrecision, Widths

ARCHITECTURES = {"bert-tiny": TINY, "bert-base": BASE, "bert-large": LARGE}
MASK_SHARE = 0.15
# Dense, without sparsity, from NVIDIA's data sheets; fp32 is that of the units that are no matrix units.
PEAKS_TFLOP_PER_S = {
    "H200": {"fp32": 67.0, "tf32": 495.0, "bf16": 989.0, "fp16": 989.0},
    "H100": {"fp32": 67.0, "tf32": 495.0, "bf16": 989.0, "fp16": 989.0},
    "A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0, "fp16": 312.0},
    "V100": {"fp32": 15.7, "fp16": 125.0},
}
SMALL_WIDTHS = Widths(latent_dim=8, fmap_base=64, fmap_max=8, channels=3, stddev_group=4)


def flops_per_token(model: Architecture, vocab_size: int, length: float, share: float) -> float:
    """Multiplications and additions of a forward and a backward pass, which is twice the forward's, a token.

    Each weight of a matrix takes part in one of both: 6 in all. Attention multiplies every token's query with, and sums
    the values of, `length` others: 12 * length * hidden_size a layer. The head works on `share` of the tokens, and so
    does the last layer but for queries, keys and values. What activation checkpointing computes again is not counted.
    """
    hidden = model.hidden_size
    by_token = 6 * (hidden**2 + 2 * hidden * model.feed_forward_size) + 12 * length * hidden
    layers = model.num_layers * 6 * 3 * hidden**2 + (model.num_layers - 1 + share) * by_token
    return layers + 6 * share * (hidden**2 + vocab_size * hidden)


def peak_tflop_per_s(gpu: str, precision: str) -> float | None:
    """None for a GPU that is not in the table."""
    return next((peaks.get(precision) for name, peaks in PEAKS_TFLOP_PER_S.items() if name in gpu), None)


# -- BERT --------------------------------------------------------------------------------------------------------------


def bert_step(
    runtime: trainkit.Runtime, architecture: Architecture, vocab_size: int, length: int, batch_size: int
) -> tuple[dict[str, torch.Tensor], Callable[[Any], None]]:
    """Samples on the CPU, and a step of masked language modelling with AdamW on a batch of them."""
    num_slots = max(1, round(MASK_SHARE * length))
    module = MaskedLanguageModel(architecture, vocab_size)
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=1e-4, fused=runtime.device.type == "cuda")
    engine = runtime.setup(module, optimizer, blocks=(Layer,), max_grad_norm=1.0)
    tokens = torch.randint(vocab_size, (batch_size, length))
    chosen = torch.rand(batch_size, length).argsort(1)[:, :num_slots]
    data = {"tokens": tokens.cpu(), "chosen": chosen.cpu(), "labels": tokens.gather(1, chosen).cpu()}

    def step(batch: Any) -> None:
        logits = engine(batch.tokens, batch.chosen)
        loss, num_masked = masked_loss(logits, batch.labels, in_place=True)
        engine.backward(loss, weight=num_masked)
        engine.step()

    return data, step


def bert(
    name: str,
    length: int,
    batch_size: int,
    precision: str,
    device: str,
    num_steps: int,
    dropout: float = 0.1,
    compiled: bool = False,
) -> dict[str, Any]:
    """Median time of a step of masked language modelling with AdamW, and the share of the peak it is."""
    architecture = replace(ARCHITECTURES[name], max_length=max(length, 64), dropout=dropout, attention_dropout=dropout)
    vocab_size = 512 if name == "bert-tiny" else 30522
    num_slots = max(1, round(MASK_SHARE * length))
    with _runtime(precision, device, compiled) as runtime, torch.device(device):
        data, step = bert_step(runtime, architecture, vocab_size, length, batch_size)
        took_s, host_s = _median_s(runtime, data, batch_size, step, num_steps, device)
    flops = flops_per_token(architecture, padded_vocab_size(vocab_size), length, num_slots / length)
    tflop_per_s = flops * batch_size * length / took_s / 1e12
    peak = peak_tflop_per_s(_gpu(device), precision)
    return {
        "model": name, "length": length, "batch_size": batch_size, "precision": precision,
        "step_ms": round(took_s * 1e3, 3), "host_ms": round(host_s * 1e3, 3),
        "samples_per_s": round(batch_size / took_s, 2),
        "tflop_per_s": round(tflop_per_s, 4), "mfu": peak and round(tflop_per_s / peak, 4),
        "peak_memory_gb": _peak_memory_gb(device),
    }  # fmt: skip


# -- GAN ---------------------------------------------------------------------------------------------------------------


def gan_step(
    runtime: trainkit.Runtime, widths: Widths, resolution: int, batch_size: int
) -> tuple[torch.Tensor, Callable[[Any], None]]:
    """Images on the CPU, and a step of both networks on a batch of them, half-way into the fade of `resolution`."""
    low = LowPrecision.highest(4, resolution, clamp=256.0)
    G, D = (
        runtime.setup(network, torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.99)))
        for network in (kind(widths, resolution, True, low) for kind in (Generator, Discriminator))
    )
    images, loss = torch.rand(batch_size, widths.channels, resolution, resolution).cpu() * 2 - 1, Loss()

    def step(batch: Any) -> None:
        real, fade = batch.data.to(runtime.dtype), 0.5
        with torch.no_grad():
            fake = G(runtime.randn(batch, widths.latent_dim, name="D"), fade)
        mix = runtime.rand(batch, name="mix")
        D.backward(loss.of_discriminator(D, real, fake, mix, fade=fade, penalty_weight=loss.penalty)[0])
        D.step()
        with D.frozen():
            G.backward(loss.of_generator(D(G(runtime.randn(batch, widths.latent_dim, name="G"), fade), fade)))
        G.step()

    return images, step


def gan(resolution: int, batch_size: int, precision: str, device: str, num_steps: int) -> dict[str, Any]:
    """Median time of a step of both networks with the gradient penalty, half-way into the fade of `resolution`."""
    widths = SMALL_WIDTHS if resolution <= 16 else Widths()
    with _runtime(precision, device) as runtime, torch.device(device):
        images, step = gan_step(runtime, widths, resolution, batch_size)
        took_s, host_s = _median_s(runtime, images, batch_size, step, num_steps, device)
    return {
        "model": f"gan-{resolution}", "batch_size": batch_size, "precision": precision,
        "step_ms": round(took_s * 1e3, 3), "host_ms": round(host_s * 1e3, 3),
        "samples_per_s": round(batch_size / took_s, 2),
        "peak_memory_gb": _peak_memory_gb(device),
    }  # fmt: skip


# -- optimizers --------------------------------------------------------------------------------------------------------


def optimizers(device: str) -> dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer] | str]:
    """By name, how each is made; or the reason why it is not there."""
    ours = importlib.import_module("trainkit.optim")
    found: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer] | str] = {
        "torch.optim.AdamW(fused)": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, fused=True),
        "torch.optim.AdamW(foreach)": lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, foreach=True),
    }
    for name in ("AdamW", "Lamb"):
        kind = getattr(ours, name, None)
        found[f"trainkit.optim.{name}"] = "trainkit.optim does not have it" if kind is None else partial(kind, lr=1e-4)
    return found


def optimizer(name: str, model: str, device: str, num_steps: int) -> dict[str, Any]:
    """Median time of `step()` on a BERT's parameters in fp32; what is not there is told as "skipped".

    Bytes are those of an update: weight, gradient and two moments read, all but the gradient written.
    """
    make = optimizers(device)[name]
    if isinstance(make, str):
        return {"optimizer": name, "model": model, "skipped": make}
    with torch.device(device):
        vocab_size = 512 if model == "bert-tiny" else 30522
        parameters = list(MaskedLanguageModel(ARCHITECTURES[model], vocab_size).parameters())
    for p in parameters:
        p.grad = torch.randn_like(p)
    instance = make(parameters)
    times = [_timed_s(instance.step, device) for _ in range(num_steps + 3)][3:]
    took_s, num = statistics.median(times), sum(p.numel() for p in parameters)
    return {"optimizer": name, "model": model, "num_parameters": num, "step_ms": round(took_s * 1e3, 3),
            "gb_per_s": round(7 * 4 * num / took_s / 1e9, 2)}  # fmt: skip


# -- inside ------------------------------------------------------------------------------------------------------------


class _runtime:
    """A Runtime of one process that tells nobody anything, closed in the end."""

    def __init__(self, precision: str, device: str, compiled: bool = False) -> None:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.runtime = trainkit.Runtime(
            strategy="single",
            precision=cast(Name, precision),
            device=cast(Literal["cpu", "cuda"], device),
            compile=compiled,
            tracker=trainkit.Tracker(),
        )

    def __enter__(self) -> trainkit.Runtime:
        return self.runtime

    def __exit__(self, *_: object) -> None:
        self.runtime.close()


def _median_s(
    runtime: trainkit.Runtime, data: Any, batch_size: int, step: Callable[[Any], None], num_steps: int, device: str
) -> tuple[float, float]:
    """Seconds from the end of a step to the end of the next, and those in which the host was busy with it.

    On a GPU nobody waits for the device in between, as in training: where the two are alike, the host is what limits.
    """
    batches: Iterator[Any] = runtime.batches(data, batch_size=batch_size, num_steps=num_steps + 3)
    on_gpu = device == "cuda"
    ends: list[torch.cuda.Event] = []
    host_s: list[float] = []
    with torch.device("cpu"):  # where batches are put together
        for number, batch in enumerate(batches):
            if on_gpu and number == 3:
                torch.cuda.synchronize()
            start = time.perf_counter()
            step(batch)
            host_s.append(time.perf_counter() - start)
            if on_gpu:
                ends.append(_event())
    if not on_gpu:
        return statistics.median(host_s[3:]), statistics.median(host_s[3:])
    torch.cuda.synchronize()
    took_s = [before.elapsed_time(after) / 1e3 for before, after in pairwise(ends[3:])]
    return statistics.median(took_s), statistics.median(host_s[3:])


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _timed_s(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_memory_gb(device: str) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if device == "cuda" else None


def _gpu(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else ""
