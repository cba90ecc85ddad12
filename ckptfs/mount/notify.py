"""Tell the service manager how far the mount is: the sd_notify protocol of systemd, see sd_notify(3).

Owns the datagram and nothing else. Without a manager (no NOTIFY_SOCKET) every call does nothing. A manager that does
not listen is none of the mount's business, so sending never fails.
"""

import logging
import os
import socket

log = logging.getLogger(__name__)


def ready(status: str) -> None:
    """Say that the mount is usable."""
    _send("READY=1", status)


def status(status: str) -> None:
    """Say what the mount process is doing."""
    _send(status=status)


def stopping(status: str) -> None:
    """Say that the mount is being taken down."""
    _send("STOPPING=1", status)


def _send(state: str = "", status: str = "") -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    lines = [state] if state else []
    # A status is one line; a path in it may hold anything, bytes that are not UTF-8 included.
    lines.append("STATUS=" + " ".join(status.splitlines()))
    if address.startswith("@"):  # an abstract socket: its name begins with NUL
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.connect(address)
            manager.send("\n".join(lines).encode(errors="replace"))
    except OSError as error:
        log.info("the service manager at %r cannot be told: %s", address, error)
