"""Networks whose hosts may do what others may not."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from ..base import Option

TRUST = (
    Option("proxy-from", "networks whose clients begin with a PROXY header, as 10.0.0.0/8,2001:db8::/32", "NETWORKS"),
    Option("xclient-from", "networks whose clients may say by XCLIENT for whom they speak", "NETWORKS"),
    Option("xforward-from", "networks whose clients may say by XFORWARD whose mail they forward", "NETWORKS"),
)


class Networks:
    """Those of an option's value, one behind the other with commas; none without one. Raises ValueError."""

    def __init__(self, option: str, text: str | None) -> None:
        self._networks = []
        for word in (text or "").split(",") if text is not None else ():
            try:
                self._networks.append(ipaddress.ip_network(word.strip()))
            except ValueError as error:
                raise ValueError(f"--{option} {text}: {error}; write networks as 10.0.0.0/8,2001:db8::/32") from None

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, peer: str) -> bool:
        """Of a client's address; it is empty for one that has none."""
        if not self._networks or not peer:
            return False
        address = plain_address(peer)
        return any(address in network for network in self._networks)


def plain_address(peer: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Without a zone, and as IPv4 if it is that in the clothes of IPv6."""
    address = ipaddress.ip_address(peer.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def network_of(peer: str) -> str:
    """What a client is counted by: whoever has one address of IPv6 has 64 bits of them."""
    try:
        address = plain_address(peer)
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def check_networks(path: str, given: Mapping[str, Any], scheme: str) -> None:
    """Raises ValueError."""
    for option in TRUST:
        name = option.name.replace("-", "_")
        if name not in given:
            continue
        if path.startswith("unix:"):
            raise ValueError(f"--{option.name} is for --from {scheme}://HOST:PORT; a Unix socket has no addresses")
        Networks(option.name, given[name])
