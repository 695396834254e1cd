"""The control socket: whoever runs the server, and nobody else, tells it what to do. JSON, a request and an answer a line."""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from ..mail.unix_socket import UnixSocket
from .commands import CommandError, Commands, Encoded
from .server import Server

MODE = 0o600
MOST_CLIENTS = 32
"""With one more, the one that is idle for longest makes room."""
LONGEST_LINE = 64 << 10
"""Octets of a request."""

T = TypeVar("T")

log = logging.getLogger("mqcore.server")


class Answerer(Protocol):
    """As `Commands`."""

    async def run(self, request: object, is_gone: Callable[[], bool]) -> object: ...


class Control:
    """Listens at `path` for those who steer `server`, or whatever answers in its place: users with its own uid, and root.

    `async with Control(server, path):` in the coroutine that runs the gateway. OSError is raised where it cannot be.
    """

    def __init__(self, server: Server | Answerer, path: str) -> None:
        self._commands: Answerer = Commands(server) if isinstance(server, Server) else server
        self._clients: set[asyncio.Task[None]] = set()
        self._idle: dict[asyncio.Task[Any] | None, asyncio.StreamWriter] = {}
        """Who is waited for: for longest comes first."""
        self._socket = UnixSocket(path, MODE)

    async def __aenter__(self) -> Self:
        try:
            self._listener = await asyncio.start_unix_server(self._begin, sock=self._socket.listener, limit=LONGEST_LINE)
        except BaseException:
            self._socket.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.close()
        for client in self._clients:
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients)
        self._socket.close()

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody connected. What is refused costs no task."""
        try:
            uid = peer_uid(writer.get_extra_info("socket"))
        except OSError:  # it is gone
            writer.close()
            return
        if uid not in (os.geteuid(), 0):
            log.warning("the user with the uid %d may not use the control socket", uid)
            _refuse(writer, f"this server is steered by the user who runs it (uid {os.geteuid()}) and by root, not by {uid}")
        elif len(self._clients) >= MOST_CLIENTS and not self._idle:
            _refuse(writer, f"{MOST_CLIENTS} others are connected to the control socket; try again later")
        else:
            if len(self._clients) >= MOST_CLIENTS:
                self._idle.pop(next(iter(self._idle))).transport.abort()
            task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
            self._clients.add(task)
            task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await self._idling(writer, reader.readline()):
                for part in await self._answer(line, reader):
                    writer.write(part.encode())
                    await self._idling(writer, writer.drain())
                    await asyncio.sleep(0)  # as there may be more of them, or more requests, than one tick has time for
        except ValueError:
            _refuse(writer, f"a request is at most {LONGEST_LINE} octets long")
        except OSError:  # the client is gone
            pass
        finally:
            writer.close()

    async def _idling(self, client: asyncio.StreamWriter, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for a client, which may make room for another one meanwhile."""
        task = asyncio.current_task()
        self._idle[task] = client
        try:
            return await waiting
        finally:
            self._idle.pop(task, None)

    async def _answer(self, line: bytes, reader: asyncio.StreamReader) -> list[str]:
        """The parts of its text."""
        try:
            try:
                request = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CommandError(f"a request is a line of JSON: {error}", "usage") from error
            result = await self._commands.run(request, reader.at_eof)
        except CommandError as error:
            return [json.dumps({"ok": False, "kind": error.kind, "error": str(error)}) + "\n"]
        except Exception as error:
            log.exception("a command failed")
            return [json.dumps({"ok": False, "kind": "failed", "error": f"{type(error).__name__}: {error}"}) + "\n"]
        if isinstance(result, Encoded):
            return ['{"ok": true, "result": ', *result, "}\n"]
        return [f'{{"ok": true, "result": {json.dumps(result)}}}\n']


def _refuse(writer: asyncio.StreamWriter, why: str) -> None:
    writer.write(json.dumps({"ok": False, "kind": "failed", "error": why}).encode() + b"\n")
    writer.close()


def peer_uid(client: socket.socket) -> int:
    """Of the process that connected, as the system says."""
    if hasattr(socket, "SO_PEERCRED"):
        format = "iII"  # struct ucred
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(format))
        return int(struct.unpack(format, credentials)[1])
    uid, gid = ctypes.c_uint32(), ctypes.c_uint32()
    if ctypes.CDLL(None, use_errno=True).getpeereid(client.fileno(), ctypes.byref(uid), ctypes.byref(gid)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return uid.value
