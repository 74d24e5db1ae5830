"""What `reflow deploy` decides before it asks a server: the time zone; which locks are runs."""

from contextlib import nullcontext

import pytest

from flows.deploy.register import _timezone
from flows.servers import crashed


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
