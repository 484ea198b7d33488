"""What the two clients do, written once: generators that yield what to send and get what came back.

A driver (`_sync`, `_async`) does the IO: it answers an `Ask` with a `Reply` or throws the error in, and
sleeps through a `Pause`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, cast
from urllib.parse import quote

from numpy.typing import ArrayLike

from edgekit.client import _shm as shm
from edgekit.client import _tensors
from edgekit.client._address import Address
from edgekit.client._http import Ask, NotAnAgent, Reply, Unreachable
from edgekit.client._model import Answer, Array, Model, Stats, as_input
from edgekit.client._shm import Region
from edgekit.errors import (
    AuthError,
    DataError,
    EdgekitError,
    EngineError,
    ModelError,
    Overloaded,
    SystemFault,
    TimedOut,
)

T = TypeVar("T")

POLL_S = 5.0
"""The longest that one question of `wait_ready` waits for its answer."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_POLL_PAUSE_S = (0.05, 0.1, 0.2, 0.5)
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


Steps: TypeAlias = Generator[Ask | Pause, Reply | None, T]


@dataclass(frozen=True)
class Settings:
    addresses: tuple[Address, ...]
    model: str
    """Asked when a call names none; empty: the only one that is served."""
    timeout_s: float
    retries: int
    lines: str
    """Header fields of every request, each ended by CRLF."""
    max_answer_bytes: int
    shared_memory: bool


