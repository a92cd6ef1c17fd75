"""Labels: the class of every image, from folders or from the `dataset.json` that StyleGAN's tools write."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from trainkit.data.formats.pictures import Pictures
from trainkit.data.image_formats import LABELS_FILE
from trainkit.data.image_sources import ImageSource
from trainkit.errors import DataError
from trainkit.json_text import parse_json

From = Literal["auto", "none", "folders", "json", "column"]
_NUM_NAMED = 3  # images in a message
_HINT = "or set data.labels=none"


@dataclass(frozen=True)
class Labels:
    """The class of every image of a source.

    Args:
        classes: the names of the classes; a label is an index into them.
        of: the label of each image, in the order of the source's names.
        num_others: labels of images that are not there.
    """

    classes: tuple[str, ...]
    of: Sequence[int]
    num_others: int = 0

    @property
    def digest(self) -> str:
        """Hash of the classes and the labels."""
        return hashlib.blake2b(repr((self.classes, [*self.of])).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class LabelSummary:
    """What is known of `Labels` without those of each image.

    Args:
        classes: the names of the classes.
        num_others: labels of images that are not there.
        digest: of the labels.
    """

    classes: Sequence[str]
    num_others: int
    digest: str


def summary_of(labels: Labels | None) -> dict[str, Any] | None:
    """Returns what makes a `LabelSummary`, JSON-serializable; None for no labels."""
    if labels is None:
        return None
    return {"classes": [*labels.classes], "num_others": labels.num_others, "digest": labels.digest}


def find_labels(source: ImageSource, where: From) -> Labels | None:
    """Reads the labels of the images of a source.

    Args:
        source: of the images.
        where: `folders`: the class of an image is the first folder below data.path; `json`: `dataset.json`,
            `{"labels": [["folder/image.png", 3], ...]}`, where a list `classes` beside has the names by label; `auto`:
            `dataset.json` where it holds labels, otherwise none; `column`: that of a data set in shards.

    Returns:
        The labels; None where there are none.

    Raises:
        DataError: for images without a label, for fewer than two classes, and for a file that cannot be used.
    """
    if where == "none":
        return None
    names = source.names()
    if where == "column":
        return _of_column(source, names)
    if where == "folders":
        if isinstance(source, Pictures):
            raise DataError("data.labels=folders: data.path holds no folders of images; set data.labels=column or none")
        return _of_folders(source, names)
    written, classes = _read(source)
    if written is not None:
        return _of_json(written, classes, names)
    if where == "json":
        raise DataError(
            f"data.labels=json: data.path holds no {LABELS_FILE} with labels; add one, "
            f'{{"labels": [["folder/image.png", 3], ...]}}, or set data.labels=folders or none'
        )
    return None


def where_classes_are(source: ImageSource, classes: Sequence[str], wanted: From) -> From:
    """Finds out where the labels of a source come from, of which the classes are known.

    Args:
        source: of the images.
        classes: their names by label.
        wanted: tried first; see `find_labels`.

    Returns:
        What makes `find_labels` return these classes; `wanted` where nothing does.
    """
    tried: tuple[From, ...] = (wanted, "json", "folders")
    for where in tried:
        with suppress(DataError):
            labels = find_labels(source, where)
            if labels is not None and labels.classes == tuple(classes):
                return where
    return wanted


def _of_column(source: ImageSource, names: Sequence[str]) -> Labels:
    if not isinstance(source, Pictures):
        raise DataError("data.labels=column: data.path has no columns; set data.labels=folders, json or none")
    found, named = [source.label_of(name) for name in names], source.class_names
    if not named:
        return _numbered("data.labels=column", found)
    if outside := [label for label in found if not isinstance(label, int) or label >= len(named)]:
        raise DataError(
            f"data.labels=column: the class {outside[0]} is none of the {len(named)} that are named; save the data set "
            f"again, {_HINT}"
        )
    numbered = _numbered("data.labels=column", found)
    return replace(numbered, classes=tuple(named[int(number)] for number in numbered.classes))


def _of_folders(source: ImageSource, names: Sequence[str]) -> Labels:
    found = [source.class_of(name) for name in names]
    if without := [name for name, folder in zip(names, found, strict=True) if folder is None]:
        raise DataError(
            f"data.labels=folders: {_listed(without)} in no folder below data.path; move each image "
            f"to the folder of its class, {_HINT}"
        )
    return _numbered("data.labels=folders", [str(folder) for folder in found])


def _read(source: ImageSource) -> tuple[list[Any] | None, list[str] | None]:
    """Reads the labels of `dataset.json` and the names of the classes; None where there is no such file or entry."""
    content = source.read(LABELS_FILE)
    if content is None:
        return None, None
    try:
        whole = parse_json(content)
    except ValueError as error:
        raise DataError(f"{LABELS_FILE} of data.path is no JSON ({error}); repair it, {_HINT}") from error
    labels = whole.get("labels") if isinstance(whole, Mapping) else None
    if labels is not None and not isinstance(labels, list):
        raise DataError(f'{LABELS_FILE} of data.path: "labels" must be a list of [image, class]; repair it, {_HINT}')
    return labels or None, _classes_of(whole) if labels else None


def _classes_of(whole: Mapping[str, Any]) -> list[str] | None:
    classes = whole.get("classes")
    if classes is None:
        return None
    is_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not is_names or len({*classes}) < len(classes):
        raise DataError(
            f'{LABELS_FILE} of data.path: "classes" must be a list of different names, by label; change or remove it, '
            f"{_HINT}"
        )
    return [*classes]


def _of_json(written: Iterable[Any], classes: Sequence[str] | None, names: Sequence[str]) -> Labels:
    labels: dict[str, int | str] = {}
    for entry in written:
        name, label = _entry(entry)
        if labels.setdefault(name, label) != label:
            raise DataError(f"{LABELS_FILE} of data.path: {name} has two labels; remove one, {_HINT}")
    paths = [str(PurePosixPath(name)) for name in names]
    if without := [path for path in paths if path not in labels]:
        raise DataError(f"{_listed(without)} without a label in {LABELS_FILE} of data.path; add it, {_HINT}")
    found, num_others = [labels[path] for path in paths], len(labels) - len(paths)
    if classes is None:
        return _numbered(LABELS_FILE, found, num_others)
    order = {name: number for number, name in enumerate(classes)}
    for path, label in zip(paths, found, strict=True):
        if not (label in order if isinstance(label, str) else 0 <= label < len(classes)):
            raise DataError(
                f'{LABELS_FILE} of data.path: {path} has the class {label}, and "classes" are {len(classes)}: '
                f"{', '.join(classes[:_NUM_NAMED])}{' ...' if len(classes) > _NUM_NAMED else ''}; change one, {_HINT}"
            )
    numbered = _numbered(
        LABELS_FILE, [order[label] if isinstance(label, str) else label for label in found], num_others
    )
    return replace(numbered, classes=tuple(classes[int(number)] for number in numbered.classes))


def _entry(entry: Any) -> tuple[str, int | str]:
    is_pair = isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
    label = entry[1] if is_pair else None
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    if not isinstance(label, int | str) or isinstance(label, bool):
        raise DataError(
            f"{LABELS_FILE} of data.path: {json.dumps(entry)[:80]} must be [image, class], the class a whole number "
            f"or a name (not a vector); change it, {_HINT}"
        )
    return str(PurePosixPath(entry[0].replace("\\", "/"))), label


def _numbered(where: str, found: Sequence[int | str], num_others: int = 0) -> Labels:
    """Numbers the classes that occur: numbers by size, names by alphabet."""
    # A number may be one among names.
    names = sorted(set(found), key=lambda name: (isinstance(name, str), name))
    classes = tuple(map(str, names))
    if len(set(classes)) < 2:
        raise DataError(f"{where}: all images are of one class ({classes[0]}); add another one, {_HINT}")
    number = {name: label for label, name in enumerate(names)}
    return Labels(classes, [number[name] for name in found], num_others)


def _listed(names: Sequence[str]) -> str:
    named = ", ".join(names[:_NUM_NAMED])
    if len(names) > _NUM_NAMED:
        return f"{named} and {len(names) - _NUM_NAMED} more images are"
    return f"{named} {'are' if len(names) > 1 else 'is'}"
