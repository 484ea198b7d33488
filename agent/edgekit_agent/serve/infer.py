"""One inference request in steps that may run on the loop or on a model's thread, for any protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from edgekit.bundle.model import VariantConfig
from edgekit.errors import EdgekitError, EngineError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._golden import classes
from edgekit.runtimes._preprocess import to_engine
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model

A = TypeVar("A")
"""An answer of a protocol: message.Response, or a gRPC reply."""
A_co = TypeVar("A_co", covariant=True)


class NotServed(EdgekitError):
    """No such model or version (404), or none at all at the moment (503)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.http_status = status


@dataclass(slots=True)
class Prepared:
    """A request that is valid for the model."""

    inputs: dict[str, Array]
    """What the engine takes, checked against the variant's configuration."""
    samples: int
    input_ns: int = 0
    """Time that decoding took; Core fills it in."""
    note: Any = None
    """What the protocol wants to remember for `encode`."""
    deadline_ns: int = 0
    """time.perf_counter_ns() after which the answer is 504 without running; 0: none. As Core.infer's."""
    priority: int = 0
    """0 is normal, higher comes first. As Core.infer's; the higher of both counts."""


class Codec(Protocol[A_co]):
    """One inference request of one protocol, used once, on the event loop or on a model's thread."""

    def decode(self, model: Model, limits: Limits) -> Prepared:
        """Parse, then `prepare`. Raises EdgekitError, whose http_status counts."""
        ...

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> A_co:
        """The answer. Raises EdgekitError for what the protocol cannot carry."""
        ...

    def refuse(self, status: int, text: str) -> A_co:
        """The answer to a request that failed; `status` as in HTTP, `text` one line. Never raises."""
        ...


@dataclass(slots=True)
class Outcome(Generic[A]):
    """What one request came to, and where its time went (nanoseconds)."""

    answer: A
    status: int
    samples: int = 0
    classes: tuple[int, ...] = ()
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    bug: BaseException | None = None
    """What nobody expected; for the log."""


def prepare(model: Model, arrays: Mapping[str, Array], limits: Limits, note: Any = None) -> Prepared:
    """Arrays as the client named and typed them, checked and converted. Raises InputError."""
    config = model.config
    inputs = to_engine(arrays, config.inputs, config.preprocessing)
    samples = next((len(inputs[spec.name]) for spec in config.inputs if spec.shape[:1] == (-1,)), 1)
    if not 0 < samples <= limits.max_batch:
        raise InputError(f"a batch of {samples} samples; 1 to {limits.max_batch} are allowed")
    return Prepared(inputs, samples, note=note)


def run(model: Model, codec: Codec[A], prepared: Prepared) -> Outcome[A]:
    """Run the engine and encode its answer. Never raises: what goes wrong becomes a 4xx or 5xx answer."""
    begin = time.perf_counter_ns()
    if prepared.deadline_ns and begin > prepared.deadline_ns:
        return Outcome(codec.refuse(504, "the request's timeout passed while it waited"), 504)
    try:
        outputs = model.session.run(prepared.inputs)
        ran = time.perf_counter_ns()
        answer = codec.encode(model, prepared, outputs)
        found = predicted(model.config, outputs, prepared.samples)
    except Exception as exc:
        return refusal(codec, exc)
    done = time.perf_counter_ns()
    return Outcome(answer, 200, prepared.samples, found, prepared.input_ns, ran - begin, done - ran)


def refusal(codec: Codec[A], exc: BaseException) -> Outcome[A]:
    """The answer to a request that failed."""
    bug: BaseException | None = exc
    if isinstance(exc, EdgekitError):
        status, text = exc.http_status, str(exc)
        bug = None if isinstance(exc, InputError | EngineError | NotServed) else exc
    elif isinstance(exc, MemoryError):
        status, text = 503, "not enough memory for this request"
    else:
        status, text = 500, "internal error; see the agent's log"
    return Outcome(codec.refuse(status, text), status, bug=bug)


def predicted(config: VariantConfig, outputs: Mapping[str, Array], samples: int) -> tuple[int, ...]:
    """Predicted class of each sample, when the variant has labels for the first output."""
    if not config.labels:
        return ()
    scores = outputs[config.outputs[0].name]
    if scores.shape[:1] != (samples,) or scores.size != samples * len(config.labels):
        return ()
    return (int(np.argmax(scores)),) if samples == 1 else tuple(classes(scores).tolist())
