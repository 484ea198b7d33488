"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast, overload

from numpy.typing import ArrayLike

from edgekit.client._calls import Calls, Pause, Steps
from edgekit.client._connection import Pool
from edgekit.client._http import Reply
from edgekit.client._model import Answer, Array, Model, Stats
from edgekit.client._settings import Tls, settings
from edgekit.errors import EdgekitError

T = TypeVar("T")


class Client:
    """Asks an agent on this machine or another; safe for threads.

    `address`: "unix:/path", "http://host:port" or "https://host:port", or several of one agent, best first;
    left out, it is $EDGEKIT_ENDPOINT, else the agent's usual socket, else its usual port. `model`: whom to
    ask when a call names none; left out, the only one that is served. `token`: bearer token; `ca`, `cert`
    and `key`: PEM files for https. `timeout_s`: seconds for a call with all its retries. `retries`: how
    often a call that found nobody, or an agent without room, is tried again. `connections`: at most so many
    at once; calls beyond wait. `shared_memory`: large tensors go beside the socket where the agent is on
    this machine and offers that.

    Every call raises AuthError (no or the wrong token), Overloaded (still no room after the retries),
    TimedOut and SystemFault (nobody there, or not an agent) of edgekit.errors.
    """

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
        """Connects at the first call. Raises InputError."""
        made = settings(
            address, model=model, token=token, timeout_s=timeout_s, retries=retries,
            connections=connections, max_answer_mib=max_answer_mib,
            shared_memory=shared_memory,
        )  # fmt: skip
        self._calls = Calls(made)
        self._pool = Pool(made.addresses, connections, Tls(ca, cert, key).context)

    @overload
    def infer(
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
    def infer(
        self,
        inputs: ArrayLike,
        *,
        model: str = "",
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Array: ...
    def infer(
        self,
        inputs: ArrayLike | Mapping[str, ArrayLike],
        *,
        model: str = "",
        version: str = "",
        outputs: Sequence[str] = (),
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Answer | Array:
        """Run the model: {name: array} to an `Answer`; an array to an array, of one input and one output.

        Shapes are the model's, batch in front. `outputs`: only these. Texts come back as bytes. Raises
        DataError (the agent says what does not fit), ModelError (no such model or version) and EngineError
        (the engine failed).
        """
        return self._run(
            self._calls.infer(
                inputs, model=model, version=version, outputs=outputs, request_id=request_id,
                timeout_s=timeout_s,
            )
        )  # fmt: skip

    def model(self, name: str = "", version: str = "", *, timeout_s: float | None = None) -> Model:
        """Inputs and outputs, as the agent tells them now. Raises ModelError."""
        return self._run(self._calls.model(name, version, timeout_s))

    def stats(
        self, name: str = "", version: str = "", *, timeout_s: float | None = None
    ) -> tuple[Stats, ...]:
        """Counts and times of a model, or of all. Raises ModelError."""
        return self._run(self._calls.stats(name, version, timeout_s))

    def ready(self, model: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the agent answers inference requests now; False also when nobody is there."""
        return self._run(self._calls.ready(model, timeout_s))

    def wait_ready(self, timeout_s: float = 30.0, model: str = "") -> None:
        """Wait until `ready`. Raises TimedOut."""
        self._run(self._calls.wait_ready(timeout_s, model))

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()
        self._calls.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                got: Reply | None = None
                try:
                    if isinstance(step, Pause):
                        time.sleep(step.seconds)
                    else:
                        got = self._pool.exchange(step)
                except EdgekitError as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(got)
        except StopIteration as stop:
            return cast(T, stop.value)
