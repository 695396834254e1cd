"""The status page, and what a browser may do with it: nothing but what is in the file itself."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path


def _hash(element: bytes) -> str:
    """Of the one script or style of the page, as a Content-Security-Policy names it."""
    (content,) = re.findall(rb"<%b>(.*?)</%b>" % (element, element), PAGE, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


PAGE = Path(__file__).with_name("page.html").read_bytes()
POLICY = (
    f"default-src 'none'; script-src {_hash(b'script')}; style-src {_hash(b'style')}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
