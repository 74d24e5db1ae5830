"""`reflow doctor` says what is missing, in a broken installation too."""

import sys
from importlib.metadata import PackageNotFoundError, version

from flows.cli import doctor


def test_a_package_that_is_missing_is_bad_and_no_traceback(monkeypatch, tmp_path):
    def known(name: str) -> str:
        if name == "fastapi":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", known)
    assert [c.what for c in doctor._packages() if c.state == "bad"] == ["fastapi"]
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "params.yaml").write_text("{}")
    found = {check.what: check for check in doctor.examine(tmp_path)}
    assert found["device"].state == "bad" and "torch" in found["device"].found
