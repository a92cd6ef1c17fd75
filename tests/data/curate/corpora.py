"""Corpora that are made for tests."""

import argparse
import json
import random
import re
from itertools import pairwise
from pathlib import Path

import numpy

from trainkit.data.readers import read_documentation

GERMAN = (
    "Die Bibliothek liest jede Datei des Ordners und teilt sie in einzelne Abschnitte auf.",
    "Wenn der Speicher nicht ausreicht, wird die Berechnung in kleinere Teile zerlegt.",
    "Am Ende schreibt das Programm einen Bericht, den man im Browser betrachten kann.",
)
FRENCH = (
    "La bibliothèque lit tous les fichiers du dossier et les divise en paragraphes.",
    "Quand la mémoire ne suffit pas, le calcul est divisé en plusieurs parties plus petites.",
)


def paragraphs(num):
    """Different ones of the documentation of argparse and numpy.lib, in a fixed order, in English and ASCII."""
    files = [Path(argparse.__file__), *sorted((Path(numpy.__file__).parent / "lib").glob("*.py"))]
    found = list(dict.fromkeys(text for file in files for text in read_documentation(file, "")))
    found = [text for text in found if text.isascii() and not re.search(r"[<&]", text)]
    random.Random(0).shuffle(found)
    assert len(found) >= num
    return found[:num]


def write_rows(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def read_rows(folder):
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]


def changed(text, draw):
    """The same with another word in one place."""
    words = text.split()
    words[draw.randrange(len(words))] = "qvxzj"
    return " ".join(words)


def similarity(first, second):
    """Jaccard's, of pairs of neighbouring words as strings, and the fewest of the two: the oracle."""
    one, other = (_pairs(text) for text in (first, second))
    return len(one & other) / max(1, len(one | other)), min(len(one), len(other))


def _pairs(text):
    words = [re.sub(r"[^0-9a-z]", "", word) for word in text.lower().split()]
    return set(pairwise(word for word in words if word))
