"""Text files that are written whole or not at all."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one rename.

    Args:
        path: the file.
        text: all of it.

    Raises:
        OSError: where it cannot be written; one that exists stays.
    """
    half = path.with_name(f".{path.name}.part")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError:
        half.unlink(missing_ok=True)
        raise
