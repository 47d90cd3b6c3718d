"""The superuser without what only the superuser may: permissions hold for it as for anybody."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # of the capabilities of Linux
VERSION = 0x20080522


def _change(effective: int | None = None) -> int:
    """Set the capabilities of this thread that are in effect; those that were."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION, 0)
    words = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; those above 32 follow
    if libc.capget(header, words):
        raise OSError(ctypes.get_errno(), "capget")
    before = words[0]
    if effective is not None:
        words[0] = effective
        if libc.capset(header, words):
            raise OSError(ctypes.get_errno(), "capset")
    return before


@contextmanager
def ordinary() -> Iterator[None]:
    """This thread may read and write only what the permissions of a file allow its owner."""
    if sys.platform != "linux" or os.geteuid() != 0:
        yield
        return
    before = _change()
    _change(before & ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH))
    try:
        yield
    finally:
        _change(before)


def permissions_hold(folder: Path) -> bool:
    """Whether a folder without a right to write keeps an ordinary thread out."""
    place = folder / "locked"
    place.mkdir(mode=0o500)
    try:
        with ordinary():
            (place / "file").touch()
    except PermissionError:
        return True
    except OSError:
        return False
    finally:
        place.chmod(0o700)
    return False
