"""The client for asyncio: the same calls as `Client`, to be awaited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, cast, overload

import numpy as np
from numpy.typing import ArrayLike

from edgekit.client._address import Address
from edgekit.client._calls import Calls, Pause, Steps
from edgekit.client._http import (
    END,
    MAX_HEAD_BYTES,
    Ask,
    Head,
    Lost,
    NotAnAgent,
    Reply,
    Unreachable,
    parse_head,
    reason,
    refused,
    room,
)
from edgekit.client._model import Answer, Array, Model, Stats
from edgekit.client._settings import Tls, settings
from edgekit.errors import EdgekitError, SystemFault, TimedOut

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")

_AT_ONCE = 64 * 1024
_BUFFER = 1 << 20


class Connection:
    """One request at a time; of no further use after an exchange that raised, or when `kept` is False."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address) -> None:
        self._reader = reader
        self._writer = writer
        self._address = address
        self.kept = True

    def close(self) -> None:
        self._writer.transport.abort()  # what an answered request leaves behind is of no use to anybody

    def is_stale(self) -> bool:
        """Whether the agent has ended it, or spoken unasked, since the last answer."""
        spoken = getattr(self._reader, "_buffer", b"")  # streams have no public way to look
        return bool(spoken) or self._reader.at_eof() or self._writer.is_closing()

    async def exchange(self, ask: Ask) -> Reply:
        """Raises Lost, NotAnAgent, TimeoutError."""
        self.kept = False
        try:
            async with asyncio.timeout_at(_loop_time(ask.deadline)):
                with suppress(BrokenPipeError, ConnectionResetError):  # as in _connection.py
                    await self._send(ask)
                head = await self._head(ask)
                body = await self._body(head)
        except TimeoutError:
            raise
        except (OSError, asyncio.IncompleteReadError) as exc:
            raise refused(exc, self._address) or Lost(self._address) from None
        self.kept = head.keep_alive
        return Reply(head.status, body, head.json_size, head.retry_after_s)

    async def _send(self, ask: Ask) -> None:
        parts = [ask.head(self._address), *ask.body]
        if sum(map(len, parts)) <= _AT_ONCE:
            self._writer.write(b"".join(parts))
        else:
            for part in parts:
                self._writer.write(part)
                await self._writer.drain()
        await self._writer.drain()

    async def _head(self, ask: Ask) -> Head:
        while True:
            try:
                data = await self._reader.readuntil(END)
            except asyncio.LimitOverrunError:
                raise NotAnAgent(self._address, "its header has no end") from None
            if len(data) > MAX_HEAD_BYTES:
                raise NotAnAgent(self._address, "its header has no end")
            head = parse_head(data[: -len(END)], self._address, ask.max_answer)
            if head.status >= 200:
                return head

    async def _body(self, head: Head) -> memoryview:
        first = room(head)
        body = np.empty(first + head.length, np.uint8).data[first:]
        at = 0
        while at < head.length:
            part = await self._reader.read(min(head.length - at, _BUFFER))
            if not part:
                raise Lost(self._address)
            body[at : at + len(part)] = part
            at += len(part)
        return body


