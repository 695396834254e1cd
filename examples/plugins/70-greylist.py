"""Greylisting with SQLite: whoever sends to somebody for the first time is told to come again later, which spammers seldom do.

Mail servers come again, after some minutes, and then pass; from then on they pass at once. What is known survives restarts, and
may be shared by several processes. Where the database is must be set in mqcore.toml; without it this plugin does nothing.

    [plugins.70-greylist]
    database = "/var/lib/mqcore/greylist.sqlite3"
    delay = 300
    forget = 30       # days after which a sender that did not come is new again
"""

import asyncio
import ipaddress
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor

from mqcore import Context
from mqcore.mail import Mail

TABLE = """
    CREATE TABLE IF NOT EXISTS seen (
        network TEXT, sender TEXT, recipient TEXT, first REAL, last REAL, PRIMARY KEY (network, sender, recipient)
    ) WITHOUT ROWID
"""
SEE = """
    INSERT INTO seen VALUES (:network, :sender, :recipient, :now, :now)
    ON CONFLICT DO UPDATE SET last = :now, first = CASE WHEN last < :forgotten THEN :now ELSE first END
    RETURNING first
"""


def mq_context_initialize(context: Context) -> None:
    if context.config.get("database"):
        context.data["database"] = Database(context.config["database"], context.config.get("forget", 30) * 86400)


def mq_context_cleanup(context: Context) -> None:
    if "database" in context.data:
        context.data["database"].close()


async def mq_smtp_in_rcptto(context: Context, message: Mail, address: str) -> bool:
    database, connection = context.data.get("database"), message.connection
    if database is None or connection is None or connection.authenticated:
        return False
    # While the database is asked, the loop goes on with all other connections. If it fails, so does the step: the client gets
    # 451 and comes again, as it would have to anyway.
    first = await database.see(network_of(connection.peer), message.envelope or "", address)
    if time.time() - first < context.config.get("delay", 300):
        message.reject(450, "4.7.1 greylisted, come again in a few minutes")
    return False


def network_of(peer: str) -> str:
    """Big senders come again from another address of the same network."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer  # a Unix socket
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 64), strict=False))


class Database:
    """SQLite waits for disks and locks: so it is asked in a thread of its own, one thing after the other."""

    def __init__(self, path: str, forget: float) -> None:
        self.forget = forget
        self.thread = ThreadPoolExecutor(1, "greylist")
        self.database = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self.database.execute("PRAGMA journal_mode = WAL")  # so that no process waits for the readers of another one
        self.database.execute("PRAGMA synchronous = NORMAL")
        self.database.execute(TABLE)
        self.database.execute("DELETE FROM seen WHERE last < ?", [time.time() - forget])

    async def see(self, network: str, sender: str, recipient: str) -> float:
        """Note that they came; since when they are known."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.see_now, network, sender, recipient)

    def see_now(self, network: str, sender: str, recipient: str) -> float:
        now = time.time()
        who = {"network": network, "sender": sender.lower(), "recipient": recipient.lower()}
        first: float = self.database.execute(SEE, {**who, "now": now, "forgotten": now - self.forget}).fetchone()[0]
        return first

    def close(self) -> None:
        self.thread.shutdown()
        self.database.close()
