"""Files that the disk has no room for."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from deployments.contract.errors import OverloadedError

# The errors of a full disk, of the user's quota, and of a file system's largest file.
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def disk_full_reported() -> Iterator[None]:
    """Raises OverloadedError where the disk takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_FULL:
            raise
        raise OverloadedError(
            "The service's disk has no room for the file: try again later"
        ) from None