class Pool:
    """As _connection.Pool, on one event loop."""

    def __init__(self, addresses: Sequence[Address], size: int, tls: Callable[[], ssl.SSLContext]) -> None:
        self._addresses = addresses
        self._size = size
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(size)
        self.closed = False

    def close(self) -> None:
        self.closed = True
        while self._idle:
            self._idle.pop().close()

    async def exchange(self, ask: Ask) -> Reply:
        """Raises Unreachable, Lost, TimedOut, NotAnAgent."""
        if self.closed:
            raise SystemFault("the client is closed", "make another")
        try:
            async with asyncio.timeout_at(_loop_time(ask.deadline)):
                await self._free.acquire()
        except TimeoutError:
            raise TimedOut(
                f"all {self._size} connections are in use", "allow more: connections=..."
            ) from None
        try:
            return await self._exchange(ask)
        except TimeoutError:
            raise TimedOut(f"{self._addresses[0]} gave no answer in time") from None
        finally:
            self._free.release()

    async def _exchange(self, ask: Ask) -> Reply:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_stale():
                connection.close()
                continue
            try:
                return await self._use(connection, ask)
            except Lost:
                while self._idle:
                    self._idle.pop().close()
        return await self._use(await self._open(ask.deadline), ask)

    async def _use(self, connection: Connection, ask: Ask) -> Reply:
        try:
            reply = await connection.exchange(ask)
        except BaseException:
            connection.close()
            raise
        if connection.kept and not self.closed:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    async def _open(self, deadline: float) -> Connection:
        reasons = []
        for address in self._addresses:
            try:
                async with asyncio.timeout_at(_loop_time(deadline)):
                    reader, writer = await self._connect(address)
            except TimeoutError:
                reasons.append(f"{address}: no answer")
            except OSError as exc:
                if problem := refused(exc, address):
                    raise problem from None
                reasons.append(f"{address}: {reason(exc)}")
            else:
                return Connection(reader, writer, address)
        raise Unreachable(f"no agent can be reached ({'; '.join(reasons)})", "is edgekit-agent running?")

    async def _connect(self, address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if address.path:
            return await asyncio.open_unix_connection(address.path, limit=_BUFFER)
        if not address.tls:
            return await asyncio.open_connection(address.host, address.port, limit=_BUFFER)
        self._tls = self._tls or self._make_tls()
        return await asyncio.open_connection(
            address.host, address.port, limit=_BUFFER, ssl=self._tls, server_hostname=address.host
        )


class AsyncClient:
    """`Client` for asyncio: one event loop, any number of tasks. Arguments and errors are the same."""

    def __init__(
        self,
        address: str | Path | Sequence[str | Path] | None = None,
        *,
        model: str = "",
        token: str = "",
        ca: str = "",
        cert: str = "",
        key: str = "",
        timeout_s: float = 30.0,
        retries: int = 5,
        connections: int = 8,
        max_answer_mib: int = 256,
        shared_memory: bool = True,
    ) -> None:
        made = settings(
            address, model=model, token=token, timeout_s=timeout_s, retries=retries,
            connections=connections, max_answer_mib=max_answer_mib,
            shared_memory=shared_memory,
        )  # fmt: skip
        self._calls = Calls(made)
        self._pool = Pool(made.addresses, connections, Tls(ca, cert, key).context)

    @overload
    async def infer(
        self,
        inputs: Mapping[str, ArrayLike],
        *,
        model: str = "",
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Answer: ...
    @overload
    async def infer(
        self,
        inputs: ArrayLike,
        *,
        model: str = "",
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Array: ...
    async def infer(
        self,
        inputs: ArrayLike | Mapping[str, ArrayLike],
        *,
        model: str = "",
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Answer | Array:
        """See Client.infer."""
        return await self._run(
            self._calls.infer(
                inputs, model=model, version=version, outputs=outputs, request_id=request_id,
                timeout_s=timeout_s,
            )
        )  # fmt: skip

    async def model(self, name: str = "", version: str = "", *, timeout_s: float | None = None) -> Model:
        """See Client.model."""
        return await self._run(self._calls.model(name, version, timeout_s))

    async def stats(
        self, name: str = "", version: str = "", *, timeout_s: float | None = None
    ) -> tuple[Stats, ...]:
        """See Client.stats."""
        return await self._run(self._calls.stats(name, version, timeout_s))

    async def ready(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """See Client.ready."""
        return await self._run(self._calls.ready(model, timeout_s))

    async def wait_ready(self, timeout_s: float = 30.0, model: str = "") -> None:
        """See Client.wait_ready."""
        await self._run(self._calls.wait_ready(timeout_s, model))

    async def close(self) -> None:
        """Close the connections."""
        self._pool.close()
        self._calls.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                got: Reply | None = None
                try:
                    if isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                    else:
                        got = await self._pool.exchange(step)
                except EdgekitError as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(got)
        except StopIteration as stop:
            return cast(T, stop.value)


def _loop_time(deadline: float) -> float:
    """A time.monotonic() instant on the running loop's clock."""
    return asyncio.get_running_loop().time() + deadline - time.monotonic()
