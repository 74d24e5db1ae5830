"""The meaning of code: what changes it, what does not, and which modules a module loads."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dag.inputs import _own_files
from flows.project.meaning import Code, meaning
from flows.project.seen import Seen
from tests.conftest import SOURCE

BASE = """
from pydantic import Field
class A(B):
    x: int = Field(default=1, gt=0)
    def f(self, y, *, z=None):
        if y:
            return [y, None]
        return {**self.d, "a": f"{y!r:>{z}}"}
"""
SAME = {
    "comments": ("    def f", "    # says f\n    def f"),
    "formatting": ('return {**self.d, "a"', "return {\n            **self.d, 'a'"),
    "a docstring": ("class A(B):\n", 'class A(B):\n    """About A."""\n'),
    "a docstring of a field": ("gt=0)\n", 'gt=0)\n    """About x."""\n'),
    "a description": ("gt=0)", 'gt=0, description="About " + "x")'),
    "a statement that does nothing": (
        "        if y:\n",
        "        pass\n        ...\n        if y:\n",
    ),
    "types only": (
        "class A",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\nclass A",
    ),
    "types only, by the module": ("class A", "if typing.TYPE_CHECKING:\n    import torch\nclass A"),
}
OTHER = {
    "a number": ("default=1", "default=2"),
    "a number of another type": ("default=1", "default=1.0"),
    "a truth for a number": ("default=1", "default=True"),
    "a bound": ("gt=0", "ge=0"),
    "a name": ("self.d", "self.e"),
    "None left out": ("[y, None]", "[y]"),
    "a default": ("z=None", "z=0"),
    "a positional argument": ("y, *, z", "y, z"),
    "a string that acts": ('"a": f', '"b": f'),
    "a format": ("!r:>", "!s:>"),
    "an order": ("**self.d, ", ""),
    "an annotation": ("x: int", "x: float"),
    "a base": ("A(B)", "A(C)"),
    "an import": ("from pydantic import Field", "from pydantic import Field, conint"),
    "what runs where types are not checked": (
        "class A",
        "if TYPE_CHECKING:\n    import torch\nelse:\n    torch = None\nclass A",
    ),
    "a description that is not a field's": ("[y, None]", '[y, g(description="x")]'),
}


@pytest.mark.parametrize("edit", SAME.values(), ids=SAME)
def test_what_only_people_and_type_checkers_read_is_no_meaning(edit):
    edited = BASE.replace(*edit)
    assert edited != BASE
    assert meaning(ast.parse(edited)) == meaning(ast.parse(BASE))


@pytest.mark.parametrize("edit", OTHER.values(), ids=OTHER)
def test_what_acts_is_meaning(edit):
    edited = BASE.replace(*edit)
    assert edited != BASE
    assert meaning(ast.parse(edited)) != meaning(ast.parse(BASE))


def closure(folder: Path, files: dict[str, str], *modules: str, packages=None) -> set[str]:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    with Seen(folder) as seen:
        return set(Code(packages or {"pkg": folder / "pkg"}, seen, folder).closure(*modules))


FILES = {
    "pkg/__init__.py": "from pkg.room.a import x",
    "pkg/room/__init__.py": '"""A room."""',
    "pkg/busy/__init__.py": "LOADED = 1",
    "pkg/room/a.py": "def f():\n    from pkg.room.late import x\n",
    "pkg/room/late.py": "import pkg.busy.b as c",
    "pkg/busy/b.py": "from ..room import d\nfrom .e import y\nfrom . import g",
    "pkg/room/d.py": "try:\n    import nowhere.at.all\nexcept ImportError:\n    x = 1",
    "pkg/busy/e.py": "x = 1",
    "pkg/busy/g.py": "x = 2",
    "pkg/room/unused.py": "import pkg.room.a",
    "pkg/room/types.py": "if TYPE_CHECKING:\n    import pkg.room.a\nelse:\n    import pkg.busy.e",
}


def test_imports_are_followed_wherever_and_however_they_are_written(tmp_path):
    assert closure(tmp_path, FILES, "pkg.room.a") == {
        "pkg.room.a", "pkg.room.late", "pkg.busy", "pkg.busy.b", "pkg.room.d", "pkg.busy.e",
        "pkg.busy.g",
    }  # fmt: skip
    assert closure(tmp_path, {}, "pkg.room.types") == {"pkg.room.types", "pkg.busy", "pkg.busy.e"}
    assert closure(tmp_path, {}, "pkg.room.none") == set()


def test_users_code_that_imports_the_package_itself_may_reach_all_of_it(tmp_path):
    everything = closure(tmp_path, FILES, *(f"pkg.room.{m}" for m in ("a", "unused", "types")))
    mine = {"mine/__init__.py": "V = 1", "mine/loss.py": "from pkg import x", "by.py": "import pkg"}
    assert closure(tmp_path, mine, "mine.loss") == everything | {"mine", "mine.loss"}
    assert closure(tmp_path, {}, "by") == everything | {"by"}
    assert closure(tmp_path, {"one.py": "from pkg.busy.e import x"}, "one") == {
        "one", "pkg.busy", "pkg.busy.e",
    }  # fmt: skip


def test_a_module_that_imports_itself_in_a_circle_ends(tmp_path):
    files = {"pkg/a.py": "import pkg.b", "pkg/b.py": "from pkg import a", "pkg/__init__.py": ""}
    assert closure(tmp_path, files, "pkg.a") == {"pkg.a", "pkg.b"}


def test_code_that_cannot_be_read_counts_byte_by_byte(tmp_path):
    def hash_of(text: bytes) -> str:
        (tmp_path / "pkg").mkdir(exist_ok=True)
        (tmp_path / "pkg" / "a.py").write_bytes(text)
        with Seen(tmp_path) as seen:
            return Code({"pkg": tmp_path / "pkg"}, seen).closure("pkg.a")["pkg.a"]

    texts = (b"x = (", b"x = ( ", b"x = 1\0", b"\xff\xfe", b"x = " + b"(" * 5000)
    assert len({hash_of(text) for text in texts}) == len(texts)


def test_a_file_replaced_by_one_of_the_same_size_and_age_is_read_again(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("x = 1")
    os.utime(file, (1e9, 1e9))

    def text() -> str:
        with Seen(tmp_path) as seen:
            return seen.text(file, "content", Path.read_text)

    assert text() == "x = 1"
    file.write_text("x = 2")  # within one tick of the clock, as a rule
    os.utime(file, (1e9, 1e9))
    assert text() == "x = 2"


def test_without_its_data_base_or_with_a_damaged_one_everything_is_read(tmp_path):
    file, base = tmp_path / "a.py", tmp_path / ".reflow" / "seen.db"
    file.write_text("x = 1")
    base.parent.mkdir()
    base.write_bytes(b"no data base" * 1000)
    for _ in range(2):
        with Seen(tmp_path) as seen:
            assert seen.text(file, "content", Path.read_text) == "x = 1"
    base.unlink()
    base.mkdir()
    with Seen(tmp_path) as seen:
        assert seen.text(file, "content", Path.read_text) == "x = 1"


def test_a_file_whose_name_is_not_utf_8_is_known_again(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.project.seen.RECENT", -(10**12))  # as if the file were older
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    file.write_text("x")
    for read in (Path.read_text, lambda _: "read again"):
        with Seen(tmp_path) as seen:
            assert seen.text(file, "content", read) == "x"


ELSEWHERE = """
import ast, json, sys, types
from pathlib import Path
seen = types.ModuleType("flows.project.seen")  # it needs pydantic, and is not asked here
seen.Seen = object
sys.modules["flows.project.seen"] = seen
from flows.project.meaning import meaning
files = sorted(Path("fmcore").rglob("*.py"))
texts = [file.read_bytes() for file in files] + [sys.argv[1]]
print(json.dumps([meaning(ast.parse(text)) for text in texts]))
"""
ODD = """
type_of = lambda x, /, *a, k=1, **b: (yield)
u = "e\u0301\U0001fae8" if 0 else 1e999j - 0x1F
async def f(x):
    async with x as (a, *b): return f'{x=}{x!r:>{b}.{a}}' 'z'
