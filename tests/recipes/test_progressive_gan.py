"""The progressive GAN: published sizes, exact growth, groups by global index, and the same training on any split."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.jobs import run
from tests.training.test_resume import assert_killed_equals_whole
from trainkit import Runtime, Tracker
from trainkit.data import Datasets
from trainkit.errors import ConfigError, DataError
from trainkit.ops.concat import append_minibatch_stddev
from trainkit.ops.pixel_norm import pixel_norm
from trainkit.ops.resample import downsample, upsample
from trainkit.testing import run_ranks
from trainkit_recipes.progressive_gan.growth import phase_at, plan
from trainkit_recipes.progressive_gan.networks import (
    Discriminator,
    EqualizedConv2d,
    Generator,
    LowPrecision,
    Widths,
)
from trainkit_recipes.progressive_gan.pictures import animate, grid
from trainkit_recipes.progressive_gan.sample import sample
from trainkit_recipes.progressive_gan.train import ProgressiveGAN

SMALL = Widths(latent_dim=8, fmap_base=64, fmap_max=16, channels=3)
TRAINED_SHORTLY = [
    "experiment=glyphs",
    "recipe.fmap_base=32",
    "recipe.fmap_max=8",
    "recipe.latent_dim=8",
    "recipe.resolution=8",
    "recipe.num_shown=4",
    "recipe.num_directions=16",
    "evaluate_every=1000",
    "log_every=1",
]


def test_the_networks_have_the_published_sizes():
    """Table 2 of the paper: 23.1 million parameters each at 1024x1024."""
    for network in (Generator, Discriminator):
        num = sum(p.numel() for p in network(Widths(), 1024).parameters())
        assert round(num / 1e6, 1) == 23.1


def test_channels_of_the_paper():
    expected = {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64, 512: 32, 1024: 16}
    assert {size: Widths().at(size) for size in expected} == expected


@pytest.mark.parametrize("widths", [Widths(), Widths(latent_dim=64, fmap_base=256, fmap_max=64, channels=1)])
def test_the_counted_cost_is_that_of_torch(widths):
    for size in (4, 8, 32):
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            Discriminator(widths, size)(Generator(widths, size)(torch.zeros(4, widths.latent_dim)))
        assert widths.num_products(size) == pytest.approx(counted.get_total_flops() / 4 / 2, rel=0.05), size


def _kept(new, old):
    """`old` with the weights of `new` that it has."""
    old.load_state_dict({k: v for k, v in new.state_dict().items() if k in old.state_dict()})
    return old


@pytest.mark.parametrize("resolution", [8, 16, 32])
def test_a_fade_goes_from_the_old_networks_to_the_new(resolution):
    torch.manual_seed(0)
    G, D = (network(SMALL, resolution, True).double() for network in (Generator, Discriminator))
    z, x = torch.randn(4, 8).double(), torch.randn(4, 3, resolution, resolution).double()
    old_G, old_D = (_kept(n, type(n)(SMALL, resolution // 2).double()) for n in (G, D))
    new_G, new_D = (_kept(n, type(n)(SMALL, resolution).double()) for n in (G, D))
    assert torch.equal(G(z, 0.0), upsample(old_G(z)))
    assert torch.equal(D(x, 0.0), old_D(downsample(x)))
    assert torch.equal(G(z, 1.0), new_G(z))
    assert torch.equal(D(x, 1.0), new_D(x))
    assert not torch.allclose(G(z, 0.5), G(z, 1.0))


@pytest.mark.parametrize("network", [Generator, Discriminator])
def test_parameters_keep_their_names_while_a_network_grows(network):
    names = [set(network(SMALL, size, fading).state_dict()) for size, fading in ((8, False), (16, True), (16, False))]
    blocks = [{name for name in each if name.startswith("blocks")} for each in names]
    assert blocks[0] < blocks[1] == blocks[2]
    assert names[1] - names[2] == {name for name in names[0] if "image.8" in name}


def test_minibatch_stddev_against_a_plain_loop():
    x = torch.randn(12, 3, 4, 4, dtype=torch.float64)
    for group in (1, 2, 4):
        out = append_minibatch_stddev(x, group)
        num_groups = 12 // group
        for i in range(12):
            members = x[[j for j in range(12) if j % num_groups == i % num_groups]].numpy()
            expected = np.sqrt(((members - members.mean(axis=0)) ** 2).mean(axis=0) + 1e-8).mean()
            assert np.allclose(out[i, 3].numpy(), expected, rtol=1e-12)
        assert torch.equal(out[:, :3], x)


@pytest.mark.parametrize(("world_size", "grad_accumulation_steps"), [(2, 1), (4, 1), (2, 2)])
def test_groups_of_strided_shares_are_those_of_the_whole_batch(world_size, grad_accumulation_steps):
    x = torch.randn(32, 2, 4, 4, dtype=torch.float64)
    whole = append_minibatch_stddev(x, 4)
    for rank in range(world_size):
        for micro in range(grad_accumulation_steps):
            mine = slice(rank + world_size * micro, None, world_size * grad_accumulation_steps)
            assert torch.equal(append_minibatch_stddev(x[mine], 4), whole[mine])


def test_equalized_layers_and_pixel_norm():
    torch.manual_seed(0)
    layer = EqualizedConv2d(64, 256, 3)
    out = layer(torch.randn(4, 64, 16, 16))[:, :, 2:-2, 2:-2]
    assert abs(out.var().item() - 2.0) < 0.1  # gain sqrt(2), whatever the fan-in
    assert layer.weight.std().item() == pytest.approx(1.0, abs=0.02)
    normed = pixel_norm(torch.randn(3, 50, 2, 2, dtype=torch.float64) * 7)
    assert torch.allclose(normed.square().mean(dim=1), torch.ones(3, 2, 2, dtype=torch.float64))


def test_phases_follow_one_another_and_fade_from_zero():
    phases = plan(16, stable_images={4: 100, 16: 50}, fade_images=60, batch_size={4: 16, 16: 8})
    assert [(p.resolution, p.is_fading, p.num_images, p.batch_size) for p in phases] == [
        (4, False, 112, 16),
        (8, True, 64, 16),
        (8, False, 112, 16),
        (16, True, 64, 8),
        (16, False, 56, 8),
    ]
    assert [p.start for p in phases] == [0, 112, 176, 288, 352]
    assert phase_at(phases, 111).number == 0 and phase_at(phases, 112).number == 1
    assert phase_at(phases, 10**9).number == 4
    assert phases[1].fade(112) == 0.0 and phases[1].fade(144) == 0.5 and phases[2].fade(176) == 1.0
    with pytest.raises(ConfigError, match="must be one of 4, 8, 16"):
        plan(24, stable_images=1, fade_images=1, batch_size=1)
    with pytest.raises(ConfigError, match=r"recipe.batch_size=\{8: 4\}: has no value for 4x4"):
        plan(8, stable_images=1, fade_images=1, batch_size={8: 4})
    with pytest.raises(ConfigError, match=r"recipe\.batch_size=\{4: 4, 6: 8\}: 6 must be one of the resolutions 4, 8"):
        plan(8, stable_images=1, fade_images=1, batch_size={4: 4, 6: 8})


def test_a_length_in_epochs_keeps_the_proportions_of_the_phases():
    phases = plan(8, stable_images={4: 1000, 8: 2000}, fade_images=1000, batch_size={4: 16, 8: 8}, num_images=400)
    assert [(p.num_images, p.is_fading) for p in phases] == [(112, False), (104, True), (200, False)]
    recipe = _recipe(num_epochs=3)
    assert recipe.num_samples == recipe.phases[-1].end
    wanted, num_phases = 3 * len(recipe.datasets.train), len(recipe.phases)
    assert wanted <= recipe.num_samples < wanted + 16 * num_phases
    known = json.loads(json.dumps(recipe.state_dict()))
    arguments = ProgressiveGAN.restored_arguments(known, None)
    restored = _recipe(**{name: value for name, value in arguments.items() if name != "data"})
    assert restored.phases == recipe.phases, "whatever data a checkpoint is used with"
    assert recipe.length_key is None and _recipe().length_key == "recipe.stable_images at 8x8"


def _datasets():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Datasets(train={"images": images[:80]}, held_out={"images": images[80:]})


class _Rows(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"images": self.images[index]}


def _recipe(grad_accumulation_steps=1, batch_size=16, precision="fp64", **settings):
    runtime = Runtime(precision=precision, seed=5, tracker=Tracker(), device="cpu")
    images = _datasets()
    data = Datasets(train=_Rows(images.train["images"]), held_out=_Rows(images.held_out["images"]))
    arguments = {
        "resolution": 8,
        "latent_dim": 8,
        "fmap_base": 32,
        "fmap_max": 8,
        "stable_images": 32,
        "fade_images": 128,
        "num_directions": 16,
        **settings,
    }
    return ProgressiveGAN(
        runtime,
        data=data,
        optimizer=partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.99)),
        batch_size=batch_size,
        grad_accumulation_steps=grad_accumulation_steps,
        **arguments,
    )


def _train(grad_accumulation_steps=1, batch_size=16):
    """Ten steps, the last eight of them in the fade to 8x8; all weights, averages and the distance."""
    recipe = _recipe(grad_accumulation_steps, batch_size)
    for step, batch in enumerate(recipe.batches()):
        told = recipe.train_step(batch)
        if step == 9:
            break
    assert recipe.phase.is_fading and 0 < told["fade"] < 1
    tensors = {**recipe.G.state_dict()["module"], **{f"D.{k}": v for k, v in recipe.D.state_dict()["module"].items()}}
    tensors.update({f"average.{k}": v for k, v in recipe.G.state_dict()["average"].items()})
    return {k: v.clone() for k, v in tensors.items()}, recipe.evaluate()["swd"]


@pytest.mark.parametrize(("batch_size", "splits"), [(16, ((2, 1), (4, 1), (1, 4), (2, 2)))])
def test_weights_do_not_depend_on_the_split_in_mid_fade(batch_size, splits):
    alone, distance = _train(1, batch_size)
    largest = max(float(v.abs().max()) for v in alone.values())
    for ranks, grad_accumulation_steps in splits:
        for tensors, swd in run_ranks(_train, ranks, grad_accumulation_steps, batch_size):
            worst = max(float((tensors[name] - alone[name]).abs().max()) for name in alone)
            assert worst / largest < 1e-10, (ranks, grad_accumulation_steps)
            assert swd == pytest.approx(distance, rel=1e-9)


def test_each_phase_resets_adam_and_keeps_averages():
    recipe = _recipe(stable_images=32, fade_images=32)
    seen = []
    for batch in recipe.batches():
        recipe.train_step(batch)
        (state,) = {int(entry["step"]) for entry in recipe.G.optimizer.state.values()}
        seen.append((str(recipe.phase).split(" for")[0], state, recipe.G.num_updates))
    assert seen == [
        ("4x4 training", 1, 1),
        ("4x4 training", 2, 2),
        ("8x8 fading in", 1, 3),
        ("8x8 fading in", 2, 4),
        ("8x8 training", 1, 5),
        ("8x8 training", 2, 6),
    ]
    average, weights = recipe.G.state_dict()["average"], recipe.G.state_dict()["module"]
    assert average.keys() == weights.keys()
    assert not torch.equal(average["blocks.4.conv.weight"], weights["blocks.4.conv.weight"])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains(precision):
    recipe = _recipe(precision=precision)
    for step, batch in enumerate(recipe.batches()):
        told = recipe.train_step(batch)
        if step == 3:
            break
    assert np.isfinite(float(told["d_loss"])) and np.isfinite(float(told["penalty"]))


@pytest.mark.parametrize(
    ("num", "final", "low"),
    [
        (4, 1024, {1024, 512, 256, 128}),
        (4, 32, {32, 16, 8}),  # 4x4 never
        (2, 32, {32, 16}),
        (0, 32, set()),
        (9, 8, {8}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_highest_resolutions_compute_in_low_precision(num, final, low, dtype):
    rule, found = LowPrecision.highest(num, final, 256.0), {}
    resolution = min(final, 32)  # a network that has not grown to 1024 yet has none of those
    for network, given in ((Generator, (4, 8)), (Discriminator, (4, 3, resolution, resolution))):
        module = network(SMALL, resolution, True, rule)
        for name, layer in module.named_modules():
            if name.startswith(("blocks.", "from_image.", "to_image.")) and not [*layer.children()]:
                size = int(name.split(".")[1])
                layer.register_forward_hook(lambda layer, given, out, size=size: found[size].add(out.dtype))
                found.setdefault(size, set())
        with torch.autocast("cpu", dtype):
            assert module(torch.randn(given), 0.5).dtype == torch.float32
    assert found == {size: {dtype if size in low else torch.float32} for size in found}
    assert found.keys() >= {4, 8, resolution}


def _weights_after(precision, **settings):
    """Of both networks, after four steps in the fade to 8x8."""
    recipe = _recipe(precision=precision, **settings)
    for step, batch in enumerate(recipe.batches()):
        recipe.train_step(batch)
        if step == 5:
            break
    assert recipe.phase.is_fading
    return torch.cat([p.detach().flatten() for engine in (recipe.G, recipe.D) for p in engine.module.parameters()])


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_without_low_precision_its_settings_change_no_bit(precision):
    usual = _weights_after(precision)
    assert torch.equal(usual, _weights_after(precision, low_precision_resolutions=0, clamp=1e-3))
    assert torch.equal(usual, _weights_after(precision, low_precision_resolutions=9, clamp=1e-3))


def test_with_no_resolution_left_bf16_computes_as_fp32_does():
    exact = _weights_after("fp32")
    assert torch.equal(exact, _weights_after("bf16", low_precision_resolutions=0))
    low = _weights_after("bf16", low_precision_resolutions=1)
    assert 0 < float((low - exact).abs().max()) < 0.1
    assert not torch.equal(low, _weights_after("bf16", low_precision_resolutions=1, clamp=0.01))


def _scores(clamp, gain):
    """Of a discriminator and a generator whose convolutions at 8x8 have weights `gain` times the usual, in fp16."""
    torch.manual_seed(0)
    low = LowPrecision(clamp=clamp)
    G, D = Generator(SMALL, 8, low=low), Discriminator(SMALL, 8, low=low)
    largest = []
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        for module in (G, D):
            module.blocks["8"].conv1.weight.mul_(gain)
        D.blocks["8"].conv2.register_forward_pre_hook(lambda layer, given: largest.append(float(given[0].abs().max())))
        image = G(torch.randn(8, 8))
        scores = D(torch.randn(8, 3, 8, 8))
    return image, scores, largest[0]


def test_large_activations_saturate_in_fp16_and_stay_numbers():
    image, scores, largest = _scores(256.0, 1e5)
    assert torch.isfinite(image).all() and torch.isfinite(scores).all() and largest == 256.0
    assert image.abs().max() > 0.01
    _, unclamped, largest = _scores(float("inf"), 1e5)
    assert largest == float("inf") and not torch.isfinite(unclamped).all()
    for ours, free in zip(_scores(256.0, 1.0), _scores(float("inf"), 1.0), strict=True):
        assert ours == free if isinstance(ours, float) else torch.equal(ours, free)  # the usual ones are not touched


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pixel_norm_of_what_was_clamped(dtype):
    """Squares of activations near the clamp are no fp16 numbers; value and gradient against float64."""
    x = torch.tensor([1e-3, 1.0, 200.0, 256.0], dtype=dtype).view(1, 4, 1, 1) * torch.tensor([1.0, -1.0]).view(
        2, 1, 1, 1
    )
    x = x.to(dtype).requires_grad_(True)
    exact = x.detach().double().requires_grad_(True)
    weight = torch.tensor([1.0, 2.0, 3.0, -1.0]).view(1, 4, 1, 1)
    outputs = pixel_norm(x), pixel_norm(exact)
    for out in outputs:
        (out.double() * weight).sum().backward()
    assert outputs[0].dtype == dtype
    rounding = 4 * torch.finfo(dtype).eps
    assert torch.allclose(outputs[0].double(), outputs[1], rtol=rounding)
    assert torch.allclose(x.grad.double(), exact.grad, rtol=rounding, atol=rounding * float(exact.grad.abs().max()))


def test_settings_of_low_precision_that_cannot_be():
    for settings in ({"low_precision_resolutions": -1}, {"clamp": 0.0}):
        with pytest.raises(ConfigError, match=r"they must be 0 or more resolutions, and a clamp above 0"):
            _recipe(**settings)


def test_shares_that_split_groups_are_refused_at_the_start():
    with pytest.raises(ConfigError, match=r"batch_size=12 at 4x4.*multiple of 8"):
        _recipe(grad_accumulation_steps=2, batch_size=12)
    with pytest.raises(DataError, match=r"do not fit images of shape \[3, 8, 8\]"):
        _recipe(resolution=16)
    with pytest.raises(ConfigError, match=r"recipe\.learning_rates=\{100: 0\.1\}: 100 must be one of the resolutions"):
        _recipe(learning_rates={100: 0.1})
    with pytest.raises(ConfigError, match=r"recipe\.num_shown=0: must be 1 or more"):
        _recipe(num_shown=0)


def test_a_phase_cannot_be_jumped_over():
    recipe = _recipe(stable_images=32, fade_images=32)
    with pytest.raises(ConfigError, match=r"4x4 training.* put position 64 at 8x8 training"):
        next(recipe.batches(start=64))


def test_items_without_images_are_named():
    runtime = Runtime(tracker=Tracker(), device="cpu")
    data = Datasets(train=[{"pixels": torch.zeros(3, 8, 8)}], held_out=[])
    with pytest.raises(DataError, match=r"these have \['pixels'\]"):
        ProgressiveGAN(runtime, data=data, optimizer=torch.optim.Adam, resolution=8)


def test_grid_and_animation(tmp_path):
    from PIL import Image

    picture = grid(torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 4, 4), cell=8)
    assert picture.shape == (18, 28, 3)
    places = [(y, x) for y in (0, 10) for x in (0, 10, 20)]
    assert [int(picture[y, x, 0]) for y, x in places] == [0, 64, 128, 191, 255, 255]  # the last one is empty
    assert [int(picture[y + 7, x + 7, 0]) for y, x in places] == [0, 64, 128, 191, 255, 255]
    assert (picture[8:10] == 255).all() and (picture[:, [8, 9, 18, 19]] == 255).all()  # lines between the cells
    assert grid(torch.zeros(1, 3, 4, 4), cell=8).shape == (8, 8, 3)
    frames = []
    for i in range(3):
        frames.append(tmp_path / f"{i}.png")
        Image.fromarray(np.roll(picture, i, axis=0)).save(frames[-1])
    animate(frames, tmp_path / "a.gif", crop=8, scale=4)
    with Image.open(tmp_path / "a.gif") as made:
        assert made.n_frames == 3 and made.size == (32, 32)


def test_an_animation_is_written_as_it_grows(tmp_path):
    """So no more than one picture is in memory; large ones are shrunk, and all are as large as the first."""
    from PIL import Image

    written = []

    class Frames(list):
        def __iter__(self):
            for frame in super().__iter__():
                path = tmp_path / "a.tmp.gif"
                written.append(path.stat().st_size if path.exists() else 0)
                yield frame

    sizes = [(2100, 2100), (1050, 1050), (2100, 2100)]
    frames = Frames(tmp_path / f"{number}.png" for number in range(3))
    for number, (frame, size) in enumerate(zip(list(frames), sizes, strict=True)):
        noise = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        noise[:, : size[0] // 2] = (200, 40 * number, 0)
        Image.fromarray(noise).save(frame, compress_level=1)
    written.clear()
    animate(frames, tmp_path / "a.gif")
    assert 0 <= written[0] < 200_000 < written[1] < written[2] - 200_000, (
        "a frame is in the file before the next is read"
    )
    with Image.open(tmp_path / "a.gif") as made:
        assert (made.n_frames, made.size, made.info["loop"]) == (3, (700, 700), 0)
        for number in range(3):
            made.seek(number)
            assert made.info["duration"] == (2000 if number == 2 else 120)
            assert np.abs(np.subtract(made.convert("RGB").getpixel((100, 350)), (200, 40 * number, 0))).max() <= 16


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_killed_in_mid_fade_and_resumed_gives_the_same_bits(tmp_path, ranks):
    arguments = [
        *TRAINED_SHORTLY,
        "recipe.stable_images={4: 160, 8: 160, 16: 160}",  # numbers for keys, which are strings in a manifest
        "recipe.fade_images={8: 1600, 16: 1600}",
        "save_every=20",
    ]
    assert_killed_equals_whole(tmp_path, arguments, ranks, kill_from_step=40)


@pytest.mark.slow
def test_a_run_ends_with_pictures_and_can_be_sampled_from(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    arguments = [*TRAINED_SHORTLY, "recipe.stable_images=64", "recipe.fade_images=64", "evaluate_every=4"]
    done = run([*arguments, "tracking.wandb=null", f"run_dir={run_dir}"], 2)
    assert done.returncode == 0, done.stderr
    for phase in ("4x4 training", "8x8 fading in", "8x8 training"):
        assert f"growth: {phase}" in done.stdout
    for name in ("growth.gif", "growth_one_latent.gif", "curve.png", "metrics.jsonl", "config.yaml"):
        assert (run_dir / name).stat().st_size > 0
    sample(run_dir, num=9, output=tmp_path / "grid.png")
    from PIL import Image

    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size == (196, 196)
    with pytest.raises(ConfigError, match="names no picture format"):
        sample(run_dir, num=9, output=tmp_path / "grid.xyz")
