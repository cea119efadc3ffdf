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

import pytest
import torch
from long_cases import chosen

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every case: those too that `reproduce suite` runs")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "third: of many cases of a test about a third runs, the same ones each time; all with --all"
    )
    config.addinivalue_line("markers", "long: runs with --all alone")


def pytest_report_header(config: pytest.Config) -> str:
    left = "long ones are left to --all, which `featherweight reproduce suite` runs"
    return f"cases: {'all' if config.getoption('--all') else left}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --all, leave out what is marked so; what is asked for by its name, or a file by its, always runs."""
    if config.getoption("--all") or any("::" in argument or argument.endswith(".py") for argument in config.args):
        return
    kept = {id(item) for item in chosen(items)}
    config.hook.pytest_deselected(items=[item for item in items if id(item) not in kept])
    items[:] = [item for item in items if id(item) in kept]


def pytest_collection_finish(session: Any) -> None:
    """What is there now stays to the end: looked at again and again, it took a twentieth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


guard("connect")
guard("connect_ex")
socket.getaddrinfo = looked_up
