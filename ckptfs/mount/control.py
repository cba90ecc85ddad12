"""The control socket's server side: commands of people, carried out by the mount process.

Only the user who owns the mount (and root) is listened to. A command that fails answers with its error; a client
that goes away early does not stop a command under way.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ckptfs.errors import CkptfsError, UsageError
from ckptfs.mount.protocol import LINE_SIZE_MAX, Request, decode_request, encode_error, encode_result, peer_uid

log = logging.getLogger(__name__)

RECEIVE_SIZE = 65536


async def serve(listener: socket.socket, carry_out: Callable[[Request], Awaitable[Any]]) -> None:
    """Answer connections, one request each, for ever."""

    async def answer(stream: trio.SocketStream) -> None:
        await _answer(stream, carry_out)

    await trio.serve_listeners(answer, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


async def _answer(stream: trio.SocketStream, carry_out: Callable[[Request], Awaitable[Any]]) -> None:
    async with stream:
        try:
            reply = await _reply(stream, carry_out)
            await stream.send_all(reply)
        except trio.BrokenResourceError:
            log.info("a client of the control socket went away before its answer")


async def _reply(stream: trio.SocketStream, carry_out: Callable[[Request], Awaitable[Any]]) -> bytes:
    try:
        if _peer(stream) not in (0, os.geteuid()):
            raise UsageError("this mount belongs to another user")
        result = await carry_out(decode_request(await _line(stream)))
        return await trio.to_thread.run_sync(encode_result, result)  # thousands of versions are megabytes
    except CkptfsError as error:
        return encode_error(error)
    except Exception as error:
        log.exception("a bug, or a failure nobody foresaw, in a command")
        return encode_error(error)


def _peer(stream: trio.SocketStream) -> int:
    with socket.socket(fileno=os.dup(stream.socket.fileno())) as plain:
        return peer_uid(plain)


async def _line(stream: trio.SocketStream) -> bytes:
    received = bytearray()
    while b"\n" not in received:
        data = await stream.receive_some(RECEIVE_SIZE)
        if not data:
            break
        received += data
        if len(received) > LINE_SIZE_MAX:
            raise UsageError("the request is too long")
    return bytes(received)
