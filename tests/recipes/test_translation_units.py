"""Parts of the translation GAN: networks of the published sizes, the pool, pictures, and the command."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from tests.present import present
from tests.recipes.translation import TINY, make_recipe
from trainkit.errors import ConfigError, DataError
from trainkit.export.onnx import _one_tf32_setting
from trainkit.training.assessing import assess
from trainkit_recipes.translation_gan import translate as command
from trainkit_recipes.translation_gan.evaluation import SIDES, Side
from trainkit_recipes.translation_gan.networks import Discriminator, Generator, Shape, reflect
from trainkit_recipes.translation_gan.picture import in_multiples
from trainkit_recipes.translation_gan.pictures import rows_of
from trainkit_recipes.translation_gan.pool import Pool, exchange


def _num_weights(module):
    """Without biases, which the published networks also have before each instance norm."""
    return sum(p.numel() for name, p in module.named_parameters() if name.endswith("weight"))


def test_the_networks_have_the_published_sizes():
    """c7s1-64, d128, d256, R256 nine times, u128, u64, c7s1-3; and C64-C128-C256-C512 (section 7.2)."""
    shape = Shape(resolution=256)
    convolutions = [(3, 64, 49), (64, 128, 9), (128, 256, 9), *[(256, 256, 9)] * 18, (256, 128, 9), (128, 64, 9)]
    assert _num_weights(Generator(shape)) == sum(a * b * c for a, b, c in [*convolutions, (64, 3, 49)])
    layers = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1)]
    assert _num_weights(Discriminator(shape, 0)) == sum(16 * a * b for a, b in layers)
    assert (shape.patch, Shape(resolution=128).patch, Shape(resolution=64).patch) == (70, 34, 16)
    assert (Shape(resolution=128).blocks, shape.blocks) == (6, 9)


@pytest.mark.parametrize(("resolution", "layers"), [(32, 1), (128, 2), (256, 3)])
def test_a_score_depends_on_its_patch_alone(resolution, layers):
    shape = Shape(resolution=resolution, channels=1, discriminator_channels=1, discriminator_layers=layers)
    module = Discriminator(shape, 0).double()
    for number, layer in enumerate(module.layers):
        if "Norm" in type(layer).__name__:
            module.layers[number] = torch.nn.Identity()  # its statistics are of the whole image
    image = torch.randn(1, 1, resolution, resolution, dtype=torch.float64, requires_grad=True)
    scores = module(image)
    scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
    rows = present(image.grad).abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == shape.patch


def test_an_image_is_mirrored_at_its_borders():
    image = torch.randn(2, 3, 8, 12, dtype=torch.float64)
    expected = np.pad(image.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect")
    assert np.array_equal(reflect(image, 3).numpy(), expected)


def _one_by_one(new, draws, held, size):
    """What the paper's pool does, an image at a time."""
    given_back = []
    for image, (whether, which) in zip(new, draws, strict=True):
        if len(held) < size:
            held.append(image)
        elif whether < 0.5:
            place = int(which * size)
            held[place], image = image, held[place]
        given_back.append(image)
    return given_back


def test_the_pool_exchanges_images_one_by_one():
    draw = torch.Generator().manual_seed(0)
    pool, position = Pool(5, 1, 2), 0
    held: list[torch.Tensor] = []
    for num in (3, 4, 1, 12, 6):  # it fills up within a batch, and a batch may be larger than it
        new, draws = torch.randn(num, 1, 2, 2, generator=draw), torch.rand(num, 2, generator=draw)
        expected = _one_by_one(list(new), draws.tolist(), held, 5)
        assert torch.equal(pool.exchanged(new, draws, position), torch.stack(expected))
        position += num
    assert torch.equal(pool.images, torch.stack(held))
    before = pool.images.clone()
    pool.exchanged(torch.full((1, 1, 2, 2), torch.nan), torch.zeros(1, 2), position)
    assert torch.equal(pool.images, before), "what is not finite is not kept"
    assert exchange([(0.0, 0.0)], size=0, num_before=9) == ([0], [])


def test_images_of_any_size_are_translated():
    module = Generator(TINY)
    with torch.no_grad():
        image = torch.rand(1, 3, 24, 16)
        assert torch.equal(in_multiples(module, image), module(image))
        assert in_multiples(module, torch.rand(1, 3, 17, 5)).shape == (1, 3, 17, 5)
        assert module(torch.rand(0, 3, 8, 8)).shape == (0, 3, 8, 8)  # of a rank without samples


def test_a_generator_is_exported_for_any_number_of_images():
    batch = {0: torch.export.Dim("batch")}
    with _one_tf32_setting():
        program = torch.export.export(Generator(TINY), (torch.rand(2, 3, 16, 16),), dynamic_shapes=(batch,))
    images = torch.rand(5, 3, 16, 16)
    whole = program.module()(images)
    assert torch.allclose(whole[3:4], program.module()(images[3:4]), atol=1e-6)


class _Linear(torch.nn.Module):
    def __init__(self, scale, offset):
        super().__init__()
        self.scale, self.offset = scale, offset

    def forward(self, x):
        return x * self.scale + self.offset


