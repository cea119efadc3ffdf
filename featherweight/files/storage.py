"""How every file is opened and replaced: no link followed unasked, regular files only, bounded reads, whole or not at all.

What lies inside a folder may come from a stranger: a link there is never followed, and nothing but a regular file is opened.
A path that the user names may itself be a link to a regular file (`follow=True`), such as weights in a cache of links.

Written is always a new file or folder beside the old one, under a random name, which then takes the old one's name in one step:
a kill leaves the old or the new, whole. Folders swap names by `renameat2` (Linux). Where the system cannot do that, two renames
take its place, and a kill between them leaves the old folder as `.NAME.xxxxxxxx.old`: `take_up` puts it back.

All functions raise OSError, whose `strerror` says what is wrong in words.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from featherweight.errors import InputError, StorageError

LOCK = ".lock"  # in a workdir: held by the process that runs there
RENAME_EXCHANGE = 2  # of renameat2
AT_FDCWD = -100  # paths are relative to the current folder
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)  # a kernel, or a file system, without the exchange of two names
SECONDS_TO_MARK = 60  # from making a temporary file to locking it, at the very most
KINDS = {
    stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link, which is not followed there",
}  # fmt: skip


# --- reading -------------------------------------------------------------------------------------------------------------


def opened(path: str | Path, *, follow: bool = False, folder: int | None = None) -> io.BufferedReader:
    """A regular file, open for reading. `folder`: the open folder that `path` is relative to. `follow`: may `path` be a link?"""
    try:
        _regular(os.stat(path, dir_fd=folder, follow_symlinks=follow))  # before opening: opening a device can do something
        # Should it have become a pipe by now, O_NONBLOCK keeps the opening from waiting for the other end.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
        handle = os.open(path, flags, dir_fd=folder)
    except ValueError as error:  # a path with a zero byte in it
        raise OSError(errno.EINVAL, str(error)) from None
    try:
        _regular(os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read(path: str | Path, most: int, *, follow: bool = False, folder: int | None = None) -> bytes:
    """The bytes of a regular file that has at most `most`."""
    with opened(path, follow=follow, folder=folder) as file:
        return content(file, most)


def content(file: BinaryIO, most: int) -> bytes:
    """The bytes of an open file that has at most `most`; a larger one is not read."""
    size = os.fstat(file.fileno()).st_size
    data = b"" if size > most else file.read(most + 1)
    if max(size, len(data)) > most:
        raise OSError(errno.EFBIG, f"it has {max(size, len(data))} bytes, more than the {most} that one may have")
    return data


@contextlib.contextmanager
def folder_of(path: str | Path) -> Iterator[int]:
    """A folder, open: what is read relative to it is of this one folder, whatever takes its name meanwhile."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    try:
        yield handle
    finally:
        os.close(handle)


def moved(folder: int, path: str | Path) -> bool:
    """Has another folder taken the name of this open one?"""
    try:
        return not os.path.samestat(os.fstat(folder), os.stat(path))
    except OSError:
        return True


def _regular(found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'something else')}, not a regular file")


# --- replacing files -----------------------------------------------------------------------------------------------------


def replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """What `write` writes becomes the file `path`, whole, in one step. A link of that name is replaced, not followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    free(path)
    _clear(path)
    handle, part = tempfile.mkstemp(prefix=_prefix(path), suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            _mark(file.fileno())
            write(file)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
            os.replace(part, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def free(path: Path) -> None:
    """Raises OSError if what has this name is neither a regular file nor a link: nobody means to replace a device by a file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISLNK(found.st_mode):
        _regular(found)


def sync(path: Path) -> None:
    """Make a file's bytes survive a power cut."""
    with opened(path) as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    with folder_of(folder) as handle:
        os.fsync(handle)


# --- replacing folders ---------------------------------------------------------------------------------------------------


