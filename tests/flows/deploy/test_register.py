"""What `reflow deploy` decides itself: the time zone, whether a server is there; dead runs."""

import http.server
import threading
from contextlib import nullcontext

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.deploy.register import _server, _timezone
from flows.project import servers
from flows.servers import crashed
from fmcore.settings import ReflowError


@pytest.mark.parametrize(
    ("tz", "place", "expected"),
    [
        (None, "zoneinfo/Europe/Berlin", "Europe/Berlin"),
        (None, "zoneinfo/posix/Asia/Tokyo", "Asia/Tokyo"),
        (":America/New_York", "zoneinfo/Europe/Berlin", "America/New_York"),
        ("no/such", "zoneinfo/Europe/Berlin", "Europe/Berlin"),
        (None, "localtime.copy", "UTC"),
        ("", "zoneinfo/no/such", "UTC"),
    ],
)
def test_a_schedule_has_the_time_zone_of_the_machine(tmp_path, monkeypatch, tz, place, expected):
    monkeypatch.delenv("TZ", raising=False)
    if tz is not None:
        monkeypatch.setenv("TZ", tz)
    (tmp_path / "localtime").symlink_to(tmp_path / place)
    assert _timezone(tmp_path / "localtime") == expected


def test_a_file_that_is_no_lock_of_a_run_is_left_alone(tmp_path, monkeypatch):
    folder = tmp_path / ".reflow" / "runs"
    (folder / "a folder").mkdir(parents=True)
    (folder / ".DS_Store").write_text("")
    monkeypatch.setattr(crashed, "get_client", lambda **_: nullcontext())  # it is asked nothing
    assert crashed.mark_crashed(tmp_path) == []
    assert len([*folder.iterdir()]) == 2


@pytest.mark.parametrize(("status", "there"), [(200, True), (401, True), (404, True), (502, False)])
def test_a_server_that_wants_a_login_is_one(status, there, tmp_path, monkeypatch):
    class Says(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Says) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        try:
            assert servers.speaks(f"{url}/health") is there
            refused = pytest.raises(ReflowError, match="does not answer")
            with temporary_settings({PREFECT_API_URL: url}), nullcontext() if there else refused:
                assert _server(tmp_path) == (url, "")
        finally:
            server.shutdown()
