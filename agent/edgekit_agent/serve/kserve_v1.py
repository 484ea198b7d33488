"""The protocol "kserve": KServe's (v1) data plane. Where its paths are TensorFlow Serving's too, one answer
serves both kinds of client; see docs/serving.md."""

from __future__ import annotations

from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve import tfs_http
from edgekit_agent.serve.core import Core
from edgekit_agent.serve.http_tools import Respond
from edgekit_agent.serve.message import Request, ok


class Protocol:
    """See router.Protocol."""

    name = "kserve"

    def __init__(self, core: Core) -> None:
        self._core = core

    def handle(self, parts: list[str], request: Request, respond: Respond) -> bool:
        match parts:
            case ["v1", "models"] | ["v1", "models", ""]:
                if http.allowed(b"GET", request, respond):
                    respond(ok({"models": [*self._core.models]}))
                return True
            case ["v1", "models", last]:
                to = tfs_http.target([last])
                if to is not None and to.what in ("", "predict"):
                    self._model(to, request, respond)
                    return True
        return False

    def _model(self, to: tfs_http.Target, request: Request, respond: Respond) -> None:
        if to.what == "predict":
            if http.allowed(b"POST", request, respond):
                tfs_http.run(self._core, to, tfs_http.Predict(request, to), request, respond)
        elif http.allowed(b"GET", request, respond):
            respond(tfs_http.about(self._core, to))
