"""Links to MLflow's pages, also where its address cannot be asked."""

import base64
import http.server
import threading

import pytest

from flows.project import links


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:9", "http://[bad", "http://x:y"])
def test_an_address_that_does_not_answer_is_a_link_without_a_password(address):
    found = links.known(address, "")
    assert list(found) == ["runs"] and "#/experiments" in found["runs"]
    assert "secret" not in found["runs"]


def test_the_name_and_password_in_an_address_log_in():
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"experiment": {"experiment_id": "7"}}')

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.handle_request, daemon=True).start()
    found = links.known(f"http://me:s%40cret@127.0.0.1:{server.server_port}", "")
    server.server_close()
    assert asked == [f"Basic {base64.b64encode(b'me:s@cret').decode()}"]
    place = f"http://127.0.0.1:{server.server_port}/#/experiments/7/runs"
    assert found == {"runs": f"{place}?workflowType=machine_learning"}
