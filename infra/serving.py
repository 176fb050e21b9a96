"""Serve whoever holds an alias, through MLflow's own scoring server; a new holder takes over between two requests.

Every version gets a scoring application of MLflow's of its own. This application hands each request to the one in
force; requests that came before a change are answered to their end by the version they came to.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.errors import PromotionError, ServerError
from infra.files import draft_folder
from infra.model_registry import ModelRegistry

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

HOST = "127.0.0.1"
VERSION_HEADER = "x-clearwell-model"
LARGEST_REQUEST = 64 * 2**20  # bytes
_log = logging.getLogger("clearwell.serving")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Served:
    """A version as it answers requests."""

    version: str
    app: FastAPI


class ServedAlias:
    """An ASGI application that answers as the holder of an alias.

    Parameters
    ----------
    registry : ModelRegistry
    name, alias : str
    every : float
        Seconds between looks at the alias.

    Raises
    ------
    PromotionError
        If there is no such model, or nobody holds the alias.
    StoreError
        If the holder's files are not those that were registered.
    """

    def __init__(self, registry: ModelRegistry, name: str, alias: str, every: float = 2.0) -> None:
        self.registry, self.name, self.alias, self.every = registry, name, alias, every
        registry.require_model(name)
        holder = registry.holder(name, alias)
        if holder is None:
            raise PromotionError(
                f"Nobody holds the alias {alias!r} of {name!r}. Promote a version: `clearwell promote {name} VERSION`."
            )
        self.current: Served | None = self.load(holder)
        self.refused: str | None = None  # a holder that could not be loaded; tried again when it changes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """One request, or the server's start and end."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        served = self.current
        if served is None:
            await _answer(send, 503, f"The model {self.name!r} has no {self.alias} at present: the last was retired.")
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        body = await _body(receive) if declared.isdigit() and int(declared) <= LARGEST_REQUEST else None
        if body is None:
            await _answer(send, 413, f"A request may have {LARGEST_REQUEST} bytes at most, this one has more.")
            return
        await served.app(scope, _once(body, receive), send)

    def load(self, version: str) -> Served:
        """A version, fetched, compared with what was registered, and ready to answer."""
        import mlflow.pyfunc
        from mlflow.pyfunc import scoring_server

        with draft_folder(self.registry.settings.state) as draft:
            model = mlflow.pyfunc.load_model(str(self.registry.fetch(self.name, version, draft)))
            example = model.input_example
        if example is not None:
            model.predict(example)
        app = scoring_server.init(model)
        signature = str(model.metadata.get_input_schema())
        app.middleware("http")(_explaining(f"{self.name}/{version}", signature))
        return Served(version, app)

    def look(self) -> None:
        """Take over the alias's holder if it changed. What can not be reached or loaded leaves everything as it is."""
        try:
            holder = self.registry.holder(self.name, self.alias)
            if holder is None:
                self._stop_if_retired()
            elif (self.current is None or holder != self.current.version) and holder != self.refused:
                self._take_over(holder)
        except Exception as error:  # the registry is away; the present version goes on answering
            _log.warning("The registry does not answer (%s: %s)", type(error).__name__, error)

    def _take_over(self, holder: str) -> None:
        try:
            served = self.load(holder)
        except Exception as error:
            self.refused = holder
            _log.error("Version %s of %s is not served: %s", holder, self.name, error)
            return
        self.current, self.refused = served, None
        _log.warning("%s version %s is served from now on", self.name, holder)

    def _stop_if_retired(self) -> None:
        if self.current is not None and self.current.version in self.registry.moves.retired(self.name):
            _log.warning("%s version %s was retired; nothing is served", self.name, self.current.version)
            self.current = None

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watching = asyncio.create_task(self._watch())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watching.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.every)
            await asyncio.to_thread(self.look)


def serve(
    registry: ModelRegistry, name: str, alias: str, port: int, every: float, ready: Callable[[str], None]
) -> None:
    """Serve the holder of an alias on loopback until interrupted; `ready` is told the address.

    Raises
    ------
    ServerError
        If the port is taken.
    """
    import uvicorn

    with _listening(port) as listener:
        app = ServedAlias(registry, name, alias, every)
        listener.listen()  # who calls before uvicorn takes over waits, and is not refused
        ready(f"http://{HOST}:{listener.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=30)
        uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ServerError(
            f"Port {port} of {HOST} can not be listened on ({error}). Choose another with `--port`; 0 takes a free one."
        ) from None
    try:
        yield listener
    finally:
        listener.close()


def _explaining(model: str, signature: str) -> Callable[[Request, Any], Awaitable[Response]]:
    """Middleware: which version answered; and what it expects, when a request can not be answered."""

    async def explain(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Response:
        if request.url.path == "/invocations" and request.method == "POST" and "content-type" not in request.headers:
            return _refusal(415, "The request names no Content-Type; application/json is usual.", model, signature)
        response = await call_next(request)
        response.headers[VERSION_HEADER] = model
        if 400 <= response.status_code < 500 and request.url.path == "/invocations":
            said = b"".join([part async for part in response.body_iterator])
            return _refusal(response.status_code, _message(said), model, signature)
        return response

    return explain


async def _body(receive: Receive) -> bytes | None:
    """What a request carries, however it is sent; None for more than is allowed."""
    parts, size, more = [], 0, True
    while more and size <= LARGEST_REQUEST:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message["type"] == "http.request" and message.get("more_body", False)
    return b"".join(parts) if size <= LARGEST_REQUEST else None


def _once(body: bytes, receive: Receive) -> Receive:
    """A request's body in one message, then whatever the server says."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _message(said: bytes) -> str:
    """What MLflow says went wrong, without its traceback and without repeating the whole request."""
    text = said.decode(errors="replace")
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["message"])
    _, _, cause = text.rpartition("\nError: ")
    return cause[:2000]


def _refusal(status: int, message: str, model: str, signature: str = "") -> Response:
    from fastapi.responses import JSONResponse

    content = {"error_code": "BAD_REQUEST", "message": message}
    if signature:
        content |= {"expected": signature, "message": f"{message} The model expects {signature}."}
    return JSONResponse(content, status, headers={VERSION_HEADER: model})


async def _answer(send: Send, status: int, message: str) -> None:
    code = "TEMPORARILY_UNAVAILABLE" if status == 503 else "BAD_REQUEST"
    body = json.dumps({"error_code": code, "message": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
