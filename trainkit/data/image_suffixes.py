"""Suffixes of image files."""

from functools import cache

# Pillow registers these formats, but reads them only through external programs or plug-ins.
_NOT_READ = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})


@cache
def extensions() -> frozenset[str]:
    """Returns the suffixes, in lower case and with the dot, of the formats that Pillow decodes by itself."""
    from PIL import Image

    readable = {
        suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN and name not in _NOT_READ
    }
    return frozenset(readable)
