"""Workload: what one device computes in a step, and the recipes whose steps are known. Pure."""

from dataclasses import dataclass, replace

from trainkit.errors import TopologyError, nearest
from trainkit.topology.cards import Precision

GAN = "progressive_gan"
GAN_RESOLUTIONS = (64, 128, 256, 512, 1024)
GAN_IMAGES_PER_DEVICE = 4
"""On 8 devices from 64x64 on: conf/experiment/celeba_hq_1024.yaml, from the authors' config.py."""
_OPERATIONS_PER_PRODUCT = 18
"""Of a step with WGAN-GP, for each multiplication in one forward pass of both networks: tests/planning/test_workload.py
recounts it on the recipe."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The computation of one device in one step, between two reductions of its gradient.

    Args:
        name: of the model.
        num_parameters: of the model.
        flops_per_sample: of forward and backward passes together.
        samples_per_device: of all micro-batches of a step.
        tflops: sustained by one device; None: 45 % of its peak in this precision, for the GPUs whose peak is
            in the table of cards.
        precision: of the computation.
    """

    name: str
    num_parameters: int
    flops_per_sample: float
    samples_per_device: int
    tflops: float | None = None
    precision: Precision = "bf16"

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients, which are float32 under autocast, too."""
        return 4 * self.num_parameters


def workload(
    name: str, *, samples_per_device: int | None = None, tflops: float | None = None, precision: Precision = "bf16"
) -> Workload:
    """The workload of a recipe.

    Args:
        name: `bert-base` or `bert-large`, with sequences of 128 tokens of which 20 are masked; `progressive_gan-64` to
            `progressive_gan-1024`: both networks of the paper in a stable phase at this resolution;
            `progressive_gan`: at 1024.
        samples_per_device: in a step; None: 128 for bert-base, 64 for bert-large, 4 for the GAN.
        tflops: sustained by one device; see `Workload`.
        precision: of the computation.

    Raises:
        TopologyError: for another name.

    Example:
        >>> workload("bert-base").num_parameters
        110111042
    """
    full = f"{GAN}-1024" if name == GAN else name
    if full not in RECIPES:
        raise TopologyError(
            f"there is no recipe {name!r}: must be one of {', '.join(RECIPES)}.{nearest(name, RECIPES)}"
        )
    known = replace(RECIPES[full], tflops=tflops, precision=precision)
    return known if samples_per_device is None else replace(known, samples_per_device=samples_per_device)


def bert_flops(name: str, tokens: int, masked: int) -> float:
    """The operations of forward and backward passes over one sequence.

    Args:
        name: `bert-base` or `bert-large`.
        tokens: of a sequence.
        masked: tokens that the head predicts; 0: without a head, as in fine-tuning.
    """
    layers, width = _BERT[name]
    matrices = layers * (4 * width**2 + 8 * width**2)
    head = width**2 + _VOCABULARY * width
    return 6 * matrices * tokens + 12 * layers * width * tokens**2 + 6 * masked * head


_BERT = {"bert-base": (12, 768), "bert-large": (24, 1024)}
_VOCABULARY = 30_528


def _bert(name: str, samples_per_device: int) -> Workload:
    layers, width = _BERT[name]
    matrices, inner = layers * 12 * width**2, 4 * width
    vectors = layers * (9 * width + inner) + _VOCABULARY + 2 * (width**2 + width) + 6 * width + 2
    return Workload(
        name=name,
        num_parameters=matrices + vectors + (_VOCABULARY + 512 + 2) * width,
        flops_per_sample=bert_flops(name, tokens=128, masked=20),
        samples_per_device=samples_per_device,
    )


def _channels(resolution: int) -> int:
    return min(2 * 8192 // resolution, 512)


def _gan(resolution: int) -> Workload:
    """Karras et al. (arXiv 1710.10196), table 2: both networks together."""
    low, latent, colours = _channels(4), 512, 3
    parameters = 16 * low * latent + low  # G: the latent becomes a 4x4 map
    parameters += 9 * low**2 + low  # G: its convolution
    parameters += 9 * (low + 1) * low + low + 16 * low**2 + low + low + 1  # D: its last block
    products = 16 * low * (latent + 9 * low + 9 * (low + 1) + low)
    size = 8
    while size <= resolution:
        above, here = _channels(size // 2), _channels(size)
        parameters += 9 * (above * here + here**2) + 2 * here  # G
        parameters += 9 * (here**2 + here * above) + here + above  # D
        products += 2 * 9 * size**2 * here * (here + above)
        size *= 2
    parameters += _channels(resolution) * 2 * colours + colours + _channels(resolution)  # images to and from features
    return Workload(
        name=f"{GAN}-{resolution}",
        num_parameters=parameters,
        flops_per_sample=_OPERATIONS_PER_PRODUCT * products,
        samples_per_device=GAN_IMAGES_PER_DEVICE,
    )


RECIPES = {
    "bert-base": _bert("bert-base", 128),
    "bert-large": _bert("bert-large", 64),
    **{f"{GAN}-{resolution}": _gan(resolution) for resolution in GAN_RESOLUTIONS},
}
