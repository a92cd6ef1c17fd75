"""Generated: a folder of labelled images that a trained recipe has made, as other programs read it."""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainkit.data.progress import track
from trainkit.errors import ConfigError, nearest, require_at_least
from trainkit.recipe import Recipe

Layout = Literal["folders", "json"]
MANIFEST, LABELS_FILE = "generated.json", "dataset.json"
_AT_ONCE = 64  # images
_MOST = 2**63  # numbers of images are int64
_IN_A_FOLDER = 1000  # of the layout without class folders


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What is generated: image i is of class i modulo the number of classes, and made of number `start` + i.

    Args:
        num: images.
        classes: names, of those that the recipe knows; empty: all of them.
        start: number of the first image; others give other images.
        layout: `folders`: one for each class. `json`: all together, with the labels in dataset.json, as StyleGAN's
            tools write it.

    Raises:
        ConfigError: for numbers out of range, and a class that is given twice.
    """

    num: int
    classes: tuple[str, ...] = ()
    start: int = 0
    layout: Layout = "folders"

    def __post_init__(self) -> None:
        require_at_least(1, "--", num=self.num)
        require_at_least(0, "--", start=self.start)
        if self.start + self.num > _MOST:
            raise ConfigError(f"--start={self.start}: with --num={self.num}, it must be {_MOST - self.num} or less")
        if twice := [name for name, num in Counter(self.classes).items() if num > 1]:
            raise ConfigError(f"--classes: {twice[0]} is given twice; name each class once")

    def write(self, recipe: Recipe, output: Path, made_by: Mapping[str, Any], progress: bool = True) -> int:
        """Writes the images as PNGs. One that was killed is continued: images that are there are kept.

        Args:
            recipe: with trained engines, made without data.
            output: a folder that does not exist, is empty, or holds a part of these images.
            made_by: facts that identify the generator, in MANIFEST: a folder of another one is not continued.
            progress: whether to show progress.

        Returns:
            The number of images that were there before.

        Raises:
            ConfigError: for a class that the recipe does not know, a recipe that generates nothing, and a folder that
                holds anything else or more images, or cannot be written.
        """
        if type(recipe).generate is Recipe.generate:
            recipe.generate([])  # says so, before there is a folder
        known = recipe.datasets.classes if recipe.datasets is not None else ()
        chosen = self._chosen(known)
        manifest = {**made_by, "classes": [*known], "chosen": chosen, "start": self.start, "layout": self.layout}
        _claim(output, manifest)
        self._require_no_more(output, known)
        num_made, files = 0, self.files(known)
        parts = (range(start, min(start + _AT_ONCE, self.num)) for start in range(0, self.num, _AT_ONCE))
        for part in track(parts, "generating images", -(-self.num // _AT_ONCE), progress):
            named = [(i, *files.of(i)) for i in part]
            missing = [(i, output / file, label) for i, file, label in named if not (output / file).is_file()]
            if missing:
                labels = [label for *_, label in missing] if chosen else None
                images = recipe.generate([self.start + i for i, *_ in missing], labels)
                for (_, path, _), image in zip(missing, images.cpu().numpy(), strict=True):
                    _save(path, image)
            num_made += len(missing)
        if self.layout == "json" and chosen:
            entries = ",\n".join(json.dumps(files.of(i)) for i in range(self.num))
            written = f'{{"labels": [\n{entries}\n],\n"classes": {json.dumps([*known])}}}\n'
            _replace(output / LABELS_FILE, written.encode())
        return self.num - num_made

    def files(self, known: Sequence[str]) -> "Files":
        """Returns what names the images.

        Args:
            known: the classes that the recipe knows.

        Raises:
            ConfigError: for a class that it does not know.
        """
        return Files(self.start, self.layout, known, self._chosen(known))

    def _chosen(self, known: Sequence[str]) -> list[int]:
        """Labels of the classes that are generated."""
        for name in self.classes:
            if name not in known:
                has = f"its classes are {', '.join(known)}" if known else "it was trained without classes"
                raise ConfigError(f"--classes {name}: the run has no such class; {has}.{nearest(name, known)}")
        return [known.index(name) for name in self.classes] or [*range(len(known))]

    def _require_no_more(self, output: Path, known: Sequence[str]) -> None:
        """Refuses a folder with more images, of which dataset.json would lose the labels."""
        file, _ = self.files(known).of(self.num)
        if (output / file).is_file():
            raise ConfigError(f"--num={self.num}: {output} holds more images of the same; give more, or another folder")


@dataclass(frozen=True)
class Files:
    """The names of the images in the folder, and their labels; made one by one, as there may be millions.

    Args:
        start: see `Generated`.
        layout: see `Generated`.
        known: the classes that the recipe knows.
        chosen: labels of those that are generated; empty: there are no classes.
    """

    start: int
    layout: Layout
    known: Sequence[str]
    chosen: Sequence[int]

    def label(self, i: int) -> int:
        """Returns the label of image i; -1: there are no classes."""
        return self.chosen[i % len(self.chosen)] if self.chosen else -1

    def of(self, i: int) -> tuple[str, int]:
        """Returns the name of image i in the folder, and its label.

        Raises:
            ConfigError: for a class that cannot be the name of a folder.
        """
        label = self.label(i)
        return self._file(i, label), label

    def _file(self, i: int, label: int) -> str:
        name = f"{self.start + i:08}.png"
        if label < 0 or self.layout == "json":
            return f"{i // _IN_A_FOLDER:05}/{name}"
        folder = self.known[label]
        if folder in ("", ".", "..") or "/" in folder or "\0" in folder:
            raise ConfigError(f"class {folder!r} is no name of a folder: give --labels json")
        return f"{folder}/{name}"


def _claim(output: Path, manifest: Mapping[str, Any]) -> None:
    """Makes the folder, or finds one that holds images of the same generator."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        there = any(output.iterdir())
        path = output / MANIFEST
        if there and not path.is_file():
            raise ConfigError(f"{output} is not empty: give another folder, or remove it")
        if there and _read(path) != json.loads(json.dumps(manifest)):
            raise ConfigError(
                f"{output} holds images of another generator or with other options ({MANIFEST}): give another folder, "
                f"or remove it"
            )
        _replace(path, (json.dumps(manifest, indent=2) + "\n").encode())
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error.strerror or error}; give another folder") from error


def _read(manifest: Path) -> Any:
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        return None  # it is another file of that name


def _save(path: Path, image: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
    """Writes uint8 [C, H, W] as a PNG, completely or not at all."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "PNG")
    _replace(path, buffer.getvalue())


def _replace(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}; make room, and repeat it") from error
