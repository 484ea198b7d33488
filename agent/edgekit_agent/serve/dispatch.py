"""Between HTTP and models: which answer a request gets, on which thread, and how a release is swapped.

Lives on the event loop. Protocols are thin over it: `handle` takes a request and a function that gets
the answer, now or later, exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from urllib.parse import unquote

from edgekit_agent import metrics, process
from edgekit_agent.serve import documents, infer
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response, busy, error, ok
from edgekit_agent.serve.model import Model

Respond = Callable[[Response], None]

INLINE_BODY_BYTES = 64 * 1024
"""Larger bodies are parsed on the model's thread, so that they do not hold up other connections."""
_LOG_EVERY_S = 10.0
_NOTHING = "no model is loaded"
_log = logging.getLogger(__name__)


class Dispatcher:
    def __init__(self, limits: Limits, *, version: str = "", restarts: int = 0) -> None:
        self.limits = limits
        self.ledger = metrics.Ledger()
        self.model: Model | None = None
        self.in_flight = 0
        self._version = version
        self._restarts = restarts
        self._loop = asyncio.get_running_loop()
        self._in_use: set[Model] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._logged = 0.0

    # --- releases

    def swap(self, model: Model | None) -> None:
        """Serve `model` from the next request on; the old one answers what it has begun, then closes."""
        old, self.model = self.model, model
        if old is not None:
            old.retire(lambda: self._retired(old))
        if model is not None:
            self._in_use.add(model)

    async def retired(self) -> None:
        """Wait until every model but the current one is closed."""
        while self._closing or len(self._in_use) > (self.model is not None):
            await asyncio.sleep(0.005)

    def oldest_run_s(self) -> float:
        """Age of the longest running inference, of any release; 0 when none runs."""
        return max((model.gate.oldest_run_s() for model in self._in_use), default=0.0)

    def _retired(self, model: Model) -> None:
        task = self._loop.create_task(self._close(model))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, model: Model) -> None:
        try:
            await asyncio.to_thread(model.close)
        except Exception as exc:  # an engine's last words must not stop the next release
            self._complain(f"closing {model.release}", exc)
        self._in_use.discard(model)
        del model
        await asyncio.to_thread(process.give_back_memory)

    # --- requests

    def handle(self, request: Request, respond: Respond) -> None:
        """Answer `request` through `respond`. Never raises."""
        path = request.target.partition(b"?")[0]
        parts = [unquote(part) for part in path.decode("latin-1").split("/")[1:]]
        try:
            match parts:
                case ["v2", "models", name, "infer"]:
                    self._if(b"POST", request, respond, lambda: self._infer(name, "", request, respond))
                case ["v2", "models", name, "versions", version, "infer"]:
                    self._if(b"POST", request, respond, lambda: self._infer(name, version, request, respond))
                case ["v2", "repository", "index"]:
                    self._if(b"POST", request, respond, lambda: respond(self._index()))
                case _:
                    answer = self._page(parts)
                    if answer is None:
                        respond(error(404, "Not Found"))
                    else:
                        self._if(b"GET", request, respond, lambda: respond(answer()))
        except Exception as exc:  # a bug of ours: the client gets an answer, the log a traceback
            self._complain("answering a request", exc)
            respond(error(500, "internal error; see the agent's log"))

    def _if(self, method: bytes, request: Request, respond: Respond, action: Callable[[], None]) -> None:
        if request.method == method:
            action()
        else:
            respond(error(405, "Method Not Allowed", f"Allow: {method.decode()}\r\n"))

    def _page(self, parts: list[str]) -> Callable[[], Response] | None:
        """What a GET of this path gives; None when there is no such path."""
        match parts:
            case ["metrics"]:
                return self._metrics
            case ["v2"]:
                return lambda: ok(documents.server(self._version))
            case ["v2", "health", "live"]:
                return lambda: ok({"live": True})
            case ["v2", "health", "ready"]:
                return lambda: ok({"ready": True}) if self.model else error(503, _NOTHING)
            case ["v2", "models", "stats"]:
                return lambda: self._about("", "", "stats", any_model=True)
            case ["v2", "models", name]:
                return lambda: self._about(name, "", "")
            case ["v2", "models", name, ("ready" | "config" | "stats") as what]:
                return lambda: self._about(name, "", what)
            case ["v2", "models", name, "versions", version]:
                return lambda: self._about(name, version, "")
            case ["v2", "models", name, "versions", version, ("ready" | "config" | "stats") as what]:
                return lambda: self._about(name, version, what)
        return None

    def _about(self, name: str, version: str, what: str, *, any_model: bool = False) -> Response:
        found = self._find(name, version, any_model=any_model)
        if isinstance(found, Response):
            return found
        if what == "ready":
            return ok({"name": found.name, "ready": True})
        if what == "stats":
            return ok(documents.statistics(found.counters))
        if what == "config":
            config = documents.configuration(found.name, found.version, found.config, self.limits.max_batch)
            return ok(config)
        return ok(documents.metadata(found.name, found.version, found.config))

    def _find(self, name: str, version: str, *, any_model: bool = False) -> Model | Response:
        model = self.model
        if model is None:
            return busy(_NOTHING)
        if not any_model and name != model.name:
            return error(404, f"Request for unknown model: '{name}' is not found")
        if version not in ("", model.version):
            return error(404, f"Request for unknown model: '{name}' version {version} is not found")
        return model

    def _index(self) -> Response:
        model = self.model
        return ok(documents.index(model.name, model.version) if model else [])

    def _metrics(self) -> Response:
        serving = {}
        if self.model is not None:
            config = self.model.config
            serving = {
                "model": self.model.name,
                "version": self.model.version,
                "variant": config.variant,
                "engine": config.engine.name,
            }
        text = metrics.exposition(self.ledger, serving, self._restarts, process.rss_mib())
        return Response(200, text, "text/plain; version=0.0.4; charset=utf-8")

    # --- inference

    def _infer(self, name: str, version: str, request: Request, respond: Respond) -> None:
        model = self._find(name, version)
        if isinstance(model, Response):
            counters = self.model.counters if self.model else self.ledger.nobody
            counters.answered(model.status, time.perf_counter_ns() - request.received_ns)
            return respond(model)
        if model.users >= self.limits.max_queue + self.limits.concurrency:
            outcome = infer.Outcome(busy("too many requests are waiting"))
            return respond(self._account(model, request, outcome, 0))
        model.users += 1
        self.in_flight += 1
        if len(request.body) > INLINE_BODY_BYTES or b"content-encoding" in request.headers:
            return self._queue(model, request, respond, None)
        try:
            prepared = self._prepare(model, request)
        except Exception as exc:
            return self._finish(model, request, respond, infer.refusal(exc), 0)
        # A lone small request is cheaper without a thread; with others of this model running, it waits.
        if model.users == 1 and model.run_ms * prepared.samples < self.limits.inline_ms:
            outcome = infer.run(model.name, model.version, model.config, model.session, prepared)
            return self._finish(model, request, respond, outcome, 0)
        return self._queue(model, request, respond, prepared)

    def _prepare(self, model: Model, request: Request) -> infer.Prepared:
        return infer.prepare(model.config, request, self.limits.max_batch, self.limits.max_body_bytes)

    def _queue(
        self, model: Model, request: Request, respond: Respond, prepared: infer.Prepared | None
    ) -> None:
        queued = time.perf_counter_ns()

        def job() -> None:
            waited = time.perf_counter_ns() - queued
            try:
                ready = prepared or self._prepare(model, request)
                outcome = infer.run(model.name, model.version, model.config, model.session, ready)
            except Exception as exc:
                outcome = infer.refusal(exc)
            self._loop.call_soon_threadsafe(self._finish, model, request, respond, outcome, waited)

        model.gate.submit(job)

    def _finish(
        self, model: Model, request: Request, respond: Respond, outcome: infer.Outcome, waited_ns: int
    ) -> None:
        self.in_flight -= 1
        respond(self._account(model, request, outcome, waited_ns))
        model.release_user()

    def _account(self, model: Model, request: Request, outcome: infer.Outcome, waited_ns: int) -> Response:
        counters, status = model.counters, outcome.response.status
        counters.answered(status, time.perf_counter_ns() - request.received_ns)
        if outcome.bug is not None:
            self._complain("an inference", outcome.bug)
        if status == 200:
            counters.last_ms = int(time.time() * 1e3)
            counters.inferences += outcome.samples
            counters.queue.add(waited_ns)
            counters.compute_input.add(outcome.input_ns)
            counters.compute_infer.add(outcome.infer_ns)
            counters.compute_output.add(outcome.output_ns)
            for index in outcome.classes:
                label = model.config.labels[index]
                counters.classes[label] = counters.classes.get(label, 0) + 1
        return outcome.response

    def _complain(self, what: str, exc: BaseException) -> None:
        """Log a bug with its traceback, but not ten thousand times a second."""
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            _log.error("%s failed: %s", what, exc, exc_info=exc)
