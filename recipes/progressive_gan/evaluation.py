"""Evaluation: what is measured of a generator, and an evaluator that measures it on held-out images."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainkit import Runtime
from trainkit.data import Datasets, track
from trainkit.errors import ConfigError, nearest, require_at_least
from trainkit.evaluation import Better
from trainkit_recipes.progressive_gan.collected import OF_FEATURES, Collected, collect, compare
from trainkit_recipes.progressive_gan.image_sets import Generate, GeneratedImages, ImageSet, RealImages
from trainkit_recipes.progressive_gan.metrics.copying import NUM_NEIGHBOURS, Copying, pixels
from trainkit_recipes.progressive_gan.metrics.features import INSTALL, FeatureNetwork, Features, load_network
from trainkit_recipes.progressive_gan.metrics.ms_ssim import diversity, num_scales
from trainkit_recipes.progressive_gan.metrics.nearest import Nearest
from trainkit_recipes.progressive_gan.metrics.precision_recall import K_DENSITY
from trainkit_recipes.progressive_gan.real_images import at_resolution

METRICS = ("swd", "ms_ssim", *OF_FEATURES, "copying", "copying_in_features")
"""What can be measured."""
_NEED_NETWORK = (*OF_FEATURES, "copying_in_features")
MOST_COMPARED = 2048  # samples and held-out images whose nearest training images are searched
_FEWEST = K_DENSITY + 1  # images, for the distances between features


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation measures and shows: the keys of `recipe.evaluation`.

    Args:
        metrics: of METRICS, measured at every evaluation.
        at_end: of METRICS, measured at the end of a run only.
        batch_size: samples in a global batch.
        num_images: held-out images at most, and as many generated ones.
        num_patches: of the sliced Wasserstein distance, per image.
        num_directions: of its projections.
        num_pairs: of generated images, for MS-SSIM.
        num_shown: images in a grid.
        features: the network of `frechet`, `kernel`, `precision_recall` and `copying_in_features`.

    Raises:
        ConfigError: for values below 1, and metrics that do not exist.
    """

    metrics: Sequence[str] = ("swd",)
    at_end: Sequence[str] = ("ms_ssim", *OF_FEATURES, "copying")
    batch_size: int = 64
    num_images: int = 16_384
    num_patches: int = 128
    num_directions: int = 512
    num_pairs: int = 10_000
    num_shown: int = 64
    features: Features = field(default_factory=Features)

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        require_at_least(1, "recipe.evaluation.", **numbers)
        for key in ("metrics", "at_end"):
            require_known(getattr(self, key), f"recipe.evaluation.{key}")


def require_known(metrics: Sequence[str], key: str) -> None:
    """Raises ConfigError for a name that is not in METRICS."""
    for name in metrics:
        if name not in METRICS:
            raise ConfigError(
                f"{key}={[*metrics]}: {name} must be one of {', '.join(METRICS)}.{nearest(name, METRICS)}"
            )


