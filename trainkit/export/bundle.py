"""Bundle: a model with all that a small device needs to run it, where there is onnxruntime and numpy and no PyTorch."""

import hashlib
import json
import shutil
import tempfile
import zipfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trainkit.encryption import encrypt_files, plain_in_memory, room_in_memory
from trainkit.errors import ConfigError
from trainkit.export.card import public_configuration
from trainkit.export.export import Export, Exporter
from trainkit.export.onnx import OPSET, OnnxModel, Written, write_onnx

FORMAT, VERSION = "trainkit-edge", 1
ONNXRUNTIME = "1.18"
"""The oldest onnxruntime that reads the files: the IR version that PyTorch's exporter writes is new in it."""
MODEL = "model.onnx"
_DEVICE = Path(__file__).parent / "device"
# By kind: what the bundle has from `device`, and as what.
_PROGRAMS: dict[str, dict[str, str]] = {
    "texts": {"texts.py": "task.py", "wordpiece.py": "wordpiece.py", "characters.json": "characters.json"},
    "pictures": {"pictures.py": "task.py"},
}
_ALWAYS = {"run.py": "run.py", "bundle.py": "bundle.py"}
_ENCRYPTED = {"age.py": "age.py"}
_README = """\
# {task} of {run}

Needs Python 3.8 or newer, `onnxruntime` {onnxruntime} or newer and `numpy`{more}; no PyTorch.

```sh
pip install onnxruntime numpy{packages}
{example}
```

{usage}

Each line of the input gives one line of JSON; a line that cannot be used has an `error`. `--threads 2` limits the
threads, `--provider CUDAExecutionProvider` runs on a GPU where the installed onnxruntime has it. Files are compared
with the sha256 in bundle.json before they are used, which finds damaged copies.

`bundle.json` says what the files are, which inputs and outputs `model.onnx` has, and of which run it is. It states no
license: add yours.
"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a bundle holds.

    Args:
        model: the module.
        task: what the runner does: `classification`, `regression`, `token_classification`, `sentence_embeddings`,
            `masked_words`, or `pictures`.
        kind: of the inputs.
        settings: for the runner, in bundle.json, which can be read without a key.
        files: text by file name; encrypted where the bundle is.
        usage: what a line of the input is, in Markdown.
        example: such a line.
    """

    model: OnnxModel
    task: str
    kind: Literal["texts", "pictures"]
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    usage: str
    example: str


@dataclass(frozen=True)
class Sealing:
    """An exporter that encrypts for `export.recipients` by itself, and leaves readable what must be.

    Args:
        exporter: what it calls.
    """

    exporter: Exporter

    def __call__(self, export: Export) -> Iterator[str]:
        """Exports."""
        yield from self.exporter(export)


def write_bundle(bundle: Bundle, export: Export) -> Iterator[str]:
    """Writes a bundle: a directory, or one .zip file of the same files, which are not compressed.

    Args:
        bundle: what it holds.
        export: where to, of which run, whether as int8, and for whom it is encrypted. Then the model and `bundle.files`
            are, which lie in memory until then; the programs, the README.md and bundle.json are not.

    Yields:
        Lines for the user.

    Raises:
        ConfigError: as `write_onnx`.
    """
    is_zip = _is_zip(export)
    with _workplace(export) as plain:
        with room_in_memory() if export.recipients else nullcontext():
            written = yield from _model(bundle, export, plain)
            for name, text in bundle.files.items():
                (plain / name).write_text(text, encoding="utf-8")
        with tempfile.TemporaryDirectory(dir=export.target.parent) as aside:
            directory = Path(aside) / export.destination.stem if is_zip else export.target
            directory.mkdir()
            if export.recipients:
                encrypt_files(plain, directory, export.recipients)
            else:
                for path in plain.iterdir():
                    path.rename(directory / path.name)
            _add_programs(bundle, export, directory)
            _write_manifest(bundle, export, written, directory)
            num_bytes = sum(path.stat().st_size for path in directory.iterdir())
            if is_zip:
                pack(directory, export.target)
    if export.recipients:
        yield f"encrypted for {', '.join(key.text for key in export.recipients)}: {MODEL}, {', '.join(bundle.files)}"
    yield f"{num_bytes / 1e6:.1f} MB: {export.destination}"
    unpack = f"python -m zipfile -e {export.destination.name} {export.destination.stem}; " if is_zip else ""
    yield f"on the device: {unpack}{_command(bundle, export)}"


