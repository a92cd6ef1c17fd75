"""URLs without credentials: what may be written into a run directory, a message or a log."""

import re
from urllib.parse import parse_qsl, urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SECRET = re.compile(r"sig|signature|token|key|secret|password|passwd|credential|auth|accesskeyid", re.IGNORECASE)
"""In the name of a parameter that gives access: X-Amz-Signature, sig, token, AWSAccessKeyId."""


def is_url(path: object) -> bool:
    """Whether `path` is a URL, such as s3://bucket/folder, and no path of this machine.

    Example:
        >>> is_url("s3://bucket/texts"), is_url("/data/texts")
        (True, False)
    """
    return isinstance(path, str) and _URL.match(path) is not None


def redacted(url: str) -> str:
    """Returns a URL without its user, its password and the values of parameters that give access.

    Example:
        >>> redacted("https://me:pw@host/a.txt?sig=abc&part=2")
        'https://***@host/a.txt?sig=***&part=2'
    """
    shown = re.sub(r"://[^/?#]*@", "://***@", url, count=1)
    head, mark, query = shown.partition("?")
    fields = [re.sub(r"=.*", "=***", field, flags=re.S) if _is_secret(field) else field for field in query.split("&")]
    return head + mark + "&".join(fields)


def carries_credentials(url: str) -> bool:
    """Whether a URL gives access by a user, a password, a signature or a token in it.

    Example:
        >>> [carries_credentials(url) for url in ("s3://bucket/a", "https://me:pw@host/a", "https://host/a?sig=abc")]
        [False, True, True]
    """
    parts = urlsplit(url)
    return "@" in parts.netloc or any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, True))


def where_credentials_belong(url: str) -> str:
    """Returns where a store looks for credentials that the URL must not carry, for a message."""
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        return "put user and password into ~/.netrc"
    if scheme in ("s3", "s3a"):
        return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    return "set them where the store's own tools look for them"


def _is_secret(field: str) -> bool:
    return _SECRET.search(field.partition("=")[0]) is not None
