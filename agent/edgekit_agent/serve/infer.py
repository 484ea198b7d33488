"""One inference request in steps that may run on the loop or on a model's thread, for any protocol."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from edgekit.bundle.model import VariantConfig
from edgekit.errors import EdgekitError, EngineError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._golden import classes
from edgekit.runtimes._preprocess import to_engine
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model

_SIGNATURES = 64
A = TypeVar("A")
"""An answer of a protocol: message.Response, or a gRPC reply."""
A_co = TypeVar("A_co", covariant=True)


class NotServed(EdgekitError):
    """No such model or version (404), or none at all at the moment (503)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.http_status = status


@dataclass(frozen=True)
class Layout:
    """Of the only input of requests that repeat, as the engine takes it."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


PACKED_BYTES = 16 * 1024
"""Up to this size a single input is kept as bytes until it runs: to join bytes costs a tenth of making arrays
of them and joining those."""


@dataclass(slots=True)
class Prepared:
    """A request that is valid for the model."""

    arrays: dict[str, Array] | None
    """None: `packed` says it, laid out as `layout`."""
    samples: int
    note: Any = None
    """What the protocol wants to remember for `encode`."""
    packed: bytes | bytearray = b""
    layout: Layout | None = None
    input_ns: int = 0
    """Time that decoding took; Core fills it in."""
    deadline_ns: int = 0
    """time.perf_counter_ns() after which the answer is 504 without running; 0: none. As Core.infer's."""
    priority: int = 0
    """0 is normal, higher comes first. As Core.infer's; the higher of both counts."""

    @property
    def inputs(self) -> dict[str, Array]:
        """What the engine takes, checked against the variant's configuration."""
        if self.arrays is None:
            assert self.layout is not None  # noqa: S101 - one of the two is there
            self.arrays = {self.layout.name: np.ndarray(self.layout.shape, self.layout.dtype, self.packed)}
        return self.arrays


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
    infer_ns: int = 0
    output_ns: int = 0
    bug: BaseException | None = None
    """What nobody expected; for the log."""


@cache
def _protocol(kind: type) -> str:
    return getattr(kind, "protocol", "") or kind.__module__.rpartition(".")[2].replace("_", "-")


def protocol(codec: Codec[Any]) -> str:
    """What metrics call the protocol of a codec: its `protocol`, else its module, such as "oip-http"."""
    return _protocol(type(codec))


def prepare(model: Model, arrays: dict[str, Array], limits: Limits, note: Any = None) -> Prepared:
    """Arrays as the client named and typed them, checked and converted. Raises InputError.

    `arrays` is the caller's no more.
    """
    signature = tuple([(name, array.dtype, array.shape) for name, array in arrays.items()])
    samples = model.signatures.get(signature)
    if samples is not None:
        return Prepared(arrays, samples, note=note)
    config = model.config
    inputs = to_engine(arrays, config.inputs, config.preprocessing)
    samples = next((len(inputs[spec.name]) for spec in config.inputs if spec.shape[:1] == (-1,)), 1)
    if not 0 < samples <= limits.max_batch:
        raise InputError(f"a batch of {samples} samples; 1 to {limits.max_batch} are allowed")
    if list(inputs) == list(arrays) and all(inputs[name] is arrays[name] for name in arrays):
        inputs = arrays  # nothing had to be converted, nor will it be the next time
        if len(model.signatures) < _SIGNATURES:
            model.signatures[signature] = samples
    return Prepared(inputs, samples, note=note)


@dataclass(slots=True)
class Run:
    """What the engine made of requests that ran together."""

    results: list[dict[str, Array] | Exception]
    """Of each request."""
    took: list[tuple[int, int]]
    """Samples and nanoseconds of each engine run: one for all, or one for each request."""

    @property
    def ms(self) -> float:
        """All of them together."""
        total = 0
        for _, ns in self.took:
            total += ns
        return total / 1e6

    def answer_bytes(self) -> int:
        """Size of all outputs."""
        total = 0
        for result in self.results:
            if not isinstance(result, Exception):
                for array in result.values():
                    total += array.nbytes
        return total


def run(model: Model, batch: Sequence[Prepared]) -> Run:
    """One engine run for all of `batch`, whose shapes fit together. Never raises.

    When a joined run fails each request runs alone, so that none fails for the sake of another.
    """
    begin = time.perf_counter_ns()
    samples = 0
    for prepared in batch:
        samples += prepared.samples
    results: list[dict[str, Array] | Exception]
    try:
        if len(batch) == 1:
            results = [model.session.run(batch[0].inputs)]
        else:
            results = [*_split(model.session.run(_join(batch)), batch, samples)]
    except Exception as exc:
        if len(batch) > 1:
            alone = [run(model, [prepared]) for prepared in batch]
            return Run([one.results[0] for one in alone], [one.took[0] for one in alone])
        results = [exc]
    return Run(results, [(samples, time.perf_counter_ns() - begin)])


def _join(batch: Sequence[Prepared]) -> dict[str, Array]:
    layout, packed = batch[0].layout, [one.packed for one in batch]
    if layout is not None and all(packed):
        joined = np.frombuffer(b"".join(packed), layout.dtype)
        return {layout.name: joined.reshape(-1, *layout.shape[1:])}
    return {name: np.concatenate([one.inputs[name] for one in batch]) for name in batch[0].inputs}


def _split(outputs: dict[str, Array], batch: Sequence[Prepared], samples: int) -> Iterator[dict[str, Array]]:
    """Each request's rows, as views. Raises EngineError when there are not as many as went in."""
    for name, array in outputs.items():
        if array.shape[:1] != (samples,):
            raise EngineError(f"output {name!r} has shape {array.shape} for {samples} samples")
    begin = 0
    for one in batch:
        end = begin + one.samples
        yield {name: array[begin:end] for name, array in outputs.items()}
        begin = end


def outcome(
    model: Model, codec: Codec[A], prepared: Prepared, result: dict[str, Array] | Exception, infer_ns: int
) -> Outcome[A]:
    """Encode one request's answer. Never raises: what goes wrong becomes a 4xx or 5xx answer."""
    if isinstance(result, Exception):
        return refusal(codec, result)
    begin = time.perf_counter_ns()
    try:
        answer = codec.encode(model, prepared, result)
        config = model.config
        found = predicted(config, result, prepared.samples) if config.labels else ()
    except Exception as exc:
        return refusal(codec, exc)
    done = time.perf_counter_ns()
    return Outcome(answer, 200, prepared.samples, found, infer_ns, done - begin)


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
    """Predicted class of each sample, when the first output has a score for each of the variant's labels."""
    scores = outputs[config.outputs[0].name]
    if scores.shape[:1] != (samples,) or scores.size != samples * len(config.labels):
        return ()
    return (int(np.argmax(scores)),) if samples == 1 else tuple(classes(scores).tolist())
