"""The committer in a process of its own, once images come so fast that it pays.

Seven system calls an image are seven times that a thread has to get the interpreter back from a busy event loop:
0.3 to 0.5 ms an image, of which 0.08 are work. A process has an interpreter to itself.

Rule 1: the same committer, on the same descriptors; only one of the two works at a time.
Rule 2: a group that was on its way when the process died is committed once more, here: an image that has its name
        already is known by its bytes. What lies in a part has none here, so groups with large images stay here.
Rule 3: it ends with the group it works on, when the run does, however that ends. Until then it holds the lock of
        `images/`, for which the next run waits (`lock_images`): a part of that run is never given a name by it.
Rule 4: it gets neither the key nor the environment, and leaves the network and the state file alone.
"""

import fcntl
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from banana_batch import __version__

from .committer import SLICES, Committer, Outcome, Received, Sealed
from .folders import Folders

MANY = 8  # images that come within one group: from some 400 a second on
END_S = 10.0  # it has nothing left to do when it is told to end

Outcomes = Sequence[Outcome | BaseException]

# Neither site nor environment: the path is this process's own.
_PYTHON = ("-I", "-S", "-c")
_START = "import sys; sys.path += sys.argv[4:]; from banana_batch.images.outside import serve; serve(*sys.argv[1:4])"
_LENGTH = struct.Struct("!Q")
_READY = __version__.encode()  # a program that is replaced while it runs must not talk to its successor


def lock_images(folders: Folders) -> bool:
    """Lock `images/` for as long as its descriptor is open, here or in a process that got it; tell whether it is."""
    try:
        fcntl.flock(folders.images, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where the batch's own could not be taken either
        pass
    return True


class Outside:
    """Commits here, until many images come at once; then in a process of its own. Each method blocks, on one thread.

    Args:
        here: The committer that works while there is no process.
        many: Images in a group from which on a process pays; None: never.
    """

    def __init__(self, folders: Folders, here: Committer, many: int | None = MANY) -> None:
        self._folders = folders
        self._here = here
        # A frozen program is no interpreter: it would be started once more itself.
        self._many = None if getattr(sys, "frozen", False) or not sys.executable else many
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._ready = False

    def commit(self, group: Sequence[Received]) -> Outcomes:
        """Store a group; return what became of each, in order."""
        if self._many is not None and len(group) >= self._many:
            self._many = None  # once a run: a process that ended is not missed
            self._start()
        outcomes = None
        if self._answers() and not any(isinstance(received.body, Sealed) for received in group):
            outcomes = self._ask(group)
        return self._here.commit(group) if outcomes is None else outcomes

    def close(self) -> None:
        """Let the process end, and wait for it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _start(self) -> None:
        """Start the process; it is asked once it says that it is ready. Where none can be had, none is needed."""
        with suppress(OSError, ValueError):
            self._socket, theirs = socket.socketpair()
            try:
                self._process = self._started(theirs)
            except BaseException:
                self._socket.close()
                self._socket = None
                raise
            finally:
                theirs.close()

    def _started(self, theirs: socket.socket) -> "subprocess.Popen[bytes]":
        descriptors = theirs.fileno(), self._folders.out, self._folders.images
        return subprocess.Popen(  # noqa: S603  # this very interpreter, on code of our own
            [sys.executable, *_PYTHON, _START, *map(str, descriptors), str(Path(__file__).parents[2]), *sys.path],
            pass_fds=descriptors,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )

    def _answers(self) -> bool:
        if self._socket is None or self._ready:
            return self._socket is not None
        try:
            self._ready = self._socket.recv(len(_READY), socket.MSG_DONTWAIT) == _READY
        except BlockingIOError:
            return False
        except OSError:
            self._ready = False
        if not self._ready:
            self._give_up()
        return self._ready

    def _ask(self, group: Sequence[Received]) -> Outcomes | None:
        """Return what the process made of a group of small images; None: that is not known, and the process is gone."""
        assert self._socket is not None
        try:
            bodies = [one.body for one in group if isinstance(one.body, bytes)]
            # They go as they are: joined or pickled they would be copied twice more.
            _send(self._socket, [one._replace(body=b"") for one in group], bodies)
            outcomes: Outcomes = _receive(self._socket)[0]
        except Exception:  # noqa: BLE001  # whatever is wrong with it, the images are not
            self._give_up()
            return None
        return outcomes

    def _give_up(self) -> None:
        """Go on without it, once it is certain that it does no more."""
        if self._process is not None:
            self._process.kill()
        self.close()


def _send(to: socket.socket, what: object, bodies: Sequence[bytes] = ()) -> None:
    data = pickle.dumps((what, [len(body) for body in bodies]), pickle.HIGHEST_PROTOCOL)
    pieces = [memoryview(piece) for piece in (_LENGTH.pack(len(data)), data, *bodies)]
    while pieces:
        sent = to.sendmsg(pieces)
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if sent:
            pieces[0] = pieces[0][sent:]


def _receive(source: socket.socket) -> tuple[Any, list[bytearray]]:
    """Return what the other process sent. Raises EOFError when it has ended."""
    (size,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    what, sizes = pickle.loads(_exactly(source, size))  # noqa: S301  # from nobody but the other half of this file
    return what, [_exactly(source, size) for size in sizes]


def _exactly(source: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        came = source.recv_into(view)
        if not came:
            raise EOFError
        view = view[came:]
    return data


def serve(*descriptors: str) -> None:
    """Be the process: commit what is sent until the other end closes.

    Args:
        descriptors: Of the socket, of OUT, of `images/`.
    """
    asker, out, images = map(int, descriptors)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They are for the run, which ends this process when it has come to its own end.
        signal.signal(ignored, signal.SIG_IGN)
    asked = socket.socket(fileno=asker)
    with asked, ThreadPoolExecutor(SLICES) as disk, suppress(OSError, EOFError):
        committer = Committer(Folders(Path(), (out, images)), disk)
        asked.sendall(_READY)
        while True:
            group, bodies = _receive(asked)
            _send(asked, committer.commit([one._replace(body=body) for one, body in zip(group, bodies, strict=True)]))
    os._exit(0)  # the run waits for this end
