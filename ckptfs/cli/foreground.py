"""What `ckptfs mount --foreground` does once everything is checked: be the mount process, and write its log.

Owns the log, and the wait for another mount process that is about to let go of the store; refuses to know what a
session does. Brings in trio and pyfuse3, so only the mount process brings in this.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from logging.handlers import RotatingFileHandler

from ckptfs.config import MIB
from ckptfs.errors import StoreInUseError
from ckptfs.mount import mountinfo, notify, session
from ckptfs.mount.options import MountOptions

LOG_SIZE_MAX = 1 * MIB
LOG_COUNT = 3
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
RELEASE_SECONDS = 10.0
"""How long a mount waits for a mount process that has lost its mount and is about to end."""
POLL_SECONDS = 0.05

log = logging.getLogger(__name__)


def set_up_logging(path: str, *, to_stderr: bool) -> None:
    """Send the log of this process to a file that rotates, if it can be written, and to standard error if wanted."""
    # The log lies in the store: on a full disk a line of it is lost, and saying so in the log would not help.
    logging.raiseExceptions = False
    handlers: list[logging.Handler] = [logging.StreamHandler()] if to_stderr else []
    with suppress(OSError):  # a store that is mounted read-only may be on a disk that is
        handlers.append(RotatingFileHandler(path, maxBytes=LOG_SIZE_MAX, backupCount=LOG_COUNT - 1))
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, handlers=handlers or [logging.NullHandler()])


def serve(options: MountOptions, tell_ready: Callable[[], None]) -> None:
    """Be the mount process until the mount is taken down."""
    is_usable = False

    def ready() -> None:
        nonlocal is_usable
        is_usable = True
        log.info("%s is mounted, its store is %s", options.mountpoint, options.store)
        notify.ready(f"{options.mountpoint} is mounted, its store is {options.store}")
        tell_ready()

    notify.status(f"opening the store {options.store}")
    deadline = time.monotonic() + RELEASE_SECONDS
    while True:
        try:
            session.run(options, ready)
            break
        except StoreInUseError as error:
            mounts = mountinfo.mounts_of_store(options.store)
            if mounts:
                raise StoreInUseError(f"{error}; it is mounted on {mounts[0].mountpoint}") from error
            if is_usable or time.monotonic() >= deadline:
                raise
            # Its mount process has been unmounted and is writing the last of it.
            time.sleep(POLL_SECONDS)
    notify.stopping(f"{options.mountpoint} is unmounted, everything is in {options.store}")
    log.info("%s is unmounted, everything is in %s", options.mountpoint, options.store)
