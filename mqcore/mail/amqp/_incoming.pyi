from hashlib import blake2b

from typing_extensions import disjoint_base

from ...amqp.client import Delivery
from .._transaction import Transaction
from .connection import Connection
from .consumer import Consumer
from .returns import Letter

@disjoint_base
class Incoming(Transaction):
    is_void: bool
    is_put_back: bool
    comes_again: bool
    @property
    def connection(self) -> Connection: ...
    @property
    def delivery(self) -> Delivery: ...
    @property
    def id(self) -> str: ...
    @property
    def has_id(self) -> bool: ...
    @property
    def letter(self) -> Letter: ...
    def is_wanted(self) -> bool: ...

def read_incoming(consumer: Consumer, connection: Connection, delivery: Delivery, digest: blake2b, place: int) -> Incoming: ...
