"""The protocol "oip": Open Inference Protocol v2 over HTTP, with Triton's paths and status codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit_agent.serve import documents, oip, raw, values
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve.core import Core, NotServed, Prepared, prepare
from edgekit_agent.serve.http_tools import Respond
from edgekit_agent.serve.json_templates import JsonTemplate
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import BINARY, JSON, Request, Response, error, ok
from edgekit_agent.serve.model import Model
from edgekit_agent.serve.shared_memory import Access, Regions
from edgekit_agent.serve.templates import Template, Templates

_PLAIN = ("", JSON, BINARY)
_ABOUT = ("", "ready", "config", "stats")


class Protocol:
    """See router.Protocol."""

    name = "oip"

    def __init__(self, core: Core) -> None:
        self._core = core
        self._templates = Templates()

    def handle(self, parts: list[str], request: Request, respond: Respond) -> bool:
        if parts[0] != "v2":
            return False
        match parts[1:]:
            case ["models", name, "infer"]:
                self._infer(name, "", request, respond)
            case ["models", name, "versions", version, "infer"]:
                self._infer(name, version, request, respond)
            case ["repository", "index"]:
                if http.allowed(b"POST", request, respond):
                    respond(self._index(request))
            case rest:
                page = self._page(rest)
                if page is None:
                    return False
                if http.allowed(b"GET", request, respond):
                    respond(page())
        return True

    def _infer(self, name: str, version: str, request: Request, respond: Respond) -> None:
        if not http.allowed(b"POST", request, respond):
            return
        if raw.is_raw(request, self._core.models.get(name)):
            self._core.infer(
                name, version, raw.Codec(request), respond,
                received_ns=request.received_ns, heavy=raw.heavy(request),
            )  # fmt: skip
        else:
            self._core.infer(
                name, version, Codec(request, self._core.regions, self._templates), respond,
                received_ns=request.received_ns, heavy=heavy(request),
            )  # fmt: skip
            if request.memo is not None and _is_plain(request):
                request.memo.again = partial(self._infer_again, name, version)

    def _infer_again(self, name: str, version: str, request: Request, respond: Respond) -> bool:
        """`_infer` for a head that `_is_plain`: only the body is looked at."""
        if not request.body.startswith(b"{"):
            return False
        codec = Codec(request, self._core.regions, self._templates)
        self._core.infer(name, version, codec, respond, received_ns=request.received_ns)
        return True

    def _page(self, parts: list[str]) -> Callable[[], Response] | None:
        """What a GET of this path gives; None when there is no such path."""
        match parts:
            case []:
                return lambda: ok(documents.server(self._core.version))
            case ["health", "live"]:
                return lambda: ok({"live": True})
            case ["health", "ready"]:
                return lambda: ok({"ready": True}) if self._core.ready else error(503, self._core.not_ready)
            case ["models", "stats"]:
                return self._all_statistics
            case ["models", name, *rest]:
                version = ""
                if rest[:1] == ["versions"] and len(rest) > 1:
                    version, rest = rest[1], rest[2:]
                what = "/".join(rest)
                if what in _ABOUT and rest != [""]:
                    return lambda: self._about(what, lambda: self._core.find(name, version))
        return None

    def _all_statistics(self) -> Response:
        try:
            return ok(documents.statistics(model.counters for model in self._core.served()))
        except NotServed as exc:
            return http.refusal(exc.http_status, exc.message)

    def _about(self, what: str, find: Callable[[], Model]) -> Response:
        try:
            model = find()
        except NotServed as exc:
            return http.refusal(exc.http_status, exc.message)
        if what == "ready":
            if not self._core.ready:
                return http.refusal(503, self._core.not_ready)
            return ok({"name": model.name, "ready": True})
        if what == "stats":
            return ok(documents.statistics([model.counters]))
        if what == "config":
            most = self._core.limits.max_batch
            return ok(documents.configuration(model.name, model.version, model.config, most))
        return ok(documents.metadata(model.name, model.version, model.config))

    def _index(self, request: Request) -> Response:
        """What is served, and what was since the serving process started."""
        try:
            document = http.json_object(http.small(request)) if request.body else {}
        except InputError as exc:
            return http.refusal(exc.http_status, str(exc))
        served = [(model.name, model.version) for model in self._core.models.values()]
        before = [(counters.name, counters.version) for counters in self._core.ledger if counters.name]
        return ok(documents.index(served, before, ready=document.get("ready") is True))


class Codec:
    """One infer request. See infer.Codec."""

    __slots__ = ("_regions", "_request", "_templates")

    def __init__(self, request: Request, regions: Regions, templates: Templates) -> None:
        self._request = request
        self._regions = regions
        self._templates = templates

    def decode(self, model: Model, limits: Limits) -> Prepared:
        request = self._request
        size = json_size(request.headers.get(b"inference-header-content-length"))
        body = http.buffer(request, limits.max_body_bytes)
        whole = self._templates.whole if size is None and not heavy(request) else None
        template = self._templates.find(body, size) if size is not None else None
        if template is not None:
            return template.prepare(model, body, limits, request.received_ns)
        known = whole.find(body) if whole is not None else None
        if known is not None:
            parsed = known[0].request
        else:
            memory = Access(self._regions, request.peer, limits.max_body_bytes)
            parsed = oip.decode(body, size, memory)
        if parsed.wanted is not None:
            oip.check_wanted(parsed, model.config.outputs)
        if known is not None:
            prepared = prepare(model, {known[0].name: known[1]}, limits, known[0])
        else:
            prepared = prepare(model, parsed.inputs, limits, parsed)
            if size is not None:
                self._templates.learn(body, size, parsed)
            elif whole is not None:
                whole.learn(body, parsed)
        parsed.hurry(prepared, request.received_ns)
        return prepared

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Response:
        note, config = prepared.note, model.config
        if isinstance(note, Template) and note.binary:
            return note.encode(model, outputs)
        with values.Blame(prepared.inputs):
            if isinstance(note, Template | JsonTemplate):
                answer = note.encode(model, outputs)
            else:
                answer = oip.encode(model.name, model.version, note, config.outputs, outputs, config.labels)
        return http.packed(self._request, answer)

    def refuse(self, status: int, text: str) -> Response:
        return http.refusal(status, text)


def _is_plain(request: Request) -> bool:
    """Whether a head says: JSON and perhaps binary tensors, which are decoded at once."""
    return not heavy(request) and raw.media_type(request) in _PLAIN


def heavy(request: Request) -> bool:
    """Whether decoding is worth a thread: binary tensors are taken as they lie, so only the JSON counts."""
    if len(request.body) <= http.INLINE_BODY_BYTES or b"content-encoding" in request.headers:
        return http.heavy(request)
    size = request.headers.get(b"inference-header-content-length", b"")
    return not size.isdigit() or len(size) > 12 or int(size) > http.INLINE_BODY_BYTES


def json_size(value: bytes | None) -> int | None:
    """Value of Inference-Header-Content-Length. Raises InputError."""
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise InputError("Inference-Header-Content-Length must be a number of bytes")
    return int(value)
