"""Where a state file must not live: file systems of other machines, whose locks and memory maps SQLite can't trust."""

import os
from pathlib import Path

# SQLite's write-ahead log needs one host (sqlite.org/wal.html); on these it may work for years and then not.
REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "glusterfs", "lustre", "fuse.sshfs"})
_MOUNTS = "/proc/self/mounts"


def remote_kind(folder: Path, mounts: str = _MOUNTS) -> str | None:
    """Return the type of the remote file system that holds a folder; None where it is local, or nobody can tell."""
    try:
        with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
            table = [line.split(" ") for line in lines]
    except OSError:
        return None
    path = os.path.realpath(folder)
    best, kind = "", None
    for row in table:
        point = row[1].replace("\\040", " ") if len(row) > 2 else ""
        holds = path == point or path.startswith(point.rstrip("/") + "/")
        if point and holds and len(point) >= len(best):
            best, kind = point, row[2]
    return kind if kind in REMOTE else None
