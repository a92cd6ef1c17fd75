"""The page of machines is generated from the model: every part has all machines, and its sentences are recounted."""

import re
from pathlib import Path

import pytest

from docs.generators import machines
from docs.generators.hook import GENERATORS
from trainkit.forecast.published_scaling import GAN_DAYS, published_scaling
from trainkit.planning import workload as workloads

PAGE = (Path(__file__).parent.parent / "docs" / "which_machine.md").read_text()
PARTS = re.findall(r"^<!-- generated: machines (.+) -->$", PAGE, re.MULTILINE)
V100_TFLOPS = 15.7


def test_the_page_has_every_part():
    assert {part.split()[0] for part in PARTS} == {"verdicts", "picture", "efficiency", "gain", "published", "gan"}
    assert GENERATORS["machines"] is machines.machines


@pytest.mark.parametrize("part", [part for part in PARTS if part.split()[0] in ("efficiency", "gain")])
def test_a_table_has_every_machine_and_recipe(part):
    header, _, *rows = machines.machines(*part.split()).splitlines()
    assert [row.split("|")[1].strip() for row in rows] == list(machines.MACHINES)
    assert [cell.strip() for cell in header.split("|")[2:-1]] == list(machines.RECIPES)
    if part.startswith("efficiency"):
        pairs = [[int(share) for share in pair] for pair in re.findall(r"\| (\d+) \((\d+)\)", "\n".join(rows))]
        assert len(pairs) == len(rows) * len(machines.RECIPES)
        assert all(0 < unhidden <= hidden <= 100 for hidden, unhidden in pairs)


def test_the_errors_are_those_of_the_rows():
    rows = published_scaling()
    text = machines.machines("published")
    said = re.search(r"Of (\d+) .*? (\d+) lie .*?, (\d+) above .* (\d+) below", text)
    assert said is not None
    total, inside, above, below = map(int, said.groups())
    assert total == len(rows) == inside + above + below == text.count("| Lambda |") + text.count("| NVIDIA |")
    assert above == sum(row.published > row.predicted for row in rows)


def test_every_machine_of_the_verdicts_and_the_picture_is_one():
    assert {name for name, _ in machines.VERDICTS} | set(machines.PICTURE) <= set(machines.MACHINES)
    assert machines.machines("verdicts").count("\n- **") == len(machines.VERDICTS) - 1
    drawn = machines.machines("picture")
    assert drawn.startswith('<svg class="figure"') and drawn.endswith("</svg>") and "\n" not in drawn
    assert all(name in drawn for name in machines.PICTURE)


def test_the_gan_on_one_v100_reaches_what_the_page_says():
    """12 million images, by the authors' config.py: 600,000 at 4x4, then 1.2 million at each resolution."""
    images = {4 << power: 600_000 if power == 0 else 1_200_000 for power in range(8)}
    images[1024] = 12_000_000 - sum(images.values())
    operations = sum(count * workloads._gan(size).flops_per_sample for size, count in images.items())
    share = operations / (GAN_DAYS[1] * 86_400) / 1e12 / V100_TFLOPS
    (said,) = re.findall(r"two weeks on one V100 are (\d+) %", PAGE)
    assert share == pytest.approx(int(said) / 100, abs=0.01)