def test_rows_show_both_directions():
    first, second = torch.zeros(2, 1, 64, 64), torch.ones(2, 1, 64, 64)
    generators: dict[Side, torch.nn.Module] = {"first": _Linear(1.0, -1.0), "second": _Linear(0.5, 0.5)}
    picture = rows_of(first, second, generators)
    assert picture.shape == (2 * 64 + 2, 2 * (3 * 64 + 4) + 12, 3)
    columns = [0, 66, 132, 208, 274, 340]
    assert [int(picture[100, column + 32, 0]) for column in columns] == [128, 191, 64, 255, 128, 191]


def test_a_perfect_pair_of_generators_is_measured_as_such():
    recipe = make_recipe()
    same = {side: torch.nn.Identity() for side in SIDES}
    measured = recipe.evaluator.measure(same)
    assert measured["cycle"] == 0
    untranslated = recipe.baselines()["swd_first"]
    assert measured["swd_first"] == untranslated["untranslated images"] > 0
    assert untranslated.keys() == {"untranslated images", "as many training images"}
    darker = {"second": torch.nn.Identity(), "first": _Linear(1.0, -0.25)}
    assert recipe.evaluator.measure(darker)["cycle_first"] == pytest.approx(0.25)


def _configured(monkeypatch, images):
    """Has every directory pass as that of a run with these settings of images."""
    manifest = {"values": {"config": {"data": {"first": None, "images": images}}}}
    monkeypatch.setattr("trainkit.checkpoint.find", lambda path: path)
    monkeypatch.setattr("trainkit.checkpoint.read_manifest", lambda path: manifest)


def _unchanging(monkeypatch, **images):
    """Has every run be one whose generators change nothing."""
    recipe, same = make_recipe(precision="fp32"), _Linear(1.0, 0.0)
    same.weight = torch.nn.Parameter(torch.zeros(1))  # tells the device
    monkeypatch.setattr(recipe, "averaged", lambda: nullcontext(dict.fromkeys(SIDES, same)))
    monkeypatch.setattr("trainkit.load_recipe", lambda *given, **options: recipe)
    _configured(monkeypatch, images)


def _colour(path, at=(8, 8)):
    with Image.open(path) as image:
        return image.getpixel(at)


def test_pictures_are_read_as_the_run_has_read_them(tmp_path, monkeypatch):
    _unchanging(monkeypatch, fit="pad", background="#0000ff", max_pixels=9)
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((16, 8), 100 * 257, np.uint16)).save(tmp_path / "in" / "grey.png")
    Image.new("RGBA", (16, 16)).save(tmp_path / "in" / "clear.png")
    command.translate(tmp_path, tmp_path / "in", to="second", output=tmp_path / "out")
    assert _colour(tmp_path / "out" / "grey.png") == (100, 100, 100), "16 bits are scaled"
    assert _colour(tmp_path / "out" / "grey.png", (0, 8)) == (0, 0, 255), "it is padded"
    assert _colour(tmp_path / "out" / "clear.png") == (0, 0, 255)
    command.translate(tmp_path, tmp_path / "in", to="second", output=tmp_path / "whole", whole=True)
    assert _colour(tmp_path / "whole" / "grey.png", (0, 8)) == (100, 100, 100)


def test_a_broken_picture_does_not_keep_others_back(tmp_path, monkeypatch):
    _unchanging(monkeypatch)
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.jpg", "a.jpg.png", "c.png"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / "in" / name)
    (tmp_path / "in" / "._a.png").write_text("what another system has left")
    (tmp_path / "in" / "b.png").write_text("no image")
    with pytest.raises(DataError, match=r"b\.png cannot be read as an image .*1 of 5 images; the others are in"):
        command.translate(tmp_path, tmp_path / "in", to="second", output=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.jpg.png",
        "a.jpg.png.png",
        "a.png.png",
        "c.png.png",
    ]
    with pytest.raises(ConfigError, match=r"--output: .* cannot be written: Not a directory"):
        command.translate(tmp_path, tmp_path / "in", to="second", output=tmp_path / "in" / "c.png" / "new")


def test_a_folder_is_translated(tmp_path, monkeypatch):
    recipe = make_recipe(precision="fp32")
    monkeypatch.setattr("trainkit.load_recipe", lambda *given, **options: recipe)
    _configured(monkeypatch, {})
    for name, size in (("a.png", (40, 20)), ("sub/b.jpg", (9, 30)), ("sub/b.bmp", (9, 9))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(tmp_path / "in" / name)
    sizes = {}
    for whole in (False, True):
        output = tmp_path / f"out_{whole}"
        written = command.translate(tmp_path, tmp_path / "in", to="first", output=output, whole=whole)
        sizes[whole] = [Image.open(path).size for path in written]
        assert [str(path.relative_to(output)) for path in written] == ["a.png", "sub/b.bmp.png", "sub/b.jpg.png"]
    assert sizes == {False: [(16, 16)] * 3, True: [(40, 20), (9, 9), (9, 30)]}
    with pytest.raises(ConfigError, match="out_True exists already"):
        command.translate(tmp_path, tmp_path / "in", to="first", output=output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        command.translate(tmp_path, tmp_path / "empty", to="first", output=tmp_path / "new")


def test_untranslated_images_are_what_is_to_be_beaten():
    recipe = make_recipe()
    found = assess(recipe)
    by_side = [found.baselines[f"swd_{side}"]["untranslated images"] for side in SIDES]
    assert found.baselines["swd"]["untranslated images"] == pytest.approx(sum(by_side) / 2)
    assert found.decisive == "swd" and [one.baseline for one in found.comparisons("swd")] == ["untranslated images"]
    recipe.runtime.close()
