"""The least versions of packages without a known hole that a file or a request could use."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version


@dataclass(frozen=True)
class Floor:
    """A package, the least version without the hole, the advisory, and what the hole does."""

    package: str
    least: str
    advisory: str
    harm: str


FLOORS = (
    Floor("torch", "2.6", "CVE-2025-32434", "torch.load runs code even with weights_only"),
    Floor("pyarrow", "14.0.1", "CVE-2023-47248", "reading a Parquet file can run code"),
    Floor("pillow", "10.3", "CVE-2024-28219", "buffer overflow in a colour profile"),
    Floor("h11", "0.16", "CVE-2025-43859", "request smuggling by malformed chunks"),
    Floor("starlette", "0.49.1", "CVE-2025-62727", "a Range header can stop a server"),
    Floor("jinja2", "3.1.6", "CVE-2025-27516", "a template leaves its sandbox"),
    Floor("requests", "2.32.4", "CVE-2024-47081", "passwords of .netrc go to another host"),
    Floor("urllib3", "2.5", "CVE-2025-50181", "redirects are followed although turned off"),
)
"""Advisories of packages that read files or answer requests here."""


def below(floor: Floor) -> str:
    """Return the installed version if it is below the floor, "" if it is not, or not installed."""
    try:
        found = version(floor.package)
    except PackageNotFoundError:
        return ""
    return found if Version(found) < Version(floor.least) else ""
