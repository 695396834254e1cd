"""What a broker says, as events; deliveries and the outcomes of publishes are made in C: `Delivery`, `Outcome`.

An event that answers a request comes in the order of the requests on its channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from ._channel import Delivery
from ._unconfirmed import Outcome


class ConnectionOpened(NamedTuple):
    """Both sides agreed: from here on channels can be opened."""

    server: Mapping[str, Any]
    """What the broker says of itself, as its `version`."""
    channel_max: int
    frame_max: int
    heartbeat: int
    """Seconds; 0 for none."""


class ConnectionClosed(NamedTuple):
    """The last event. `method`: what the broker could not take, as it says; `by_broker`: whether these are its words."""

    code: int
    text: str
    method: str
    by_broker: bool


class Blocked(NamedTuple):
    """The broker reads nothing more from a connection that publishes (memory, disk), until `Unblocked`."""

    reason: str


class Unblocked(NamedTuple):
    pass


class SecretUpdated(NamedTuple):
    pass


class ChannelOpened(NamedTuple):
    channel: int


class ChannelClosed(NamedTuple):
    """Its deliveries go back to their queues. `method`: what the broker could not take, as it says."""

    channel: int
    code: int
    text: str
    method: str
    by_broker: bool


class Flow(NamedTuple):
    """The broker asks to stop publishing on this channel, or to go on."""

    channel: int
    active: bool


class QueueDeclared(NamedTuple):
    channel: int
    queue: str
    messages: int
    consumers: int


class QueueDeleted(NamedTuple):
    channel: int
    messages: int


class QueuePurged(NamedTuple):
    channel: int
    messages: int


class ExchangeDeclared(NamedTuple):
    channel: int


class QosSet(NamedTuple):
    channel: int


class ConsumeStarted(NamedTuple):
    channel: int
    consumer_tag: str


class ConsumeCancelled(NamedTuple):
    """What `cancel` asked for; or the broker did it by itself: the queue was deleted, or its leader moved."""

    channel: int
    consumer_tag: str
    by_broker: bool


class GetEmpty(NamedTuple):
    channel: int


class ConfirmSelected(NamedTuple):
    channel: int


Event: TypeAlias = (
    Delivery
    | Outcome
    | ConnectionOpened
    | ConnectionClosed
    | Blocked
    | Unblocked
    | SecretUpdated
    | ChannelOpened
    | ChannelClosed
    | Flow
    | QueueDeclared
    | QueueDeleted
    | QueuePurged
    | ExchangeDeclared
    | QosSet
    | ConsumeStarted
    | ConsumeCancelled
    | GetEmpty
    | ConfirmSelected
)
