"""Export: a trained model in the formats of other programs."""

from typing import TYPE_CHECKING

from trainkit.export.export import Export, Exporter, RunFacts
from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.export.bundle import Bundle, Sealing, write_bundle
    from trainkit.export.card import model_card
    from trainkit.export.onnx import Dynamic, OnnxModel, Predict, Written, predictor, write_onnx

__all__ = [
    "Bundle",
    "Dynamic",
    "Export",
    "Exporter",
    "OnnxModel",
    "Predict",
    "RunFacts",
    "Sealing",
    "Written",
    "model_card",
    "predictor",
    "write_bundle",
    "write_onnx",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Bundle": "trainkit.export.bundle",
            "Dynamic": "trainkit.export.onnx",
            "Export": "trainkit.export.export",
            "Exporter": "trainkit.export.export",
            "OnnxModel": "trainkit.export.onnx",
            "Predict": "trainkit.export.onnx",
            "RunFacts": "trainkit.export.export",
            "Sealing": "trainkit.export.bundle",
            "Written": "trainkit.export.onnx",
            "model_card": "trainkit.export.card",
            "predictor": "trainkit.export.onnx",
            "write_bundle": "trainkit.export.bundle",
            "write_onnx": "trainkit.export.onnx",
        },
    )
