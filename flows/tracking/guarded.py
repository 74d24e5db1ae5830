"""The MLflow server of `reflow ui`: it asks for the project's password, as Prefect does.

`python -m flows.tracking.guarded ROOT PORT`. MLflow itself asks nobody for a name: any user of the
machine could delete the records, or have the server write files as its owner.
"""

import base64
import json
import os
import secrets
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from flows.project import environment, servers
from flows.tracking import data_base, moved

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
OPEN = "/health"
CREATE = "/mlflow/experiments/create"
LARGEST = 1_000_000
"""Largest body of a request for an experiment, in bytes."""


class Guarded:
    """An ASGI application behind a name and a password, whose files stay in one folder.

    Each request but the health check needs HTTP's basic authentication. An experiment whose
    artifacts would be outside of `artifacts` is refused: whoever may make runs could otherwise
    write any file of the user through the server.
    """

    def __init__(self, app: App, auth: str, artifacts: Path) -> None:
        self.app, self.artifacts = app, artifacts.resolve()
        self._expected = b"Basic " + base64.b64encode(auth.encode())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer 401 without the password, 403 to a foreign place, else as the application does."""
        if scope["type"] == "lifespan" or scope.get("path") == OPEN:
            return await self.app(scope, receive, send)
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not secrets.compare_digest(given, self._expected):
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            said = "the name and password are in .reflow/prefect/auth of the project"
            return await _refuse(send, 401, said)
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith(CREATE):
            body = await _read(receive)
            if body is None or not self._inside(body):
                said = f"artifact_location: leave it out, or name a folder in {self.artifacts}"
                return await _refuse(send, 403, said)
            receive = _again(body, receive)
        await self.app(scope, receive, send)

    def _inside(self, body: bytes) -> bool:
        """Say whether the experiment that a request describes keeps its artifacts in our folder."""
        try:
            asked = json.loads(body or b"{}")
        except ValueError:
            return False
        if not isinstance(asked, dict):
            return False
        names = ("artifact_location", "artifactLocation")  # MLflow reads both spellings
        return all(self._ours(asked.get(name)) for name in names)

    def _ours(self, place: object) -> bool:
        if place in ("", None):
            return True
        parts = urlparse(str(place))
        if parts.scheme not in ("", "file") or parts.netloc or parts.query or parts.fragment:
            return False
        path = Path(unquote(parts.path))
        return path.is_absolute() and path.resolve().is_relative_to(self.artifacts)


async def _refuse(send: Send, status: int, said: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="MLflow of this project"'))
    code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}[status]
    body = json.dumps({"error_code": code, "message": said}).encode()
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive) -> bytes | None:
    """Return the body of a request; None if it is too long or the client went away."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > LARGEST:
            return None
    return body


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read already, then what follows."""
    waiting = [body]

    async def first() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return first


def run(root: Path, port: int) -> None:
    """Serve the data base of the project until this process is told to end."""
    artifacts = environment.local_path(root, "mlflow", "artifacts")
    os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"] = f"{HOST}:{port},localhost:{port}"
    origins = f"http://{HOST}:{port},http://localhost:{port}"
    os.environ["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] = origins
    import uvicorn  # before mlflow.server, which checks the host of requests only if it is there
    from mlflow.server.constants import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR
    from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    store, place = os.environ["MLFLOW_TRACKING_URI"], artifacts.as_uri()
    # Runs store the paths of their artifacts: these can be read with the server and without it.
    os.environ |= {BACKEND_STORE_URI_ENV_VAR: store, ARTIFACT_ROOT_ENV_VAR: place}
    if home := moved.own_root(store):
        data_base.create(home)
    initialize_backend_stores(store, store, place)
    guarded = Guarded(app, servers.auth_string(root), artifacts)
    uvicorn.run(guarded, host=HOST, port=port, log_level="warning")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
