"""Curation: what data hold, and the part of them that is worth training on."""
