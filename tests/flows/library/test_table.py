"""The list of `reflow couplings` on terminals of several widths: nothing is cut."""

import pytest
from rich.console import Console

from flows.library.history import Version
from flows.library.places import Place, versions_table

MD5 = "87cc5d1a2b3c4d5e.dir"
PLACES = [Place(name, frozenset({MD5})) for name in ("workspace", "cache", "store")]


def version(coupling, commit="f789d30", experiment=""):
    solver = {"name": "heun", "steps": 18}
    return Version(
        coupling, commit, "2026-11-03", experiment, MD5, 30000, solver, 0.0123, None, 12345678, 4
    )


def printed(found, width):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(versions_table(found, PLACES, width))
    return capture.get().splitlines()


def test_a_version_has_two_lines_on_80_columns_and_one_where_that_fits():
    found = [version("couplings/independent"), version("couplings/rf1", commit="0badc0d")]
    narrow, wide = printed(found, 80), printed(found, 120)
    assert [line.split() for line in narrow[2:]] == [
        ["couplings/independent", "f789d30", "87cc5d1a2b3c", "heun", "18", "30,000", "workspace,"],
        ["2026-11-03", "0.012", "12,345,678", "cache,", "store"],
        ["couplings/rf1", "0badc0d", "87cc5d1a2b3c", "heun", "18", "30,000", "workspace,"],
        ["2026-11-03", "0.012", "12,345,678", "cache,", "store"],
    ]
    assert len(wide) == 3 and wide[2].split() == [
        *("couplings/rf1", "0badc0d", "2026-11-03", "87cc5d1a2b3c", "heun", "18", "0.012"),
        *("30,000", "12,345,678", "workspace,", "cache,", "store"),
    ]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_no_name_is_cut_or_broken_however_long(width):
    name = "couplings/rf1_r2_of_some_longer_name"
    lines = printed([version(name, experiment="seed-1"), version("couplings/[rf1]")], width)
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    assert [n for line in lines for n in line.split() if n.startswith("couplings/")] == [
        name,
        "couplings/[rf1]",
    ]
