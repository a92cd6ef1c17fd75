"""Pictures, texts and tables that trackers accept, and the checks of what they are given."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from trainkit.errors import ConfigError

CHANNELS = (1, 3, 4)
ALLOWED = (
    "a matplotlib figure, a PIL image, or an array or tensor [height, width], [height, width, channels] or "
    "[channels, height, width] of 1, 3 or 4 channels, uint8 or of 0 .. 1"
)


def picture(name: str, given: Any) -> np.ndarray:
    """Converts anything that can be shown as a picture to an array.

    Args:
        name: the name of the picture, for messages.
        given: a matplotlib figure or axes, a PIL image, or an array or tensor [height, width],
            [height, width, channels] or [channels, height, width]: uint8, other integers of 0 .. 255, or floats of
            0 .. 1.

    Returns:
        uint8 [height, width, 1 or 3]; transparent pixels are blended with white.

    Raises:
        ConfigError: naming the picture, for anything else.

    Example:
        >>> picture("grey", np.zeros((2, 3))).shape
        (2, 3, 1)
    """
    from PIL import Image

    figure = getattr(given, "figure", given)  # of axes
    if hasattr(figure, "savefig"):
        file = io.BytesIO()
        figure.savefig(file, format="png")
        with Image.open(file) as drawn:
            given = np.asarray(drawn.convert("RGBA"))
    elif isinstance(given, Image.Image):
        given = np.asarray(given.convert("L" if given.mode in ("1", "L") else "RGBA"))
    elif isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() else given).numpy()  # NumPy has no bfloat16
    elif not isinstance(given, np.ndarray):
        raise ConfigError(f"picture {name}={_shortly(given)}: must be {ALLOWED}")
    return _on_white(_as_bytes(name, _channels_last(name, given)))


def require_rows(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Raises ConfigError for a table in which a row does not have one cell per column."""
    for row in rows:
        if isinstance(row, str) or len(row) != len(columns):
            raise ConfigError(
                f"table {name}: row {_shortly(row)} must have a cell for each of the columns "
                f"{', '.join(map(str, columns))}"
            )


def require_text(name: str, text: Any) -> None:
    """Raises ConfigError for a text that is no string."""
    if not isinstance(text, str):
        raise ConfigError(f"text {name}={_shortly(text)}: must be a string")


def _channels_last(name: str, values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3 and values.shape[-1] in CHANNELS:
        return values
    if values.ndim == 3 and values.shape[0] in CHANNELS:
        return np.moveaxis(values, 0, -1)
    raise ConfigError(f"picture {name} of shape {[*values.shape]} must be {ALLOWED}")


def _as_bytes(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    is_float = np.issubdtype(values.dtype, np.floating)
    if not (is_float or np.issubdtype(values.dtype, np.integer)):
        raise ConfigError(f"picture {name} of {values.dtype} must be {ALLOWED}")
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    largest = 1 if is_float else 255
    if not (low >= 0 and high <= largest):
        raise ConfigError(f"picture {name} has values of {low:.4g} to {high:.4g}, which must be 0 to {largest}")
    return np.round(values * 255).astype(np.uint8) if is_float else values.astype(np.uint8)


def _on_white(values: np.ndarray) -> np.ndarray:
    if values.shape[-1] != 4:
        return np.ascontiguousarray(values)
    opacity = values[..., 3:].astype(np.float32) / 255
    return np.round(values[..., :3] * opacity + 255 * (1 - opacity)).astype(np.uint8)


def _shortly(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