class Evaluator:
    """Measures images of a generator against the held-out ones. All its methods are collective.

    Args:
        runtime: of the run.
        settings: what is measured.
        datasets: training and held-out images; where there are none, nothing can be measured.

    Raises:
        ConfigError: for a feature network that cannot be used.
    """

    def __init__(
        self,
        runtime: Runtime,
        settings: Evaluation,
        datasets: Datasets,
    ) -> None:
        self.runtime, self.settings, self.datasets = runtime, settings, datasets
        self.report: Callable[[str], None] = self._tell
        """Called with lines for the user, each once."""
        self._reported: set[str] = set()
        self._floors: dict[int, dict[str, float]] = {}
        self._floor_metrics: dict[int, set[str]] = {}
        self._real: dict[int, Collected] = {}
        self._held_out_distances: dict[tuple[int, bool], Nearest] = {}
        needs = {*settings.metrics, *settings.at_end} & {*_NEED_NETWORK}
        self.network = self._load_network() if needs and len(datasets.held_out) else None

    def better(self) -> dict[str, Better]:
        """Returns by metric that is a distance that lower is better."""
        network = [] if self.network is None else [f"frechet_{self.network.name}", f"kernel_{self.network.name}"]
        return dict.fromkeys(["swd", *network], "lower")

    def distances(
        self, generate: Generate | None, resolution: int, metrics: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Measures generated images.

        Args:
            generate: makes [len(batch), C, R, R] for a batch of held-out images; None: training images are measured
                in place of generated ones.
            resolution: of the images, R.
            metrics: of METRICS; None: those of every evaluation.

        Returns:
            Values by name, the same on every rank; none of a metric that cannot be measured.
        """
        held_out = self.held_out(resolution)
        images = self.training(resolution, len(held_out))
        of = images if generate is None else GeneratedImages(generate, held_out, len(held_out))
        return self.measure(of, resolution, metrics)

    @torch.no_grad()
    def measure(self, images: ImageSet, resolution: int, metrics: Sequence[str] | None = None) -> dict[str, float]:
        """Measures any images, as many as there are held-out ones, against these; see `distances`."""
        chosen = self._possible(tuple(self.settings.metrics if metrics is None else metrics), images, resolution)
        found: dict[str, float] = {}
        compared = tuple(name for name in chosen if name == "swd" or name in OF_FEATURES)
        if compared:
            real = self._collected_real(resolution, compared)
            other = self._collected(images, compared)
            suffix = self.network.name if self.network else ""
            directions = self.settings.num_directions
            found |= compare(self.runtime, compared, real, other, num_directions=directions, suffix=suffix)
        if "ms_ssim" in chosen:
            pairs = images.pairs(self.settings.num_pairs)
            found["ms_ssim"] = diversity(self.runtime, self._tracked(pairs, "pairs of images", None))
        if "copying" in chosen:
            found |= self.copying(images, resolution)[0].values()
        if "copying_in_features" in chosen and self.network is not None:
            values = self.copying(images, resolution, in_features=True)[0].values()
            found |= {f"{name}_{self.network.name}": value for name, value in values.items()}
        return found

    def floors(self, resolution: int, metrics: Sequence[str] | None = None) -> dict[str, float]:
        """Measures as many training images as there are held-out ones, once; nothing where there are too few."""
        if len(self.datasets.train) < len(self.held_out(resolution)):
            return {}
        found, known = self._floors.setdefault(resolution, {}), self._floor_metrics.setdefault(resolution, set())
        # Without copying: training images are in the training data.
        wanted = [name for name in metrics or self.settings.metrics if not name.startswith("copying")]
        if missing := [name for name in wanted if name not in known]:
            found.update(self.distances(None, resolution, missing))
            known.update(missing)
        return dict(found)

    @torch.no_grad()
    def copying(self, images: ImageSet, resolution: int, *, in_features: bool = False) -> tuple[Copying, Nearest]:
        """Searches the nearest training images of images, and of the held-out ones.

        Args:
            images: the images; of many, 2,048 spread evenly.
            resolution: of the images.
            in_features: whether distances are between features, and not pixels.

        Returns:
            The distances, and the neighbours of these images by their index in the training data.
        """
        embed: Callable[[Tensor], Tensor] = pixels
        if in_features:
            assert self.network is not None
            embed = self.network
        key = (resolution, in_features)
        if key not in self._held_out_distances:
            held_out = self.held_out(resolution)
            self._held_out_distances[key] = self._nearest(held_out, resolution, embed, "of held-out images")
        found = self._nearest(images, resolution, embed, "of samples")
        return Copying(*(x.squared_Qk[:, 0].sqrt().cpu() for x in (found, self._held_out_distances[key]))), found

    def held_out(self, resolution: int) -> RealImages:
        """Returns the held-out images that are measured against."""
        return self._images(self.datasets.held_out, resolution, self.settings.num_images)

    def training(self, resolution: int, most: int | None = None) -> RealImages:
        """Returns training images, spread evenly over the split, because neighbours in it are often similar."""
        return self._images(self.datasets.train, resolution, most)

    def note(self, line: str) -> None:
        """Reports a line once."""
        if line not in self._reported:
            self._reported.add(line)
            self.report(line)

    def _tell(self, line: str) -> None:
        self.runtime.tracker.message(line)

    def _images(self, dataset: Any, resolution: int, most: int | None) -> RealImages:
        whole = at_resolution(dataset, resolution)
        batch_size, collate = self.settings.batch_size, self.datasets.collate
        images = RealImages(self.runtime, whole, range(len(whole)), resolution, batch_size, collate)
        return images if most is None else images.some(most)

    def _load_network(self) -> FeatureNetwork | None:
        network: FeatureNetwork | None = None
        error: ConfigError | None = None
        try:
            network = load_network(self.settings.features, self.runtime.device)
        except ConfigError as caught:
            error = caught
        self.runtime.ranks.raise_first(error)
        installed = network.name if network else "not installed"
        self.runtime.ranks.require_same({"the feature network of recipe.evaluation.features": installed})
        return network

    def _possible(self, metrics: tuple[str, ...], images: ImageSet, resolution: int) -> tuple[str, ...]:
        """Returns the metrics that can be measured; says why others cannot, and what to know of those that can."""
        num = min(len(images), len(self.held_out(resolution)))
        off: set[str] = set()
        if self.network is None and (without := [name for name in metrics if name in _NEED_NETWORK]):
            off |= {*without}
            self.note(
                f"not measured: {', '.join(without)}, which need a feature network: {INSTALL}, or set "
                f"recipe.evaluation.features.path to a TorchScript or ONNX file of your own"
            )
        if num < _FEWEST and (few := [name for name in metrics if name in OF_FEATURES and name not in off]):
            off |= {*few}
            self.note(
                f"not measured: {', '.join(few)}: {num} images are too few, {_FEWEST} the fewest; raise data.held_out"
            )
        elif "frechet" in metrics and "frechet" not in off and self.network and num <= self.network.num_features:
            self.note(
                f"the Frechet distance of {num} images in {self.network.num_features} dimensions is far above that of "
                f"many: compare it with that of as many training images only, or use the kernel distance"
            )
        if "ms_ssim" in metrics and not num_scales(resolution):
            off.add("ms_ssim")  # a step of growth
        return tuple(name for name in metrics if name not in off)

    def _collected(self, images: ImageSet, metrics: tuple[str, ...]) -> Collected:
        return collect(
            self.runtime,
            self._tracked(images.batches(), "measuring images", -(-len(images) // self.settings.batch_size)),
            num_patches=self.settings.num_patches if "swd" in metrics else None,
            network=self.network if {*metrics} & {*OF_FEATURES} else None,
        )

    def _collected_real(self, resolution: int, metrics: tuple[str, ...]) -> Collected:
        """Collects from held-out images; their features are kept as long as the resolution stays."""
        kept = self._real.get(resolution)
        of_features = tuple(name for name in metrics if name in OF_FEATURES)
        needed = metrics if kept is None or kept.features is None else tuple({*metrics} - {*of_features})
        found = self._collected(self.held_out(resolution), needed) if needed or kept is None else kept
        features = found.features if kept is None or kept.features is None else kept.features
        self._real = {resolution: Collected(num_channels=found.num_channels, features=features)}
        return Collected(num_channels=found.num_channels, patches=found.patches, features=features)

    def _nearest(self, images: ImageSet, resolution: int, embed: Callable[[Tensor], Tensor], whose: str) -> Nearest:
        """Searches among the training images, of which each rank compares its share with all queries."""
        gathered = self.runtime.ranks.all_gather
        queries = [gathered(embed(x), batch.size) for batch, x in images.some(MOST_COMPARED).batches()]
        found = Nearest(torch.cat(queries), NUM_NEIGHBOURS)
        training = self.training(resolution)
        total = -(-len(training) // self.settings.batch_size)
        for batch, pictures in self._tracked(training.batches(), f"nearest training images {whose}", total):
            if len(batch):
                found.see(embed(pictures), batch.positions)
        everyone = self.runtime.ranks.all_gather_object((found.squared_Qk.cpu(), found.indices_Qk.cpu()))
        found.merge(everyone)
        return found

    def _tracked(self, items: Iterable[Any], description: str, total: int | None) -> Iterable[Any]:
        return track(items, description, total, enabled=self.runtime.ranks.is_main)
