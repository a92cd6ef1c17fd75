"""The progressive GAN's step beside that of pro-gan-pth, at equal widths.

    pip install --no-deps pro-gan-pth==3.4         # its other requirements are for its command
    python benchmarks/gan_peers.py                 # everything; about ten minutes of two idle cores
    python benchmarks/gan_peers.py --resolutions 32 --turns 5

Both networks of both libraries have the same 3x3 kernels, which is checked. A step updates D, with WGAN-GP's penalty,
and G, in a fade, in fp32, with Adam and averaged weights. Ours takes its batches from a loader, and theirs from memory.
pro-gan-pth 3.4 is of 2021: for torch 2.13 one call is given the argument that it lacks, and what it imports for
pictures and logs alone is left out where it is not installed.
    step      one thread, alternately in one process; CPU time is the main figure
    lazy      ours with the logistic loss and R1 in every 16th step, as an option, beside the same
    memory    peak resident memory above that before the networks, in a process each
    cores     two cores: two processes of ours, one of ours, and theirs with two threads, in turns
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once, when torch is imported

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout is enough

from benchmarks.overhead import Stopwatch, in_words, machine, spread, write
from benchmarks.peer_processes import peak_mib, reset_peak

ROOT = Path(__file__).resolve().parent.parent
OURS, LAZY, PEER = "trainkit", "trainkit, lazy R1", "pro-gan-pth"
ONE, TWO, THREADS = "trainkit, one process", "trainkit, two processes", "pro-gan-pth, two threads"
LATENT_DIM, FMAP_BASE, FMAP_MAX, BATCH_SIZE = 128, 2048, 128, 16
NUM_IMAGES = 512
ADAM: dict[str, Any] = {"lr": 1e-3, "betas": (0.0, 0.99), "eps": 1e-8}
GOALS = {"step": 1.8, "memory": 0.7, "ranks": 1.7}

Result = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """Networks and their steps, one at each `next`."""

    steps: Iterator[None]
    networks: tuple[nn.Module, nn.Module]


# -- contenders --------------------------------------------------------------------------------------------------------


def ours(resolution: int, *, batch_size: int = BATCH_SIZE, lazy: bool = False) -> Contender:
    """The recipe, in the fade to `resolution`."""
    import trainkit
    from trainkit.data import Datasets
    from trainkit_recipes.progressive_gan.evaluation import Evaluation
    from trainkit_recipes.progressive_gan.losses import Loss
    from trainkit_recipes.progressive_gan.train import ProgressiveGAN
    from trainkit_recipes.progressive_gan.transfer import Transfer

    images = torch.utils.data.TensorDataset(_images(resolution))
    strategy: Literal["ddp", "single"] = "ddp" if "RANK" in os.environ else "single"
    recipe = ProgressiveGAN(
        trainkit.Runtime(strategy=strategy, device="cpu", seed=1, tracker=trainkit.Tracker()),
        data=Datasets(train=images, held_out=images),
        optimizer=partial(torch.optim.Adam, **ADAM),
        resolution=resolution,
        latent_dim=LATENT_DIM,
        fmap_base=FMAP_BASE,
        fmap_max=FMAP_MAX,
        batch_size=batch_size,
        stable_images=batch_size,
        fade_images=10_000 * batch_size,
        loss=Loss(name="logistic", penalty_every=16) if lazy else None,
        evaluation=Evaluation(at_end=()),
        transfer=Transfer(start_resolution=resolution // 2),
    )
    steps = _ours(recipe)
    next(steps)  # at half the resolution
    next(steps)
    return Contender(steps, (recipe.G.module, recipe.D.module))


def _ours(recipe: Any) -> Iterator[None]:
    for batch in recipe.batches():
        recipe.train_step(batch)
        yield


def theirs(resolution: int) -> Contender:
    """pro-gan-pth's two updates and its average, as its `train` makes them, without its data loader and logs."""
    gan, networks, losses, average = _peer()
    networks.nf.__defaults__ = (FMAP_BASE, 1.0, 1, FMAP_MAX)
    depth = resolution.bit_length() - 1
    torch.manual_seed(1)
    G, D = (make(depth=depth, latent_size=LATENT_DIM) for make in (networks.Generator, networks.Discriminator))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its networks
        both = gan.ProGAN(G, D)
    return Contender(_theirs(both, losses.WganGP(), average, resolution, depth), (G, D))


