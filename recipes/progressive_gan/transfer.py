"""Transfer: networks that start from a trained run instead of random weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainkit import Engine
from trainkit.checkpoint import find, read_manifest
from trainkit.errors import CheckpointError, ConfigError, require_at_least
from trainkit_recipes.progressive_gan.growth import require_resolutions

_SPREAD = "blocks.4.spread.weight"
_OF_IMAGES = ("to_image.", "from_image.")
_SHAPE = ("latent_dim", "fmap_base", "fmap_max", "channels")
IMPLIED_KEYS = (*_SHAPE, "resolution")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Where the networks start: the keys of `recipe.transfer`.

    Growth then starts at the resolution of the trained networks. Layers that these lack are new: those of higher
    resolutions; with another number of `channels`, those between images and features; and vectors of classes that are
    not among the trained ones by name. A run with classes can start from one without, as the same networks, and the
    other way around.

    Args:
        weights: a run of this recipe, or a checkpoint; None: random weights. A configuration takes `latent_dim`,
            `fmap_base`, `fmap_max` and `channels` from it, and `resolution` where that is higher.
        freeze_discriminator: how many of the highest resolutions of the trained discriminator are not trained further:
            the layers next to the image, which Mo et al. (arXiv 2002.10964) call its low layers. They know edges and
            textures, which other pictures share; training them on a few pictures forgets it. 0: all are trained. The
            layers at 4x4 and new resolutions always are.
        start_resolution: the first resolution of growth; None: that of `weights`, otherwise 4.

    Raises:
        ConfigError: for values out of range.
    """

    weights: Path | None = None
    freeze_discriminator: int = 0
    start_resolution: int | None = None

    def __post_init__(self) -> None:
        require_at_least(0, "recipe.transfer.", freeze_discriminator=self.freeze_discriminator)
        if self.start_resolution is not None:
            require_resolutions("transfer.start_resolution", {self.start_resolution: None})


class Restored(Transfer):
    """What a checkpoint says of its start. Its networks hold the weights, which are read nowhere else."""


def freeze(module: nn.Module, sizes: Sequence[int]) -> None:
    """Freezes the layers of a discriminator at these resolutions."""
    for name, parameter in module.named_parameters():
        if name.startswith(_prefixes(sizes)):
            parameter.requires_grad_(False)


def _prefixes(sizes: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"{part}.{size}." for part in ("from_image", "blocks") for size in sizes)


