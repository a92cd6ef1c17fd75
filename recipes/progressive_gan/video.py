"""A video of interpolated images: .mp4 by PyAV, .gif, .webp and .png by Pillow."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainkit.errors import ConfigError

BY_PILLOW = (".gif", ".webp", ".png")
BY_AV = (".mp4", ".webm", ".mkv", ".mov")
_CODECS = {".webm": "libvpx-vp9"}


def require_format(path: Path) -> None:
    """Raises ConfigError for a suffix that no video can be written as, or a missing library."""
    suffix = path.suffix.lower()
    if suffix in BY_PILLOW:
        return
    if suffix not in BY_AV:
        raise ConfigError(f"--video {path}: must end with one of {', '.join((*BY_AV, *BY_PILLOW))}")
    try:
        import av  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--video {path} needs PyAV: pip install 'trainkit[video]'; or write {path.with_suffix('.webp')}"
        ) from None


def write_video(frames: Iterable[np.ndarray], path: Path, fps: int) -> None:
    """Writes a video, with one frame in memory at a time where PyAV writes it. GIF and WebP start again at their end.

    Args:
        frames: uint8 [H, W, 3] each, of one size.
        path: the file; its suffix is the format.
        fps: frames per second.

    Raises:
        ConfigError: as `require_format`.
    """
    require_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in BY_AV:
        _write_by_av(frames, path, fps)
        return
    pictures: Iterator[Image.Image] = (Image.fromarray(frame) for frame in frames)
    first = next(pictures)
    settings: dict[str, Any] = {"quality": 90, "method": 4} if path.suffix.lower() == ".webp" else {}
    first.save(path, save_all=True, append_images=pictures, duration=round(1000 / fps), loop=0, **settings)


def _write_by_av(frames: Iterable[np.ndarray], path: Path, fps: int) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(_CODECS.get(path.suffix.lower(), "libx264"), rate=Fraction(fps))
        stream.pix_fmt = "yuv420p"  # what every player decodes
        stream.options = {"crf": "18"}
        for number, pixels in enumerate(frames):
            even = np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge")
            if number == 0:
                stream.height, stream.width = even.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