match u:
    case {"a": [1, *_], **rest} | None: pass
try: pass
except* ValueError: pass
x: int
(x): int = 1
"""


def pythons() -> list[str]:
    """Return other Pythons that lie beside this one, as pyenv puts them."""
    beside = Path(sys.base_prefix).parent.glob("3.1[1-9]*/bin/python")
    return [str(p) for p in sorted(beside) if not p.is_relative_to(sys.base_prefix)]


@pytest.mark.parametrize(
    "python", pythons() or [pytest.param("", marks=pytest.mark.skip(reason="no other Python here"))]
)
def test_the_meaning_is_the_same_in_every_version_of_python(python):
    def ask(program: str) -> str:
        done = subprocess.run(
            [program, "-c", ELSEWHERE, ODD], cwd=SOURCE, capture_output=True, text=True,
            env={"PYTHONPATH": str(SOURCE)}, check=True,
        )  # fmt: skip
        return done.stdout

    assert ask(python) == ask(sys.executable)


def test_a_file_that_an_own_class_in_a_list_names_is_an_input(tmp_path):
    (tmp_path / "table.npy").write_bytes(b"1")
    own = {"name": "custom", "path": "mine:Own", "settings": {"table": "table.npy"}}
    chosen = {"evaluate": {"solver": {"name": "heun"}, "solvers": [{"name": "ab2"}, own]}}
    with Seen(tmp_path) as seen:
        (found,) = dict(_own_files(tmp_path, seen, "", chosen)).items()
    assert found[0] == "evaluate.solvers.1.settings.table" and found[1]["bytes"] == 1
