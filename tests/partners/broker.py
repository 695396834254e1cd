"""A RabbitMQ of one's own: one node, in a folder of its own, on ports of its own, and nothing of the system's is touched."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from senders import wait_for_port

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
"""Debian's. Those in /usr/sbin become another user first, and hide the process."""
CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
loopback_users = none
disk_free_limit.absolute = 50MB
{more}
"""
CLUSTER = """\
cluster_formation.peer_discovery_backend = classic_config
cluster_formation.classic_config.nodes.1 = {first}
"""
"""A node that is new joins the first one."""
START_WITHIN = 120
COOKIE = ".erlang.cookie"
"""By which nodes of a cluster know each other."""


def need_broker() -> None:
    """Skips where it is not installed."""
    if not (PROGRAMS / "rabbitmq-server").exists() or shutil.which("epmd") is None:
        pytest.skip("rabbitmq-server is not installed (Debian: apt-get install --no-install-recommends rabbitmq-server)")


def refuses(field: str) -> str:
    """A plugin that refuses one mail in ten for good, and one for now when it comes first; in this field are their numbers."""
    return f"""
    def mq_smtp_in_message(context, mail):
        number = int(mail.mime.partition(b"{field}: ")[2].split()[0])
        if number % 10 == 1:
            mail.reject(550, "5.7.1 no")
        elif number % 10 == 2 and not mail.json.get("results"):
            mail.reject(450, "4.7.1 later")
    """


def lasting_port() -> int:
    """One that no connection is given for its own end, so that it is free when a broker that died is started again. A client
    that tries a port of the other kind often enough gets through to itself."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(first // 2, first)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class NotStarted(Exception):
    """What it said."""


class Broker:
    """In a `with`, which ends it in every case. Its user is guest, with the password guest; its only vhost is /.

    `beside` another one, that runs, it is a second node of its cluster."""

    def __init__(self, *, config: str = "", beside: Broker | None = None) -> None:
        need_broker()
        self._first = beside
        # Short, as there is a socket in it; and it must not outlive what pytest keeps of its own folders.
        self.folder = Path(tempfile.mkdtemp(prefix="mqcore-broker-"))
        self.port, distribution = lasting_port(), lasting_port()
        self._epmd_port = lasting_port() if beside is None else beside._epmd_port
        self._name = f"mqcore{self.port}@localhost"
        if beside is not None:
            config += "\n" + CLUSTER.format(first=beside._name)
            shutil.copy(beside.folder / COOKIE, self.folder)
        (self.folder / "rabbitmq.conf").write_text(CONFIG.format(port=self.port, more=config))
        (self.folder / "enabled_plugins").write_text("[].\n")
        self._environment = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.folder),  # where its cookie is
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "ERL_CRASH_DUMP": str(self.folder / "erl_crash.dump"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
            ),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._node: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/%2F"

    def __enter__(self) -> Self:
        try:
            if self._first is None:  # it is asked by each node, and would be started in the background, to stay
                names = self._run("epmd", "-address", "127.0.0.1", "-port", str(self._epmd_port))
                wait_for_port(self._epmd_port, names, self.folder / "out.log")
            self.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / "out.log").open("ab") as out:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],  # nor does it outlive a run of tests that is killed
                env=self._environment | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def start(self) -> None:
        """Until it says that it is ready, as it would to systemd: all listeners are up then."""
        path = self.folder / "notify"
        path.unlink(missing_ok=True)
        give_up = time.monotonic() + START_WITHIN
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(str(path))
            notices.settimeout(0.2)
            node = self._node = self._run(str(PROGRAMS / "rabbitmq-server"), NOTIFY_SOCKET=str(path))
            while True:
                if node.poll() is not None or time.monotonic() > give_up:
                    raise NotStarted(self.log)
                with contextlib.suppress(TimeoutError):
                    if b"READY=1" in notices.recv(4096):
                        return

    def kill(self) -> None:
        """As if the machine had lost power, but for what the kernel has yet to write."""
        assert self._node is not None
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.killpg(self._node.pid, signal.SIGKILL)
        self._node.wait(30)
        self._processes.remove(self._node)

    def stop(self) -> None:
        """In good order."""
        assert self._node is not None
        self._node.terminate()
        self._node.wait(60)
        self._processes.remove(self._node)

    @property
    def pid(self) -> int:
        """Of the Erlang that it is."""
        assert self._node is not None
        return self._node.pid

    @property
    def is_running(self) -> bool:
        return self._node is not None and self._node.poll() is None

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """It says nothing, and the network none the less takes what is sent."""
        assert self._node is not None
        os.killpg(self._node.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._node.pid, signal.SIGCONT)

    def control(self, *arguments: str) -> str:
        """rabbitmqctl; takes seconds."""
        command = [str(PROGRAMS / "rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    @property
    def log(self) -> str:
        return "\n".join(
            file.read_text(errors="replace")[-4000:] for file in [*self.folder.glob("*.log"), *self.folder.glob("log/*.log")]
        )
