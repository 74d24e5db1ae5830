"""Debian's Chromium, logged in to the servers of a project, and pictures of what it shows."""

import shutil
from base64 import b64encode
from contextlib import contextmanager

import pytest

from tests.conftest import SOURCE

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needed = pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")


@contextmanager
def opened(ui):
    """Open a tab that knows the password of both servers of `reflow ui`."""
    from playwright.sync_api import sync_playwright

    password = (ui.chain.root / ".reflow/prefect/auth").read_text().strip()
    name, _, secret = password.partition(":")
    coded = b64encode(password.encode()).decode()
    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        login = {"username": name, "password": secret, "origin": ui.urls["mlflow"]}
        window = browser.new_context(
            viewport={"width": 1280, "height": 900}, http_credentials=login
        )
        tab = window.new_page()
        tab.set_default_timeout(60_000)
        tab.add_init_script(f"localStorage.setItem('prefect-password', '{coded}')")
        yield tab
        browser.close()


def shot(tab, name):
    folder = SOURCE / ".reflow" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=folder / f"{name}.png")
