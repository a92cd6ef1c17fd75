"""Bundle: the files beside bundle.json, each of which is verified before it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

FORMAT, VERSION = "trainkit-edge", 1


class BundleError(Exception):
    """What is wrong with a bundle, or with how it is run."""


class Bundle:
    """A directory with a bundle.json.

    Args:
        directory: with the files.
        identity: the path of a file with secret keys, for an encrypted bundle.
    """

    def __init__(self, directory: Path, identity: str | None = None) -> None:
        self.directory, self.identity = directory, identity
        try:
            self.facts: dict[str, Any] = json.loads((directory / "bundle.json").read_text(encoding="utf-8"))
            kind, version = self.facts["format"], self.facts["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{directory / 'bundle.json'} is missing or damaged: copy the bundle again") from error
        if (kind, version) != (FORMAT, VERSION):
            raise BundleError(f"{directory} has format {kind} {version}, and this program reads {FORMAT} {VERSION}")
        for name in self.facts["files"]:
            if name.endswith(".py"):
                self.read(name)

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises BundleError where it is not what was written."""
        files = self.facts["files"]
        stored = name if name in files else name + ".age"
        if stored not in files:
            raise BundleError(f"the bundle has no {name}: copy the whole bundle again")
        path = self.directory / stored
        try:
            content = path.read_bytes()
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}): copy the bundle again") from error
        if hashlib.sha256(content).hexdigest() != files[stored]["sha256"]:
            raise BundleError(f"{path} is damaged or was changed (its sha256 is another one): copy the bundle again")
        return content if stored == name else self._decrypted(path, content)

    def text(self, name: str) -> str:
        """Returns the content of a text file."""
        return self.read(name).decode("utf-8")

    def session(self, threads: int = 0, provider: str = "CPUExecutionProvider") -> Any:
        """Returns the model's InferenceSession. Raises BundleError where onnxruntime cannot run it."""
        import onnxruntime

        needed = self.facts["onnxruntime"]
        if _numbers(onnxruntime.__version__) < _numbers(needed):
            raise BundleError(f"onnxruntime {onnxruntime.__version__} is too old: pip install 'onnxruntime>={needed}'")
        if threads < 0:
            raise BundleError(f"--threads {threads}: must be 1 or more, or 0 for as many as there are cores")
        if provider not in onnxruntime.get_available_providers():
            available = ", ".join(onnxruntime.get_available_providers())
            raise BundleError(f"--provider {provider}: this onnxruntime has {available}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        return onnxruntime.InferenceSession(self.read("model.onnx"), options, providers=[provider])

    def _decrypted(self, path: Path, content: bytes) -> bytes:
        if self.identity is None:
            raise BundleError(f"{path} is encrypted: give --identity FILE, with the secret key of a recipient")
        try:
            from age import decrypt
        except ImportError as error:
            raise BundleError(f"an encrypted bundle needs {error.name}: pip install cryptography") from error
        try:
            return bytes(decrypt(content, Path(self.identity).expanduser().read_bytes()))
        except ValueError as error:
            raise BundleError(f"{path} cannot be decrypted with {self.identity}: {error}") from error


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split("+")[0].split(".")[:2]]
