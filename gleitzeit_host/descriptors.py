"""Take the protocol's streams out of everybody's reach, before anything that might print or read is imported."""

import fcntl
import os

_claimed: tuple[int, int] | None = None


def claim() -> tuple[int, int]:
    """Take the protocol's streams out of everybody's reach; return (input, output) descriptors.

    Afterwards descriptor 0 is /dev/null and 1 is stderr: no stray print can corrupt the stream and no child can read
    from it. A second call returns the first one's answer.
    """
    global _claimed  # noqa: PLW0603 - a process has one pair
    if _claimed is None:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (0, 1, 2):
            if not _is_open(descriptor):
                os.dup2(null, descriptor)
        _claimed = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1))  # type: ignore[assignment]
        os.dup2(null, 0)
        os.dup2(2, 1)
        os.close(null)
    assert _claimed is not None
    return _claimed


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