def _theirs(both: Any, loss: Any, average: Callable[..., None], resolution: int, depth: int) -> Iterator[None]:
    of_D, of_G = (torch.optim.Adam(network.parameters(), **ADAM) for network in (both.dis, both.gen))
    images = _images(resolution).float() / 127.5 - 1.0
    while True:
        for real in images.split(BATCH_SIZE):
            both.optimize_discriminator(loss, of_D, torch.randn(len(real), LATENT_DIM), real, depth, 0.5)
            both.optimize_generator(loss, of_G, torch.randn(len(real), LATENT_DIM), real, depth, 0.5)
            average(both.gen_shadow, both.gen, beta=both.ema_beta)
            yield


def _images(resolution: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (NUM_IMAGES, 3, resolution, resolution), dtype=torch.uint8, generator=generator)


def _peer() -> tuple[Any, Any, Any, Callable[..., None]]:
    unused = {
        "torchvision": (),
        "torchvision.utils": ("save_image",),
        "torchvision.transforms": ("Compose", "RandomHorizontalFlip", "Resize", "ToTensor"),
        "torch.utils.tensorboard": ("SummaryWriter",),
    }
    for name, members in unused.items():
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update({member: mock.Mock() for member in members})
    from pro_gan_pytorch import custom_layers, gan, losses, networks

    custom_layers.EqualizedConvTranspose2d._output_padding = _output_padding
    return gan, networks, losses, custom_layers.update_average


def _output_padding(layer: nn.ConvTranspose2d, *given: Any) -> Any:
    padding: Callable[..., Any] = nn.ConvTranspose2d._output_padding
    return padding(layer, *given, num_spatial_dims=2)


def require_same_kernels(contenders: Mapping[str, Contender]) -> int:
    """The elements of all 3x3 kernels, which are nearly all the work."""
    found = {
        name: sum(p.numel() for network in one.networks for p in network.parameters() if p.shape[2:] == (3, 3))
        for name, one in contenders.items()
    }
    if len(set(found.values())) != 1:
        raise RuntimeError(f"the contenders do not do the same work: their 3x3 kernels have {found} elements")
    return next(iter(found.values()))


# -- sections ----------------------------------------------------------------------------------------------------------


