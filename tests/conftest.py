"""Makes `table` and `oracles` importable from every folder of tests, keeps torch to one thread, since the toys are tiny, and
keeps the session apart from its machine: an empty home, no data sets and no network, as on a new one."""

import atexit
import gc
import ipaddress
import logging
import os
import shutil
import socket
import tempfile
from typing import Any

import torch

torch.set_num_threads(1)
# torch logs every step of an export; pytest would format and keep all of it, which makes exporting twenty times slower
trace = logging.getLogger("torch.__trace")
trace.propagate = False
trace.setLevel(logging.CRITICAL)

HOME = tempfile.mkdtemp(prefix="featherweight-home-")
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ["HOME"] = os.environ["FEATHERWEIGHT_DATA"] = HOME
os.environ.pop("COLUMNS", None)  # pytest-xdist says 80, and output that is no terminal has the width that it has elsewhere


class NetworkReached(BaseException):
    """A test reached for the network. No OSError, which a download takes for a mirror that is down, and tries the next."""


def is_local(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True  # a file, or a pair of sockets
    try:
        return ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return bool(address[0] == "localhost")  # a name: to look it up is to reach for the network already


def guard(name: str) -> None:
    connect = getattr(socket.socket, name)

    def guarded(self: socket.socket, address: Any) -> Any:
        if not is_local(self.family, address):
            raise NetworkReached(f"a test connects to {address}: tests need no network")
        return connect(self, address)

    setattr(socket.socket, name, guarded)


look_up = socket.getaddrinfo


def looked_up(host: Any, *arguments: Any, **options: Any) -> Any:
    if host is not None and not is_local(socket.AF_INET, (host.decode() if isinstance(host, bytes) else host, 0)):
        raise NetworkReached(f"a test looks up {host}: tests need no network")
    return look_up(host, *arguments, **options)


def pytest_collection_finish(session: Any) -> None:
    """What is there now stays to the end: looked at again and again, it took a twentieth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


guard("connect")
guard("connect_ex")
socket.getaddrinfo = looked_up