class Calls:
    """State that calls share: the models' metadata, memory regions. Safe for threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: dict[tuple[str, str], Model] = {}
        self._regions = shm.Regions()
        self._sharing = settings.shared_memory and all(one.is_local for one in settings.addresses)
        self._offered = False

    def close(self) -> None:
        self._regions.clear()

    def deadline(self, timeout_s: float | None) -> float:
        return time.monotonic() + (self.settings.timeout_s if timeout_s is None else timeout_s)

    # --- inference

    def infer(
        self,
        given: ArrayLike | Mapping[str, ArrayLike],
        *,
        model: str,
        version: str,
        outputs: Sequence[str],
        request_id: str,
        timeout_s: float | None,
    ) -> Steps[Answer | Array]:
        """Raises DataError, ModelError, AuthError, EngineError, Overloaded, TimedOut, SystemFault."""
        deadline = self.deadline(timeout_s)
        key = (model or self.settings.model, version)
        known = self._models.get(key)
        about = known or (yield from self._read(key, deadline))
        one = not isinstance(given, Mapping)
        try:
            answer = yield from self._infer(about, version, given, outputs, request_id, deadline)
        except (DataError, ModelError):
            if known is None:
                raise
            # Another release may have been rolled out since its metadata were read.
            about = yield from self._read(key, deadline)
            if about == known:
                raise
            answer = yield from self._infer(about, version, given, outputs, request_id, deadline)
        if answer.version not in about.versions:
            self._models.pop(key, None)
        return next(iter(answer.values())) if one else answer

    def _infer(
        self,
        about: Model,
        version: str,
        given: ArrayLike | Mapping[str, ArrayLike],
        outputs: Sequence[str],
        request_id: str,
        deadline: float,
    ) -> Steps[Answer]:
        inputs = _inputs(about, given, outputs)
        blobs = {name: _tensors.raw(*value) for name, value in inputs.items()}
        path = f"{_path(about.name, version)}/infer"
        reply = None
        if self._sharing and shm.FROM_BYTES <= sum(map(len, blobs.values())) <= shm.MOST_BYTES:
            reply = yield from self._share(path, inputs, blobs, outputs, request_id, deadline)
        if reply is None:
            document = _tensors.encode(inputs, blobs, {}, outputs, request_id)
            body = (document, *blobs.values())
            reply = yield from self._ask(
                self._question("POST", path, deadline, body, json_size=len(document))
            )
        self._check(reply)
        try:
            answer = _tensors.decode(reply.body, reply.json_size)
        except _tensors.Malformed as exc:
            raise self._strange(exc) from None
        wanted = outputs or tuple(tensor.name for tensor in about.outputs)
        if missing := [name for name in wanted if name not in answer]:
            # More than one release apart from its metadata: DataError makes `infer` read them again.
            raise DataError(f"the answer of {about.name} lacks {', '.join(missing)}", "was it replaced?")
        return answer

    def _share(
        self,
        path: str,
        inputs: Mapping[str, tuple[Array, str]],
        blobs: Mapping[str, bytes | memoryview],
        outputs: Sequence[str],
        request_id: str,
        deadline: float,
    ) -> Steps[Reply | None]:
        """The answer to a request whose tensors the agent fetches; None: they must be sent after all."""
        region = yield from self._region(shm.rounded([len(blob) for blob in blobs.values()]), deadline)
        if region is None:
            return None
        try:
            offsets = dict(zip(blobs, region.fill(list(blobs.values())), strict=True))
            places = {name: _tensors.Place(region.name, at, len(blobs[name])) for name, at in offsets.items()}
            document = _tensors.encode(inputs, blobs, places, outputs, request_id)
            ask = self._question("POST", path, deadline, (document,), json_size=len(document))
            reply = yield from self._ask(ask)
        except BaseException:
            region.close()  # the agent may still be reading it: nobody else may write there
            raise
        if 400 <= reply.status < 500:
            # The mistake may be in the request, or the agent was started again and knows no region.
            region.close()
            self._regions.clear()
            return None
        self._regions.give(region)
        return reply

    def _region(self, size: int, deadline: float) -> Steps[Region | None]:
        """A region of at least `size` bytes that the agent knows; None where that cannot be had."""
        region = self._regions.take(size)
        if region is not None:
            return region
        if not self._offered:
            reply = yield from self._ask(self._question("GET", "/v2", deadline))
            if not _tensors.offers(self._check(reply), "system_shared_memory"):
                self._sharing = False
                return None
            self._offered = True
        try:
            region = Region(size)
        except OSError:  # no such folder in this container, or no room
            self._sharing = False
            return None
        try:
            body = _tensors.registration(region.key, size)
            path = f"/v2/systemsharedmemory/region/{region.name}/register"
            reply = yield from self._ask(self._question("POST", path, deadline, (body,)))
        except BaseException:
            region.close()
            raise
        finally:
            region.unlink()
        if reply.status != 200:  # another user, another container, or no room for one more
            region.close()
            self._sharing = False
            return None
        return region

    # --- documents

    def model(self, name: str, version: str, timeout_s: float | None) -> Steps[Model]:
        return (yield from self._read((name or self.settings.model, version), self.deadline(timeout_s)))

    def stats(self, name: str, version: str, timeout_s: float | None) -> Steps[tuple[Stats, ...]]:
        name = name or self.settings.model
        path = f"{_path(name, version)}/stats" if name else "/v2/models/stats"
        reply = yield from self._ask(self._question("GET", path, self.deadline(timeout_s)))
        try:
            return _tensors.stats(_tensors.parse(self._check(reply)))
        except _tensors.Malformed as exc:
            raise self._strange(exc) from None

    def _read(self, key: tuple[str, str], deadline: float) -> Steps[Model]:
        name, version = key
        name = name or (yield from self._only_model(deadline))
        reply = yield from self._ask(self._question("GET", _path(name, version), deadline))
        try:
            found = _tensors.model(_tensors.parse(self._check(reply)))
        except _tensors.Malformed as exc:
            raise self._strange(exc) from None
        self._models[key] = found
        return found

    def _only_model(self, deadline: float) -> Steps[str]:
        """The name of the only model that is ready."""
        for attempt in itertools.count():
            ask = self._question("POST", "/v2/repository/index", deadline, (b'{"ready":true}',))
            reply = yield from self._ask(ask)
            text = self._check(reply)
            try:
                names = _tensors.names(text)
            except _tensors.Malformed as exc:
                raise self._strange(exc) from None
            if len(names) == 1:
                return names[0]
            if names:
                hint = f"name one of {', '.join(names[:20])}: model=..."
                raise ModelError(f"{self._where()} serves {len(names)} models", hint)
            wait = _backoff(attempt)
            if attempt >= self.settings.retries or time.monotonic() + wait > deadline:
                break
            yield Pause(wait)
        raise Overloaded(f"{self._where()} serves no model", "wait_ready() waits until it does")

    # --- readiness

    def ready(self, name: str, timeout_s: float | None) -> Steps[bool]:
        """False also when nobody answers; AuthError and NotAnAgent are raised."""
        return (yield from self._is_ready(name or self.settings.model, self.deadline(timeout_s)))

    def wait_ready(self, timeout_s: float, name: str) -> Steps[None]:
        deadline = time.monotonic() + timeout_s
        name = name or self.settings.model
        for attempt in itertools.count():
            if (yield from self._is_ready(name, min(deadline, time.monotonic() + POLL_S))):
                return
            pause = _POLL_PAUSE_S[min(attempt, len(_POLL_PAUSE_S) - 1)]
            if time.monotonic() + pause > deadline:
                break
            yield Pause(pause)
        what = f"model {name} of {self._where()}" if name else self._where()
        raise TimedOut(f"{what} was not ready within {timeout_s:g} s", "does the agent run, and say why?")

    def _is_ready(self, name: str, deadline: float) -> Steps[bool]:
        path = f"{_path(name, '')}/ready" if name else "/v2/health/ready"
        try:
            reply = yield self._question("GET", path, deadline)
        except NotAnAgent:
            raise
        except SystemFault:
            return False
        status = cast(Reply, reply).status
        if status in (401, 403):
            self._check(cast(Reply, reply))
        return status == 200

    # --- one question

    def _question(
        self,
        method: str,
        path: str,
        deadline: float,
        body: tuple[bytes | memoryview, ...] = (),
        *,
        json_size: int = 0,
    ) -> Ask:
        limit = self.settings.max_answer_bytes
        return Ask(method, path, deadline, body, json_size, self.settings.lines, limit)

    def _ask(self, ask: Ask) -> Steps[Reply]:
        """The answer, asked for again while nobody listens or the agent asks for patience.

        A request that was sent and lost is not sent again (beyond what a kept connection's end explains):
        it may be what ended the agent.
        """
        for attempt in itertools.count():
            problem: Unreachable | None = None
            reply: Reply | None = None
            try:
                reply = yield ask
            except Unreachable as exc:
                problem, wait = exc, _backoff(attempt)
            else:
                assert reply is not None  # noqa: S101 - drivers answer an Ask with a Reply
                if reply.status not in _BUSY or reply.retry_after_s is None:
                    return reply
                wait = max(reply.retry_after_s, _FIRST_PAUSE_S) * (1 + random.random() / 4)  # noqa: S311
            if attempt >= self.settings.retries or time.monotonic() + wait >= ask.deadline:
                if problem is not None:
                    raise problem
                return cast(Reply, reply)
            yield Pause(wait)
        raise AssertionError  # count() has no end

    def _check(self, reply: Reply) -> memoryview:
        """The body of a good answer; raises the error that the status stands for."""
        if reply.status == 200:
            return reply.body
        text = _tensors.error_text(reply.body, f"HTTP status {reply.status} and no reason")
        raise _error(reply.status, text)

    def _strange(self, exc: _tensors.Malformed) -> NotAnAgent:
        return NotAnAgent(self.settings.addresses[0], str(exc))

    def _where(self) -> str:
        return " or ".join(map(str, self.settings.addresses))


def _inputs(
    about: Model, given: ArrayLike | Mapping[str, ArrayLike], outputs: Sequence[str]
) -> dict[str, tuple[Array, str]]:
    """Each input's array and data type. Raises DataError."""
    if not isinstance(given, Mapping):
        if len(about.inputs) != 1:
            names = ", ".join(tensor.name for tensor in about.inputs)
            raise DataError(f"{about.name} has the inputs {names}", "name them: infer({name: array, ...})")
        if len(outputs or about.outputs) != 1:
            names = ", ".join(tensor.name for tensor in about.outputs)
            raise DataError(
                f"{about.name} has the outputs {names}", "choose one: outputs=[name]; or infer({name: array})"
            )
        return {about.inputs[0].name: as_input(given, about.inputs[0])}
    tensors = {tensor.name: tensor for tensor in about.inputs}
    if unknown := [name for name in given if name not in tensors]:
        raise DataError(
            f"{about.name} has no input {unknown[0]!r}", f"its inputs are {', '.join(tensors) or 'none'}"
        )
    if not given:
        raise DataError("no inputs are given", f"{about.name} wants {', '.join(tensors)}")
    return {name: as_input(value, tensors[name]) for name, value in given.items()}


def _path(name: str, version: str) -> str:
    path = f"/v2/models/{quote(name, safe='')}"
    return f"{path}/versions/{quote(version, safe='')}" if version else path


def _backoff(attempt: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * (1 << min(attempt, 16)))


def _error(status: int, text: str) -> EdgekitError:
    if status in (401, 403):
        return AuthError(text, "give the client a token with the right role: token=...")
    if status == 404:
        return ModelError(text, "model() without a name tells what is served")
    if status in (408, 504):
        return TimedOut(text)
    if status in _BUSY:
        return Overloaded(text, "try again later, or send less at once")
    if 400 <= status < 500:
        return DataError(text)
    if status >= 500:
        return EngineError(text)
    return SystemFault(f"HTTP status {status} is not expected: {text}", "does an agent listen there?")
