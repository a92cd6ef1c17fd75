"""The whole growth from 4x4 to 1024x1024, at the smallest widths, killed in the fade to 512x512 and resumed."""

import numpy as np
import pytest
from PIL import Image

from tests.training.test_resume import assert_killed_equals_whole

WIDTHS = ["recipe.fmap_base=1024", "recipe.fmap_max=4", "recipe.latent_dim=4", "recipe.stddev_group=1"]
MEASURED = [
    "recipe.evaluation.batch_size=2",
    "recipe.evaluation.num_directions=16",
    "recipe.evaluation.num_shown=2",
    "recipe.evaluation.at_end=[]",  # ten thousand pairs of this size take hours
]
STEPS_TO_512 = 7 * 2 + 6 * 3  # of two in a stable phase and three in a fade; ten follow in the fade to 512x512


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(draw.integers(0, 256, (32, 32), np.uint8))
        coarse.resize((1024, 1024), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_in_the_512_fade_and_grown_to_1024(tmp_path, pictures, precision):
    arguments = [
        "recipe=progressive_gan",
        f"data.path={pictures}",
        "data.held_out=0.2",
        f"data.cache_dir={tmp_path / 'cache'}",
        "recipe.resolution=1024",
        "recipe.channels=1",
        *WIDTHS,
        *MEASURED,
        "recipe.batch_size=2",
        "recipe.stable_images=4",
        "recipe.fade_images={8: 6, 512: 20, 1024: 6}",
        "evaluate_every=null",
        "save_every=5",
        "log_every=1",
        f"precision={precision}",
    ]
    assert_killed_equals_whole(tmp_path, arguments, 2, kill_from_step=STEPS_TO_512 + 4, timeout_s=1500.0)
