"""Export: a trained model in the formats of other programs."""

from typing import TYPE_CHECKING

from trainkit.export.export import Export, Exporter, RunFacts
from trainkit.lazy import exports

if TYPE_CHECKING:
    from trainkit.export.card import model_card

__all__ = ["Export", "Exporter", "RunFacts", "model_card"]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Export": "trainkit.export.export",
            "Exporter": "trainkit.export.export",
            "RunFacts": "trainkit.export.export",
            "model_card": "trainkit.export.card",
        },
    )