class Start:
    """Fills new networks with the weights that a `Transfer` names, and freezes layers.

    Args:
        transfer: what is taken over.

    Raises:
        CheckpointError: where `weights` hold no checkpoint, or one of another recipe.
        ConfigError: for a `start_resolution` without an output layer, and more frozen resolutions than there are.
    """

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.directory: Path | None = None
        self.resolution = transfer.start_resolution or 4
        self._theirs: tuple[str, ...] = ()
        self._tensors: list[str] = []
        self._filled: set[str] = set()
        if transfer.weights is not None:
            self.directory, manifest = _found(transfer.weights)
            self._tensors = [*manifest["tensors"]]
            self._theirs = tuple(manifest["values"]["recipe"].get("classes", ()))
            self.resolution = self._resolution_of_weights()
        self._frozen_sizes = self._checked_frozen_sizes()

    def state_dict(self) -> dict[str, Any]:
        """Returns the arguments of a Transfer with which a checkpoint can be loaded without these weights."""
        return {**asdict(self.transfer), "weights": None, "start_resolution": self.resolution}

    def prepare(self, module: nn.Module, engine: str, classes: Sequence[str]) -> dict[str, Tensor]:
        """Freezes layers, and fills the first networks, before they become engines.

        Args:
            module: the generator or the discriminator.
            engine: `G` or `D`.
            classes: of the data that is trained on.

        Returns:
            Averaged weights by name, for `take_average`; empty where there are none to take over.

        Raises:
            ConfigError: where the networks have other widths.
        """
        if engine == "D":
            freeze(module, self._frozen_sizes)
        if self.directory is None or engine in self._filled:
            return {}
        self._filled.add(engine)
        return self._fill(module, engine, tuple(classes))

    def describe(self, classes: Sequence[str]) -> str:
        """Returns a line for the user; empty where nothing is taken over."""
        if self.directory is None:
            return ""
        known = f", {len({*classes} & {*self._theirs})} of {len(classes)} classes known" if classes else ""
        frozen = f", frozen in D: {', '.join(f'{size}x{size}' for size in self._frozen_sizes)}"
        size = f"{self.resolution}x{self.resolution}"
        return f"starts from {self.directory} at {size}{known}{frozen if self._frozen_sizes else ''}"

    def _resolution_of_weights(self) -> int:
        sizes = sorted(int(name.split(".")[2]) for name in self._tensors if name.startswith("G.module/to_image."))
        given = self.transfer.start_resolution
        if given is not None and given not in sizes:
            raise ConfigError(
                f"recipe.transfer.start_resolution={given}: {self.directory} makes images of {sizes[0]}x{sizes[0]}; "
                f"leave it out"
            )
        return given or sizes[0]  # the second one of two fades in

    def _checked_frozen_sizes(self) -> list[int]:
        num, most = self.transfer.freeze_discriminator, self.resolution.bit_length() - 3
        if num and self.transfer.weights is None and not isinstance(self.transfer, Restored):
            raise ConfigError(
                f"recipe.transfer.freeze_discriminator={num}: layers with random weights would stay so; give the run "
                f"to start from, weights=RUN"
            )
        if num > most:
            raise ConfigError(
                f"recipe.transfer.freeze_discriminator={num}: the trained discriminator has {most} resolutions above "
                f"4x4; at most so many can be frozen"
            )
        return [self.resolution >> number for number in range(num)]

    def _fill(self, module: nn.Module, engine: str, classes: tuple[str, ...]) -> dict[str, Tensor]:
        from trainkit.checkpoint import read_whole  # imports torch.distributed.checkpoint

        assert self.directory is not None
        parts = {part: f"{engine}.{part}/" for part in ("module", "average")}
        stored = read_whole(self.directory, {name for name in self._tensors if name.startswith((*parts.values(),))})
        own = module.state_dict()
        found = {}
        for part, prefix in parts.items():
            of_part = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
            if of_part:
                found[part] = {
                    name: self._taken(name, value, of_part.get(name), classes) for name, value in own.items()
                }
        module.load_state_dict(found["module"])
        return found.get("average", {})

    def _taken(self, name: str, own: Tensor, theirs: Tensor | None, classes: tuple[str, ...]) -> Tensor:
        """The trained tensor of this name as far as it fits, otherwise the initial one."""
        if name.endswith("classes.weight"):
            return self._of_classes(name, own, theirs, classes)
        if theirs is None or theirs.shape == own.shape:
            return own if theirs is None else theirs.to(own.dtype)
        if name == _SPREAD and theirs.shape[0] == own.shape[0] and bool(self._theirs) != bool(classes):
            latent_dim = min(theirs.shape[1], own.shape[1])
            taken = torch.zeros_like(own)
            # The equalized scale depends on the size of the input: the product stays.
            taken[:, :latent_dim] = theirs[:, :latent_dim] * (own.shape[1] / theirs.shape[1]) ** 0.5
            return taken
        if name.startswith(_OF_IMAGES) and not self._is_frozen(name) and theirs.shape[2:] == own.shape[2:]:
            return own
        key = "channels" if name.startswith(_OF_IMAGES) else "latent_dim, fmap_base and fmap_max"
        raise ConfigError(
            f"weights={self.directory} has {name!r} of {[*theirs.shape]}, and this run of {[*own.shape]}: leave out "
            f"recipe.{key}, which {'is' if key == 'channels' else 'are'} then as in the weights"
        )

    def _is_frozen(self, name: str) -> bool:
        return name.startswith(_prefixes(self._frozen_sizes))

    def _of_classes(self, name: str, own: Tensor, theirs: Tensor | None, classes: tuple[str, ...]) -> Tensor:
        # A new class of the discriminator starts without an opinion; one of the generator needs a vector of its own.
        taken = own.clone() if name == "classes.weight" else torch.zeros_like(own)
        if theirs is not None and theirs.shape[1:] == own.shape[1:]:
            for label, known in enumerate(classes):
                if known in self._theirs:
                    taken[label] = theirs[self._theirs.index(known)]
        return taken


def take_average(engine: Engine, averages: Mapping[str, Tensor]) -> None:
    """Gives an engine these averaged weights, whole ones by name; all of them or none."""
    if engine.average is not None and averages:
        for name, shard in engine.average.shards().items():
            shard.take(averages[name].to(shard.local.device, shard.local.dtype))


def implied_by_weights(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of ProgressiveGAN that `weights` imply: the shape of the trained networks.

    Args:
        given: the arguments as configured.
    """
    path = (given.get("transfer") or {}).get("weights")
    if path is None:
        return {}
    _, manifest = _found(Path(path))
    theirs = (manifest["values"].get("config") or {}).get("recipe") or {}
    implied = {name: theirs[name] for name in _SHAPE if name in theirs}
    highest = max(given.get("resolution", 4), theirs.get("resolution", 4))
    return {**implied, "resolution": highest}


def _found(path: Path) -> tuple[Path, dict[str, Any]]:
    directory = find(path.expanduser())
    manifest = read_manifest(directory)
    if not {"G", "D"} <= set(manifest["engines"]) or "phase" not in (manifest["values"].get("recipe") or {}):
        raise CheckpointError(f"weights={path} holds no progressive GAN: give a run of recipe=progressive_gan")
    return directory, manifest
