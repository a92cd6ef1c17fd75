"""PublishedScaling: published throughputs of several devices beside those of one, and what is predicted."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from trainkit.benchmark.published import Row, Source, published
from trainkit.forecast.speed import machine_of, speed_of
from trainkit.planning.changed_host import part
from trainkit.planning.simulate import simulate
from trainkit.planning.workload import GAN, RECIPES, Workload, workload
from trainkit.topology.gpus import gpus
from trainkit.topology.presets import preset
from trainkit.topology.topology import Topology

_CARDS = {
    "RTX 3090": "3090",
    "RTX 4090": "4090",
    "RTX A6000": "A6000",
    "RTX 6000 Ada": "6000 Ada",
    "A100 80GB PCIe": "A100-PCIe",
    "A100 80GB SXM4": "A100-SXM",
    "H100 80GB SXM5": "H100-SXM",
    "B200 192GB SXM5": "B200",
}
GAN_SOURCE = (
    "https://github.com/tkarras/progressive_growing_of_gans/blob/35d6c23c578bdf2be185d026c6b3d366c1518120/README.md"
)
GAN_DAYS = {1: 14.0, 2: 7.0, 4: 3.0, 8: 2.0}
"""Of training on as many V100s, which the authors give in whole days and weeks."""
_PRESETS = {
    "V100 16GB": "dgx-1",
    "DGX-1 (V100 16 GB)": "dgx-1",
    "DGX-1 (V100 32 GB)": "dgx-1",
    "DGX-2 (V100 32 GB)": "dgx-2",
}


@dataclass(frozen=True, kw_only=True)
class PublishedScaling:
    """A published throughput on several devices, as a share of that of as many single ones.

    Args:
        source: its name.
        machine: as the source calls the device or machine.
        device: the name of the device as its driver calls it.
        num_devices: that were used.
        model: the recipe.
        precision: as the source calls it.
        sequence_length: in tokens; 0: of images.
        published: the share.
        predicted: for the same batch on a device, from its published throughput and the links that the machine is
            assumed to have, without bridges where the source does not name any.
        unhidden: the same if the backward pass hid nothing of the communication.
    """

    source: str
    machine: str
    device: str
    num_devices: int
    model: str
    precision: str
    sequence_length: int
    published: float
    predicted: float
    unhidden: float


def published_scaling() -> list[PublishedScaling]:
    """All published figures of several devices for which the source has one of a single device, too."""
    return [row for source in published() for row in _of(source)]


def gan_scaling() -> list[PublishedScaling]:
    """The authors' training times of the progressive GAN, and what is predicted of its steps at 1024x1024."""
    machine = preset("dgx-1")
    device = machine.hosts[0].devices[0]
    work = workload(GAN, tflops=speed_of(device, "fp32").tflops, precision="fp32")
    found = []
    for count, days in GAN_DAYS.items():
        point = simulate(Topology(hosts=(part(machine.hosts[0], count),)), [1], work)[0]
        found.append(
            PublishedScaling(
                source=GAN_SOURCE,
                machine="V100",
                device=device.name,
                num_devices=count,
                model=work.name,
                precision="fp32",
                sequence_length=0,
                published=GAN_DAYS[1] / days / count,
                predicted=point.efficiency,
                unhidden=point.unhidden_efficiency,
            )
        )
    return found


def _of(source: Source) -> Iterator[PublishedScaling]:
    def key(row: Row) -> tuple[str, str, str, int]:
        return machine_of(row), row.model, row.precision, row.sequence_length

    alone = {key(row): row for row in source.rows if row.num_gpus == 1}
    for row in source.rows:
        one, machine = alone.get(key(row)), _machine(row)
        if row.num_gpus == 1 or one is None or machine is None or not row.batch_size:
            continue
        point = simulate(machine, [1], _work(row, one))[0]
        yield PublishedScaling(
            source=re.split(r",", source.name)[0],
            machine=machine_of(row),
            device=machine.hosts[0].devices[0].name,
            num_devices=row.num_gpus,
            model=row.model,
            precision=row.precision,
            sequence_length=row.sequence_length,
            published=row.samples_per_s / one.samples_per_s / row.num_gpus,
            predicted=point.efficiency,
            unhidden=point.unhidden_efficiency,
        )


def _work(row: Row, one: Row) -> Workload:
    flops = 1e12  # any number: the published rate of one device says how long a sample takes
    return Workload(
        name=row.model,
        num_parameters=RECIPES[row.model].num_parameters,
        flops_per_sample=flops,
        samples_per_device=(row.batch_size or 0) // row.num_gpus,
        tflops=one.samples_per_s * flops / 1e12,
    )


def _machine(row: Row) -> Topology | None:
    name = machine_of(row)
    if name in _CARDS:
        return gpus(f"{row.num_gpus}x{_CARDS[name]}")
    if name in _PRESETS:
        whole = preset(_PRESETS[name])
        return Topology(hosts=(part(whole.hosts[0], row.num_gpus),), source=whole.source)
    return None