def replace_folder(folder: Path, fill: Callable[[Path], None], ours: Callable[[Path], bool]) -> None:
    """What `fill` puts into a new folder becomes the folder `folder`, whole, in one step.

    `ours`: may this folder be replaced? It is asked of what was there after the exchange; what may not is put back, with
    FileExistsError.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    take_up(folder)
    _clear(folder)
    part = Path(tempfile.mkdtemp(prefix=_prefix(folder), suffix=".part", dir=parent))
    try:
        with folder_of(part) as held:
            _mark(held)
            os.fchmod(held, 0o755)
            fill(part)
            for file in part.iterdir():
                os.chmod(file, 0o644)
                sync(file)
            os.fsync(held)
            _swap(part, folder, ours)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def take_up(folder: Path) -> None:
    """What a kill between two renames has left of `folder`: put back if nothing has the name, else removed."""
    with contextlib.suppress(OSError):
        found = [old for old in _left(folder, ".old") if old.is_dir() and not old.is_symlink()]
        if not found:
            return
        with alone(folder.parent):
            newest = max(found, key=lambda old: old.stat().st_mtime)
            if not os.path.lexists(folder):
                os.rename(newest, folder)
            for old in found:
                shutil.rmtree(old, ignore_errors=True)


def _swap(part: Path, folder: Path, ours: Callable[[Path], bool]) -> None:
    """Give the name `folder` to `part`, and remove what had it."""
    old = part.with_suffix(".old")
    with alone(folder.parent):
        if not os.path.lexists(folder):
            os.rename(part, folder)
            sync_folder(folder.parent)
            return
        if os.path.islink(folder):
            raise FileExistsError(errno.EEXIST, f"{folder} has become a link")
        if exchange(part, folder):
            try:
                if not ours(part):
                    raise FileExistsError(errno.EEXIST, f"{folder} has become something else meanwhile")
                os.rename(part, old)  # what is called .old is whole, and nobody's any more
            except OSError:
                exchange(part, folder)
                raise
        else:
            os.rename(folder, old)
            try:
                os.rename(part, folder)
            except OSError:
                os.rename(old, folder)
                raise
        sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step; False where the system has no way to do that."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(other))


# --- what a killed writer left -------------------------------------------------------------------------------------------


def _prefix(path: Path) -> str:
    return f".{os.fsdecode(os.fsencode(path.name)[:200])}."  # a name has at most 255 bytes, and more is put behind it


def _left(path: Path, suffix: str) -> list[Path]:
    pattern = re.compile(re.escape(_prefix(path)) + r"[a-z0-9_]{8}" + re.escape(suffix))
    return [path.parent / name for name in os.listdir(path.parent) if pattern.fullmatch(name)]


def _clear(path: Path) -> None:
    """Remove the half-written `.NAME.xxxxxxxx.part` of killed writers. A living one holds a lock on its own."""
    with contextlib.suppress(OSError):
        for part in _left(path, ".part"):
            with contextlib.suppress(OSError):
                handle = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if time.time() - os.fstat(handle).st_mtime < SECONDS_TO_MARK:
                        continue
                    if part.is_dir():
                        shutil.rmtree(part, ignore_errors=True)
                    else:
                        part.unlink()
                finally:
                    os.close(handle)


def _mark(handle: int) -> None:
    """Hold a lock on a half-written file or folder, where the file system has locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- one writer at a time ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process swaps names in `folder`, which takes milliseconds. The lock is the folder's own."""
    with folder_of(folder) as handle:
        with contextlib.suppress(OSError):  # a file system without locks, such as some on networks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Be the only run in `workdir`. The lock ends with the process, however it ends.

    Raises InputError if another run, or another thread of this process, is there, and StorageError if the folder cannot be
    written to or has no locks.
    """
    try:
        handle = _locked(workdir)
    except BlockingIOError:
        raise InputError(
            f"another run is going on in the workdir {workdir}: wait for its end, or give this one another --workdir"
        ) from None
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"cannot work in the workdir {workdir}: {said}. Give another --workdir, on a local disk") from error
    _HELD.add(handle)
    owner = os.getpid()
    try:
        yield
    finally:
        if owner == os.getpid():
            _HELD.discard(handle)
            _unlock(workdir / LOCK, handle)


_HELD: set[int] = set()  # the open locks of this process


def _forget() -> None:
    """A child made by fork, such as a worker of a DataLoader, would keep its parent's locks alive after the parent's end."""
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_forget)


def _unlock(path: Path, handle: int) -> None:
    """Remove the file while the lock is held: who has opened it by then looks whether it is still the one in the folder."""
    with contextlib.suppress(OSError):
        os.unlink(path)
    with contextlib.suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _locked(workdir: Path) -> int:
    while True:
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / LOCK
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        try:
            _regular(os.fstat(handle))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.lstat(path)):
                return handle
        except FileNotFoundError:
            pass  # its owner has ended, and removed it, between our two steps
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
