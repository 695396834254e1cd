from collections.abc import Mapping
from typing import Any

def encode_raw(known: Mapping[str, Any], id: str) -> bytes: ...
