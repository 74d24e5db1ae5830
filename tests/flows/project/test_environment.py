"""The environment of the tools: loopback goes past proxies; the password stays with its server."""

import errno
import os
import subprocess
import sys
import urllib.request

import pytest

from flows.cli.doctor import _git
from flows.compare.chains import commit_of
from flows.project import environment, git, servers
from fmcore.settings import ReflowError
from tests.conftest import SOURCE

ADDED = "127.0.0.1,localhost,::1"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {}),
        ({"NO_PROXY": "a.b"}, {"NO_PROXY": "a.b"}),
        ({"HTTP_PROXY": ""}, {"HTTP_PROXY": ""}),
        ({"HTTP_PROXY": "p"}, {"HTTP_PROXY": "p", "NO_PROXY": ADDED, "no_proxy": ADDED}),
        (
            {"all_proxy": "p", "NO_PROXY": "a.b, localhost"},
            {
                "all_proxy": "p",
                "NO_PROXY": "a.b,localhost,127.0.0.1,::1",
                "no_proxy": "a.b,localhost,127.0.0.1,::1",
            },
        ),
        (
            {"https_proxy": "p", "no_proxy": "*"},
            {"https_proxy": "p", "no_proxy": "*"},
        ),
        (
            {"https_proxy": "p", "no_proxy": "x", "NO_PROXY": "y"},
            {"https_proxy": "p", "no_proxy": f"x,{ADDED}", "NO_PROXY": f"y,{ADDED}"},
        ),
    ],
)
def test_loopback_goes_past_a_proxy_and_what_the_user_set_stays(given, wanted):
    environment.past_proxies(given)
    assert given == wanted
    environment.past_proxies(given)
    assert given == wanted


def test_the_clients_of_prefect_and_mlflow_heed_it(tmp_path, monkeypatch):
    for name in [*environment.proxies(os.environ), "NO_PROXY", "no_proxy"]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_HOME", "DVC_SITE_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    environment.configure(tmp_path)
    import requests

    for host in ("127.0.0.1:4200", "localhost:4200"):
        assert urllib.request.proxy_bypass(host)
        assert not requests.utils.get_environ_proxies(f"http://{host}/api")
    assert requests.utils.get_environ_proxies("http://pypi.org/simple")


def test_the_password_goes_to_the_projects_own_server_alone(tmp_path):
    assert servers.mlflow_login(tmp_path, "http://127.0.0.1:5000") == {}
    servers.announce(tmp_path, "", "http://127.0.0.1:5000")
    login = servers.mlflow_login(tmp_path, "http://127.0.0.1:5000/")
    name, password = (login[key] for key in servers.MLFLOW_LOGIN)
    assert f"{name}:{password}" == servers.auth_string(tmp_path)
    assert servers.auth_file(tmp_path).stat().st_mode & 0o077 == 0
    for other in ("http://127.0.0.1:5001", "https://mlflow.example.com", "sqlite:///x"):
        assert servers.mlflow_login(tmp_path, other) == {}


def test_a_copied_project_does_not_take_the_originals_servers_for_its_own(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    servers.announce(first, "", "http://127.0.0.1:5000")
    (second / ".reflow").mkdir(parents=True)
    (second / ".reflow" / "servers.json").write_text(
        (first / ".reflow" / "servers.json").read_text()
    )
    assert servers.mlflow_login(first, "http://127.0.0.1:5000")
    assert servers.mlflow_login(second, "http://127.0.0.1:5000") == {}
    assert servers.living(second) is None


def test_a_project_with_code_of_its_own_is_run_by_that_code_alone(tmp_path):
    environment.check_own_code(tmp_path)  # an installed reflow, and a project without code
    environment.check_own_code(SOURCE)
    link = tmp_path / "link"
    link.symlink_to(SOURCE)
    environment.check_own_code(link)
    (tmp_path / "flows").mkdir()  # a folder of the user's own that has this name
    environment.check_own_code(tmp_path)
    for part in ("flows/cli/main.py", "fmcore/settings.py"):
        other = tmp_path / part.split("/")[0] / "of a clone"
        (other / part).parent.mkdir(parents=True)
        (other / part).write_text("")
        with pytest.raises(ReflowError, match=r"but .* is running; activate") as error:
            environment.check_own_code(other)
        assert f"export PYTHONPATH='{other}'" in str(error.value)


def test_without_git_the_line_says_how_to_mend_it(tmp_path):
    with pytest.raises(ReflowError, match="run `git init` in the project's folder") as error:
        git.git(tmp_path, "status")
    assert "\n" not in str(error.value)


def test_of_what_git_says_the_reason_is_told(tmp_path):
    git.git(tmp_path, "init", "-q")
    with pytest.raises(ReflowError, match="git rev-parse: ambiguous argument 'HEAD': unknown rev"):
        git.git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path) == "none"


def test_a_repository_of_somebody_else_is_told_with_gits_own_advice(tmp_path, monkeypatch):
    git.git(tmp_path, "init", "-q")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    check = _git(tmp_path)
    assert check.state == "warn" and "dubious ownership" in check.found
    assert "git config --global --add safe.directory" in check.found
    monkeypatch.setenv("PATH", "")
    assert "not installed" in _git(tmp_path).found


@pytest.mark.parametrize(
    ("said", "short"),
    [
        ("HTTPConnectionPool(host='x', port=9): Max retries exceeded", "no server answers there"),
        ("[Errno 111] Connection refused", "no server answers there"),
        ("Max retries exceeded (Caused by ReadTimeoutError(...))", "the server does not answer in"),
        ("a reason\nand more", "a reason"),
        ("", "OSError"),
        ("x" * 500, "x" * 100),
    ],
)
def test_a_dead_server_is_a_few_words(said, short):
    assert servers.reason(OSError(said)).startswith(short)
    assert len(servers.reason(OSError(said))) <= 100


def test_a_file_system_without_links_has_one_password_too(tmp_path, monkeypatch):
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.delenv(servers.PREFECT_AUTH, raising=False)
    monkeypatch.setattr(os, "link", link)
    first = servers.auth_string(tmp_path)
    assert first.startswith("admin:") and servers.auth_string(tmp_path) == first
    file = servers.auth_file(tmp_path)
    assert file.stat().st_mode & 0o777 == 0o600 and [*file.parent.iterdir()] == [file]


WORDS = (["settings"], ["settings", "train.lr"], ["doctor"])


@pytest.mark.parametrize(
    "words", [["plan"], *(pytest.param(w, marks=pytest.mark.long) for w in WORDS)]
)
def test_an_ascii_terminal_shows_every_command(project, words):
    env = {**project.env(), "PYTHONIOENCODING": "ascii", "LC_ALL": "POSIX"}
    command = [sys.executable, "-m", "flows.cli", *words]
    done = subprocess.run(
        command, cwd=project.root, env=env, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr and (done.stdout + done.stderr).isascii()
