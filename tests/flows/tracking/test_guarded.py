"""The MLflow server of `reflow ui`: a password for each request, no files outside of its folder."""

import asyncio
import base64
import json

import pytest

from flows.tracking.guarded import Guarded

RIGHT = b"Basic " + base64.b64encode(b"admin:secret")
CREATE = "/api/2.0/mlflow/experiments/create"


def ask(tmp_path, path, body=b"", auth=RIGHT, kind="http", cut=False):
    """Return (status, what the application behind the guard read); None if it was not reached."""
    reached, sent = [], []
    parts = [body[: len(body) // 2], body[len(body) // 2 :]] if cut else [body]

    async def app(scope, receive, send):
        message = await receive()
        reached.append(message.get("body"))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    headers = [] if auth is None else [(b"authorization", auth)]
    scope = {"type": kind, "path": path, "headers": headers}
    guarded = Guarded(app, "admin:secret", tmp_path / "artifacts")
    asyncio.run(guarded(scope, receive, send))
    return sent[0].get("status", sent[0]["type"]), reached[0] if reached else None


@pytest.mark.parametrize("auth", [None, b"", b"Basic ", RIGHT[:-1], RIGHT + b"=", b"Bearer x"])
def test_without_the_password_only_health_is_answered(tmp_path, auth):
    for path in ("/", "/version", CREATE, "/get-artifact", "/health/../version"):
        assert ask(tmp_path, path, auth=auth) == (401, None)
    assert ask(tmp_path, "/health", auth=auth)[0] == 200
    assert ask(tmp_path, "/", auth=auth, kind="websocket") == ("websocket.close", None)
    assert ask(tmp_path, "/")[0] == 200


@pytest.mark.parametrize("name", ["artifact_location", "artifactLocation"])
@pytest.mark.parametrize("api", ["/api", "/ajax-api"])
def test_an_experiment_keeps_its_files_in_the_folder(tmp_path, name, api):
    path = f"{api}/2.0/mlflow/experiments/create"
    inside = tmp_path / "artifacts" / "a b"
    for place in ("", None, str(inside), inside.as_uri(), (tmp_path / "artifacts").as_uri()):
        body = json.dumps({"name": "x", name: place}).encode()
        assert ask(tmp_path, path, body, cut=True) == (200, body)
    outside = [
        "file:///root", "/root", "root", "file:root", f"{inside.as_uri()}/../../x",
        f"{inside}/%2e%2e/../../x", f"{inside.as_uri()}/%2e%2e/%2e%2e/x", "s3://bucket",
        f"file://host{inside}", "dbfs:/x", f"{tmp_path}/artifacts_of_another", 5,
    ]  # fmt: skip
    for place in outside:
        body = json.dumps({"name": "x", name: place}).encode()
        assert ask(tmp_path, f"{path}/", body) == (403, None), place
    for body in (b"[]", b"{", b'{"name": "x"', b"x" * 2_000_000):
        assert ask(tmp_path, path, body) == (403, None)


def test_a_link_in_the_folder_does_not_lead_out(tmp_path):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "link").symlink_to("/")
    body = json.dumps({"artifact_location": f"{tmp_path}/artifacts/link/root"}).encode()
    assert ask(tmp_path, CREATE, body) == (403, None)
