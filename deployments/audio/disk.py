"""The disk on which files lie while they are in work, and its end."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.contract.errors import OverloadedError

# The errors of a full disk, of the user's quota, and of a file system's largest file.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Left free for the rest of the machine, such as Ray's logs; of a small disk, a tenth.
_RESERVE_BYTES = 256 << 20
_RESERVE_SHARE = 10


@contextmanager
def disk_full_reported() -> Iterator[None]:
    """Raises OverloadedError where the disk takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        full = no_room()
    else:
        return
    # Outside the except block, whose exception would become the context of this one.
    raise full


def usable_bytes() -> int:
    """How many bytes temporary files may take beyond what they take now."""
    disk = os.statvfs(tempfile.gettempdir())
    total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    return free - min(_RESERVE_BYTES, total // _RESERVE_SHARE)


def no_room() -> OverloadedError:
    return OverloadedError(
        "The service's disk has no room for the file: try again later"
    )