def step(options: argparse.Namespace, resolution: int) -> Result:
    contenders = {OURS: ours(resolution), LAZY: ours(resolution, lazy=True), PEER: theirs(resolution)}
    num_elements = require_same_kernels(contenders)
    turns: dict[str, list[Any]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(1 + options.turns):
        for name in names[turn % 3 :] + names[: turn % 3]:
            watch = Stopwatch(options.steps_a_turn)
            for _ in range(options.steps_a_turn):
                next(contenders[name].steps)
            turns[name].append(watch.read())
        _show(f"{resolution}x{resolution}: turn {turn} of {options.turns}", turn == options.turns)
    found = {}
    for name, every in turns.items():
        pairs = list(zip(every[1:], turns[PEER][1:], strict=True))
        found[name] = {
            "images_a_second": spread([BATCH_SIZE * 1e6 / one.wall_us for one, _ in pairs]),
            "times_pro_gan_pth": spread([other.wall_us / one.wall_us for one, other in pairs]),
            "times_pro_gan_pth_in_cpu_time": spread([other.cpu_us / one.cpu_us for one, other in pairs]),
        }
    size = {"num_turns": options.turns, "steps_a_turn": options.steps_a_turn, "kernel_elements": num_elements}
    return {
        "title": f"step at {resolution}x{resolution}, one thread",
        **size,
        "goal": GOALS["step"],
        "contenders": found,
    }


def memory(options: argparse.Namespace, resolution: int) -> Result:
    peaks = {name: [_child("memory", name, resolution)["mib"] for _ in range(2)] for name in (OURS, LAZY, PEER)}
    least = min(peaks[PEER])
    found = {name: {"peak_mib": min(of), "over_pro_gan_pth": min(of) / least} for name, of in peaks.items()}
    return {"title": f"memory at {resolution}x{resolution}", "goal": GOALS["memory"], "contenders": found}


def cores(options: argparse.Namespace, resolution: int) -> Result:
    """Ours: 16 images a process, so that two processes make a batch of 32."""
    rates: dict[str, list[float]] = {ONE: [], TWO: [], THREADS: []}
    for _ in range(max(3, options.turns // 2)):
        for name, of in rates.items():
            of.append(_child("cores", name, resolution)["images_a_second"])
    found = {
        name: {
            "images_a_second": spread(of),
            "times_one_process": spread([one / alone for one, alone in zip(of, rates[ONE], strict=True)]),
            "times_pro_gan_pth": spread([one / peer for one, peer in zip(of, rates[THREADS], strict=True)]),
        }
        for name, of in rates.items()
    }
    return {"title": f"two cores at {resolution}x{resolution}", "goal": GOALS["ranks"], "contenders": found}


SECTIONS: Mapping[str, Callable[[argparse.Namespace, int], Result]] = {"step": step, "memory": memory, "cores": cores}


# -- a process each ----------------------------------------------------------------------------------------------------


def _child(section: str, name: str, resolution: int) -> dict[str, Any]:
    alone = [sys.executable, __file__]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    command = [*(torchrun if name == TWO else alone), "--child", section, name, str(resolution)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2" if name == THREADS else "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def _be_child(section: str, name: str, resolution: int) -> None:
    if section == "memory":
        # What whoever uses it has imported before.
        _peer() if name == PEER else __import__("trainkit_recipes.progressive_gan.train")
        before = reset_peak()
        contender = theirs(resolution) if name == PEER else ours(resolution, lazy=name == LAZY)
        for _ in range(4):
            next(contender.steps)
        print(json.dumps({"mib": peak_mib() - before}))
        return
    batch_size = 2 * BATCH_SIZE if name == TWO else BATCH_SIZE
    contender = theirs(resolution) if name == THREADS else ours(resolution, batch_size=batch_size)
    next(contender.steps)
    begun, num_steps = time.perf_counter(), 0
    while num_steps < 12:  # every rank makes as many
        next(contender.steps)
        num_steps += 1
    rate = num_steps * batch_size / (time.perf_counter() - begun)
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps({"images_a_second": rate}))


# -- output ------------------------------------------------------------------------------------------------------------


def _show(line: str, is_last: bool) -> None:
    print(f"\r{line} ", end="\n" if is_last else "", file=sys.stderr, flush=True)


def table(result: Result) -> str:
    lines = [f"{result['title']}; median (quartiles), goal {result['goal']}"]
    for name, figures in result["contenders"].items():
        cells = (
            f"{key} {in_words(value, 2) if isinstance(value, dict) else f'{value:.2f}'}"
            for key, value in figures.items()
        )
        lines.append(f"  {name:<28}{'   '.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=[*SECTIONS], default=[*SECTIONS])
    parser.add_argument("--resolutions", nargs="+", type=int, choices=(16, 32, 64, 128), default=[32, 64])
    parser.add_argument("--turns", type=int, default=7, help="of every contender, after one that warms up; at least 2")
    parser.add_argument("--steps-a-turn", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        section, name, resolution = options.child
        _be_child(section, name, int(resolution))
        return
    if options.turns < 2:
        parser.error(f"--turns {options.turns}: must be at least 2")
    torch.set_num_threads(1)
    facts, results = machine(), []
    for resolution in options.resolutions:
        for name in options.sections:
            results.append({"section": name, "resolution": resolution, **SECTIONS[name](options, resolution)})
            print(table(results[-1]), flush=True)
    write("gan-peers", facts, results, options.output)


if __name__ == "__main__":
    main()
