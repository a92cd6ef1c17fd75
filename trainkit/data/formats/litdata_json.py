"""The compact form in which litdata stores lists and dicts: a tag, a length, and the values."""

import struct
from typing import Any

import numpy as np

from trainkit.json_text import parse_json

_JSON, _STRINGS, _INTS, _FLOATS, _BOOLS, _DICT, _RECORDS, _STRING, _INT, _FLOAT, _BOOL, _NONE = range(12)
_FIRST_OF_JSON = 0x20  # of plain JSON the first byte is above
_MOST_DEEP = 64
_CELL = {0x10: _NONE, 0x11: _STRING, 0x12: _INT, 0x13: _FLOAT, 0x14: _BOOL}


def decode_json(content: bytes) -> Any:
    """Decodes a list, a dict or a value.

    Raises:
        ValueError: for bytes that are none, or nested too deeply.
    """
    if not content or content[0] > _FIRST_OF_JSON:
        return parse_json(content)
    reader = _Reader(content)
    try:
        return reader.value(reader.number("<B"))
    except (struct.error, IndexError) as error:
        raise ValueError(f"it ends too early ({error})") from None


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.place, self.depth = content, 0, 0

    def number(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self.content, self.place)
        self.place += struct.calcsize(form)
        return value

    def taken(self, num_bytes: int) -> bytes:
        if num_bytes > len(self.content) - self.place:
            raise ValueError("it ends too early")
        self.place += num_bytes
        return self.content[self.place - num_bytes : self.place]

    def string(self) -> str:
        return self.taken(self.number("<I")).decode()

    def count(self) -> int:
        """A number of values, each of at least a byte."""
        count: int = self.number("<I")
        if count > len(self.content) - self.place:
            raise ValueError(f"{count} values in {len(self.content) - self.place} bytes")
        return count

    def value(self, tag: int) -> Any:
        self.depth += 1
        if self.depth > _MOST_DEEP:
            raise ValueError("it is nested too deeply")
        try:
            return self._scalar(tag) if tag >= _STRING else self._collection(tag)
        finally:
            self.depth -= 1

    def _scalar(self, tag: int) -> Any:
        if tag == _STRING:
            return self.string()
        if tag == _NONE:
            return None
        if tag == _BOOL:
            return bool(self.number("<B"))
        if tag in (_INT, _FLOAT):
            return self.number("<q" if tag == _INT else "<d")
        raise ValueError(f"the tag {tag}")

    def _collection(self, tag: int) -> Any:
        if tag == _JSON:
            return parse_json(self.taken(self.number("<I")))
        if tag in (_INTS, _FLOATS):
            return np.frombuffer(self.taken(8 * self.count()), "<i8" if tag == _INTS else "<f8").tolist()
        if tag == _BOOLS:
            return [byte != 0 for byte in self.taken(self.count())]
        if tag == _STRINGS:
            return [self.string() for _ in range(self.count())]
        if tag == _DICT:
            return {self.string(): self.value(self.number("<B")) for _ in range(self.count())}
        count, keys = self.number("<I"), [self.string() for _ in range(self.count())]
        if not keys or count * len(keys) > len(self.content):
            raise ValueError(f"{count} records")
        return [{key: self._cell() for key in keys} for _ in range(count)]

    def _cell(self) -> Any:
        tag = self.number("<B")
        if tag not in _CELL:
            raise ValueError(f"the tag {tag}")
        return self.value(_CELL[tag])
