"""Where lines go. A sink takes one line at a time, hands it to the operating system at once, and never blocks the
event loop.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
from enum import Enum
from pathlib import Path
from typing import Protocol

_PIPE_BUF = select.PIPE_BUF


class Written(Enum):
    """What became of a line."""

    YES = "yes"
    LATER = "later"
    """Begun; the rest is held and will be written before anything else. It is not safe yet."""
    NO = "no"


class AuditUnwritable(OSError):
    """The place for the audit can't be used; its text says why and what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class Sink(Protocol):
    error: str
    """Why the last line was not written."""

    def write(self, line: bytes) -> Written: ...

    def close(self) -> None: ...


class FileSink:
    """A regular file, appended to. Raises :class:`AuditUnwritable` where the path is not one that only we write to.

    No symlink is followed and no device opened, so that nobody who may write to the directory chooses where the lines
    go. An advisory lock keeps a second sidecar from weaving its chain into ours. On a full disk a line that was begun
    is taken back.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.error = ""
        self._fd = _open_file(self.path)

    def write(self, line: bytes) -> Written:
        done = 0
        try:
            done = os.write(self._fd, line)
            while done < len(line):
                done += os.write(self._fd, line[done:])
        except OSError as error:
            self.error = f"{self.path}: {error.strerror}"
            if done:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, os.fstat(self._fd).st_size - done)
            return Written.NO
        return Written.YES

    def moved(self) -> bool:
        """Whether the path no longer names the file that is written: it was renamed or removed."""
        try:
            there = self.path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return True
        own = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino)

    def tail(self, most: int) -> bytes:
        """The last ``most`` bytes of the file."""
        size = os.fstat(self._fd).st_size
        return os.pread(self._fd, most, max(0, size - most))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open_file(path: Path) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as error:
        hint = {
            errno.ELOOP: "is a symlink; name the file itself (for stdout say -)",
            errno.ENOENT: "can't be made: its directory does not exist",
        }.get(error.errno or 0, f"can't be opened: {error.strerror}")
        raise AuditUnwritable(error.errno, f"audit file {path} {hint}") from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise AuditUnwritable(
                errno.EINVAL, f"audit file {path} is not a regular file (say - for stdout, none for no audit)"
            )
        if status.st_mode & 0o022:
            raise AuditUnwritable(errno.EPERM, f"audit file {path} may be written by others: chmod go-w {path}")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"audit file {path} is being written by another sidecar; give each its own"
            raise AuditUnwritable(errno.EBUSY, message) from error
        os.set_blocking(fd, True)
    except BaseException:
        os.close(fd)
        raise
    return fd


class StreamSink:
    """stdout or stderr: mostly a pipe whose reader may stop reading.

    The descriptor is shared with other processes, so it is not set non-blocking (that would be so for all of them).
    Instead the kernel is asked before each piece of at most PIPE_BUF bytes, which a writable pipe takes whole (POSIX).
    A reader that does not keep up is a failed audit, never a frozen proxy.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.error = ""
        self._fd = os.dup(fd)
        self._name = name
        self._file = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._held = b""

    def write(self, line: bytes) -> Written:
        if self._held:
            self._held = self._held[self._push(self._held) :]
            if self._held:
                return Written.NO
        done = self._push(line)
        if done == len(line):
            return Written.YES
        if not done:
            return Written.NO
        self._held = line[done:]
        return Written.LATER

    def _push(self, data: bytes) -> int:
        done = 0
        try:
            while done < len(data):
                if not self._file:
                    ready = self._poll.poll(0)
                    if not ready or not ready[0][1] & select.POLLOUT:
                        self.error = (
                            f"{self._name}: its reader does not keep up" if not ready else f"{self._name} is closed"
                        )
                        break
                done += os.write(self._fd, data[done : done + _PIPE_BUF])
        except OSError as error:
            self.error = f"{self._name}: {error.strerror}"
        return done

    def close(self) -> None:
        if self._fd >= 0:
            if self._held:
                self._push(self._held)
            os.close(self._fd)
            self._fd = -1
