"""The application: the addresses of MLflow's scoring server, limits, and errors of one line."""

from __future__ import annotations

import asyncio
import hmac
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from rltrack.agents.policy_inputs import BadInput
from rltrack.serving import requests
from rltrack.serving.following import Follower
from rltrack.serving.metrics import ServerMetrics

VERSION_HEADER = "x-model-version"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take.

    Attributes:
        body_bytes: Size of a body.
        batch: Observations in a request.
        seconds: From the first byte to the answer.
    """

    body_bytes: int = 10_000_000
    batch: int = 1024
    seconds: float = 10.0


class Refused(Exception):
    """A request that gets no action.

    Attributes:
        status: HTTP's code.
        kind: For the metrics, and as the error's code.
    """

    def __init__(self, status: int, kind: str, text: str) -> None:
        super().__init__(text)
        self.status, self.kind = status, kind


def make_application(follower: Follower, limits: Limits, token: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        follower: Whose version answers.
        limits: What one request may take.
        token: What ``Authorization: Bearer …`` must hold for actions and metrics; None for no check.
    """
    metrics = ServerMetrics(follower)
    # One thread: SB3's policies keep distributions between calls, so that two calls at once would mix them up
    worker = ThreadPoolExecutor(1, "rltrack-policy")
    wanted = None if token is None else f"Bearer {token}".encode()

    def check_token(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if wanted is not None and not hmac.compare_digest(given, wanted):
            raise Refused(401, "unauthorized", "This server needs a token. Send it as Authorization: Bearer TOKEN.")

    async def ask(request: Request) -> bytes:
        check_token(request)
        _check_content_type(request)
        body = await _read_body(request, limits.body_bytes)

        def work() -> bytes:
            served = follower.served  # once: a replacement in between changes nothing
            return requests.answer(served.policy, requests.read_request(body), served.version, limits.batch)

        return await asyncio.get_running_loop().run_in_executor(worker, work)

    async def invocations(request: Request) -> Response:
        begun = time.perf_counter()
        kind: str | None = None
        try:
            async with asyncio.timeout(limits.seconds):
                response = Response(await ask(request), media_type=_JSON)
        except Exception as error:
            refused = _as_refused(error, limits)
            kind, response = refused.kind, _refusal(refused)
        response.headers[VERSION_HEADER] = str(follower.served.version)
        metrics.count(response.status_code, kind, time.perf_counter() - begun)
        return response

    async def ping(request: Request) -> Response:
        return Response(b"\n", media_type=_JSON)

    async def mlflow_version(request: Request) -> Response:
        return Response(version("mlflow-skinny"), media_type="text/plain")

    async def show_metrics(request: Request) -> Response:
        try:
            check_token(request)
        except Refused as refused:
            return _refusal(refused)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    application.add_exception_handler(HTTPException, _not_served)
    application.add_exception_handler(Exception, _not_served)
    routes: dict[str, tuple[Callable[[Request], Awaitable[Response]], str]] = {
        "/invocations": (invocations, "POST"),
        "/ping": (ping, "GET"),
        "/health": (ping, "GET"),
        "/version": (mlflow_version, "GET"),
        "/metrics": (show_metrics, "GET"),
    }
    for path, (function, method) in routes.items():
        application.add_route(path, function, methods=[method])
    return application


def _check_content_type(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given != _JSON:
        shown = given[:60] or "none"
        raise Refused(415, "media_type", f"The content type is {shown}. Send JSON with Content-Type: {_JSON}.")


async def _read_body(request: Request, limit: int) -> bytes:
    too_large = Refused(413, "too_large", f"The body is larger than {limit} bytes. Send fewer observations at once.")
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def _as_refused(error: Exception, limits: Limits) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, BadInput):
        return Refused(400, "bad_input", str(error))
    if isinstance(error, TimeoutError):
        return Refused(503, "timeout", f"No answer within {limits.seconds:g} s. Send fewer observations, or retry.")
    if isinstance(error, ClientDisconnect):
        return Refused(400, "disconnected", "The request was not sent completely.")
    print("".join(traceback.format_exception(error)), file=sys.stderr)  # for the log; nothing of it for the caller
    return Refused(500, "internal", "The server could not answer; its log says why.")


def _refusal(refused: Refused) -> Response:
    headers = {"www-authenticate": "Bearer"} if refused.status == 401 else None
    body = orjson.dumps({"error_code": refused.kind.upper(), "message": " ".join(str(refused).split())})
    return Response(body, refused.status, headers, _JSON)


def _not_served(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return _refusal(Refused(500, "internal", "The server could not answer; its log says why."))
    known = "POST /invocations, GET /ping, /health, /version, /metrics"
    return _refusal(Refused(error.status_code, "not_served", f"There is no such address or method. Known: {known}."))
