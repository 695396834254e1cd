"""Where a server listens that is no source: `HOST:PORT` or `unix:PATH`."""

from __future__ import annotations

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""


def parse_address(text: str) -> Address:
    """Without a host, on this machine only. Raises ValueError."""
    if text.startswith("unix:"):
        if len(text) == len("unix:"):
            raise ValueError("unix:PATH needs a path")
        return text.removeprefix("unix:")
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535 or (":" in host and f"[{host}]" not in text):
        raise ValueError(f"{text!r} is not HOST:PORT, :PORT (on this machine only) or unix:PATH")
    return host or "127.0.0.1", int(port)


def write_address(address: Address) -> str:
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