@contextmanager
def _workplace(export: Export) -> Iterator[Path]:
    """An empty directory: in memory for what is to be encrypted, else on the disk of the target."""
    if export.recipients:
        with plain_in_memory() as memory:
            yield memory
    else:
        with tempfile.TemporaryDirectory(dir=export.target.parent) as aside:
            yield Path(aside)


def _model(bundle: Bundle, export: Export, plain: Path) -> Generator[str, None, Written]:
    unpacked = Path(export.destination.stem) if _is_zip(export) else export.destination
    inside = replace(export, target=plain / MODEL, destination=unpacked / MODEL)
    written = yield from write_onnx(bundle.model, inside)
    if len(beside := [path.name for path in plain.iterdir()]) > 1:
        raise ConfigError(
            f"--to edge: the weights are too large for one file ({', '.join(sorted(beside))}); use --to onnx, which "
            f"writes as many as it takes"
        )
    return written


def _add_programs(bundle: Bundle, export: Export, directory: Path) -> None:
    programs = {**_ALWAYS, **_PROGRAMS[bundle.kind], **(_ENCRYPTED if export.recipients else {})}
    for source, name in programs.items():
        shutil.copyfile(_DEVICE / source, directory / name)
    text = _README.format(
        task=bundle.task.replace("_", " ").capitalize(),
        run=export.run.name,
        onnxruntime=ONNXRUNTIME,
        more=", and `cryptography` to decrypt" if export.recipients else "",
        packages=" cryptography" if export.recipients else "",
        example=_command(bundle, export, inside=True),
        usage=bundle.usage,
    )
    (directory / "README.md").write_text(text, encoding="utf-8")


def _command(bundle: Bundle, export: Export, *, inside: bool = False) -> str:
    directory = "" if inside else f"{export.destination.stem if _is_zip(export) else export.destination}/"
    key = " --identity key.txt" if export.recipients else ""
    return f"echo '{bundle.example}' | python {directory}run.py{key}"


def _is_zip(export: Export) -> bool:
    return export.destination.suffix == ".zip"


def _write_manifest(bundle: Bundle, export: Export, written: Written, directory: Path) -> None:
    run = export.run
    facts: dict[str, Any] = {"name": run.name, "step": run.step, "samples": run.position, "metrics": dict(run.metrics)}
    if not export.recipients:  # what is readable of an encrypted checkpoint, and no more
        facts |= {"baselines": run.baselines, "data": run.data, "configuration": public_configuration(run.config)}
        facts["versions"] = run.versions
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "task": bundle.task,
        **bundle.settings,
        "precision": f"int8 {export.int8}" if export.int8 else "fp32",
        "measured": written.measured,
        "difference_to_pytorch": written.difference,
        "onnxruntime": ONNXRUNTIME,
        "opset": OPSET,
        "inputs": written.inputs,
        "outputs": written.outputs,
        "encrypted_for": [key.text for key in export.recipients],
        "license": None,
        "files": {path.name: _entry(path) for path in sorted(directory.iterdir())},
        "run": facts,
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (directory / "bundle.json").write_text(f"{text}\n", encoding="utf-8")


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def pack(directory: Path, target: Path) -> None:
    """Packs a directory; the same files give the same bytes. Uncompressed: weights hardly become smaller."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(directory.iterdir()):
            info = zipfile.ZipInfo(path.name)
            info.external_attr = 0o644 << 16
            with path.open("rb") as file, archive.open(info, "w", force_zip64=True) as member:
                shutil.copyfileobj(file, member, 1 << 20)
