"""Downloads that end: bounded in bytes and in time, whatever the mirror sends.

A mirror is a stranger. It may send a byte a second, redirects in a circle or without an end, or an archive of gigabytes of zeros.
Nothing here looks at content; who asks compares sums before a file gets its name.
"""

from __future__ import annotations

import http.client
import io
import socket
import tarfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, BinaryIO

CONNECT_SECONDS = 10.0  # to connect, and for each read
PATIENCE = 10.0  # seconds until the answer begins; then what comes must be as fast as LEAST_RATE, beyond these seconds
LEAST_RATE = 16 * 1024  # bytes a second
BLOCK = 512  # bytes of a block of an archive


class TooMuch(OSError):
    """More bytes than there can be."""


class TooSlow(TimeoutError):
    """Bytes that come too slowly."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To other pages of the web only, and without reading what a redirect says besides."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        fp.close()
        if not newurl.lower().startswith(("http://", "https://")):
            raise OSError(f"it redirects to {newurl[:80]!r}, which is no address of the web")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def opened(address: str, most: int) -> Iterator[BinaryIO]:
    """What lies at an address, up to `most` bytes. Raises OSError: TooMuch, TooSlow, or what the network says."""
    sockets: list[socket.socket] = []

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            sockets.append(self.sock)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(Plain, req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(Secure, req)

    def shut() -> None:
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is closed already

    began = time.monotonic()
    alarm = threading.Timer(PATIENCE, shut)  # a header that drips is not seen by the limit of each read
    alarm.daemon = True
    alarm.start()
    try:
        answer = urllib.request.build_opener(Http(), Https(), _Redirects()).open(address, timeout=CONNECT_SECONDS)
    except (OSError, http.client.HTTPException):
        if time.monotonic() - began >= PATIENCE:
            raise TooSlow(f"no answer within {PATIENCE:.0f} seconds") from None
        raise
    finally:
        alarm.cancel()
    with answer:
        yield io.BufferedReader(_Bounded(answer, most, time.monotonic()))


class _Bounded(io.RawIOBase):
    """A stream that is read as its bytes come, and no further than it may be."""

    def __init__(self, stream: IO[bytes], most: int, began: float) -> None:
        self.stream, self.most, self.began, self.count = stream, most, began, 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.count

    def readinto(self, buffer: Any) -> int:
        part = getattr(self.stream, "read1", self.stream.read)(len(buffer))
        self.count += len(part)
        if self.count > self.most:
            raise TooMuch(f"it sends more than the {self.most} bytes that there can be")
        if time.monotonic() - self.began > PATIENCE + self.count / LEAST_RATE:
            raise TooSlow(f"it sends less than {LEAST_RATE // 1024} KiB a second")
        buffer[: len(part)] = part
        return len(part)


def bounded(stream: Any, most: int) -> BinaryIO:
    """Another stream (an unpacked one), up to `most` bytes."""
    return io.BufferedReader(_Bounded(stream, most, time.monotonic()))


def members(archive: BinaryIO) -> Iterator[tuple[str, int]]:
    """(name, size) of each regular file in a stream that is a tar archive. After each, `archive` stands at its content.

    Read in blocks and not by `tarfile`, which takes a long name into memory however long it says that it is. Here names are the
    100 bytes of a header; what follows a header of another kind is passed over. Raises tarfile.TarError.
    """
    while len(header := archive.read(BLOCK)) == BLOCK and header.strip(b"\0"):
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        if member.size < 0:
            raise tarfile.HeaderError("a member of a size below 0")
        start = archive.tell()
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            yield member.name, member.size
        rest = start + -(-member.size // BLOCK) * BLOCK - archive.tell()
        while rest > 0 and (part := archive.read(min(rest, 1 << 20))):
            rest -= len(part)
