"""What one real run does to its disk, call by call: the raw material of T-model.

The calls are those of the program itself, seen by standing in for the functions of `os` that change a disk; commits
are seen behind the store, and sends where the endpoint receives them.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True, slots=True)
class Op:
    """One step.

    Attributes:
        kind: `name` (an entry appears), `unname`, `rename`, `data`, `sync`, `commit`, `send`.
        inode: Of the file or folder that it is about.
        folder, entry: Where the entry is; for a rename, where it was.
        to: For a rename, `(folder, entry)` where it is now.
        states: For a commit, the state of each job after it.
        job: For a send.
        site: `file:function` that did it.
    """

    kind: str
    inode: int = 0
    folder: int = 0
    entry: str = ""
    to: tuple[int, str] = (0, "")
    states: tuple[tuple[int, str], ...] = ()
    job: int = 0
    site: str = ""


@dataclass
class Recorder:
    """Collects the steps below one folder."""

    root: Path
    ops: list[Op] = field(default_factory=list)

    def note(self, kind: str, **facts: Any) -> None:
        self.ops.append(Op(kind, site=_site(), **facts))

    def _folder(self, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
        """Return the folder's inode and the entry; None for what is not below the root."""
        if dir_fd is not None:
            return os.fstat(dir_fd).st_ino, os.fsdecode(path)
        whole = Path(os.fsdecode(path)).absolute()
        if not whole.is_relative_to(self.root.parent) or not whole.parent.exists():
            return None
        return whole.parent.stat().st_ino, whole.name

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Stand in for `os`."""
        real = {
            name: getattr(os, name)
            for name in ("open", "write", "writev", "fsync", "link", "unlink", "rename", "mkdir")
        }
        stands: dict[str, Callable[..., Any]] = {
            "open": self._open, "write": self._write, "writev": self._writev, "fsync": self._fsync, "link": self._link,
            "unlink": self._unlink, "rename": self._rename, "replace": self._rename, "mkdir": self._mkdir,
        }  # fmt: skip
        self._real = real
        patches = [patch.object(os, name, stand) for name, stand in stands.items()]
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in patches:
                one.stop()

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        where = self._folder(path, dir_fd) if flags & os.O_CREAT else None
        new = where is not None and not _there(path, dir_fd)
        fd: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if new and where is not None:
            self.note("name", inode=os.fstat(fd).st_ino, folder=where[0], entry=where[1])
        return fd

    def _write(self, fd: int, data: Any) -> int:
        written: int = self._real["write"](fd, data)
        self.note("data", inode=os.fstat(fd).st_ino)
        return written

    def _writev(self, fd: int, parts: Any) -> int:
        written: int = self._real["writev"](fd, parts)
        self.note("data", inode=os.fstat(fd).st_ino)
        return written

    def _fsync(self, fd: int) -> None:
        self._real["fsync"](fd)
        self.note("sync", inode=os.fstat(fd).st_ino)

    def _link(self, source: Any, target: Any, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        self._real["link"](
            source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks
        )
        inode = os.stat(target, dir_fd=dst_dir_fd).st_ino
        self.note("name", inode=inode, folder=os.fstat(dst_dir_fd).st_ino, entry=target)

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        where = self._folder(path, dir_fd)
        inode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino
        self._real["unlink"](path, dir_fd=dir_fd)
        if where is not None:
            self.note("unname", inode=inode, folder=where[0], entry=where[1])

    def _rename(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        was, now = self._folder(source, src_dir_fd), self._folder(target, dst_dir_fd)
        inode = os.stat(source, dir_fd=src_dir_fd, follow_symlinks=False).st_ino
        self._real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        if was is not None and now is not None:
            self.note("rename", inode=inode, folder=was[0], entry=was[1], to=now)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        where = self._folder(path, dir_fd)
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if where is not None:
            inode = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_ino
            self.note("name", inode=inode, folder=where[0], entry=where[1])


def _there(path: Any, dir_fd: int | None) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _site() -> str:
    """Return the nearest function of the program on the stack."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        if "banana_batch" in file and frame.f_code.co_name != "sync_folder" and "tests" not in Path(file).parts:
            return f"{Path(file).parent.name}/{Path(file).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return ""
