"""The documentation site has all pages and no dead link; the notebooks run."""

import html.parser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from ruamel.yaml import YAML

from tests.conftest import SOURCE
from tests.real_chain import Chain

NOTEBOOKS = SOURCE / "docs" / "notebooks"
NAV = YAML(typ="safe").load(SOURCE / "scripts/mkdocs.yml")["nav"]
NOT_IN_NAV = ("decisions/",)
"""Folders of docs/ whose pages are only linked from others."""


def build(root, out):
    """Build the site of a checkout as `make docs` does, into a folder of the test's."""
    (words,) = re.findall(r"mkdocs (build .*)", (SOURCE / "Makefile").read_text())
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", *shlex.split(words), "-d", str(out)]
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    done = build(SOURCE, out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.fixture
def small(tmp_path):
    """A checkout of three short pages, with the settings and the hook of the real site."""
    root = tmp_path / "small"
    shutil.copytree(SOURCE / "scripts", root / "scripts")
    (root / "scripts/mkdocs.yml").rename(root / "scripts/all.yml")
    nav = "[index.md, commands.md, api.md, one.md, how-to/two.md]"
    own = f"INHERIT: all.yml\nplugins: []\ntheme: mkdocs\nnav: {nav}\n"
    (root / "scripts/mkdocs.yml").write_text(own)
    (root / "docs/how-to").mkdir(parents=True)
    (root / "README.md").write_text("# Small\n\n[one](docs/one.md), [part](docs/one.md#part)\n")
    (root / "docs/one.md").write_text("# One\n\n## Part\n\n[two](how-to/two.md)\n")
    (root / "docs/how-to/two.md").write_text("# Two\n\n[part](../one.md#part)\n")
    return root


def test_a_sound_site_is_built(small, tmp_path):
    done = build(small, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr and (tmp_path / "out/how-to/two.html").is_file()


@pytest.mark.parametrize(
    ("page", "planted", "said"),
    [
        ("docs/how-to/two.md", "[words](three.md)", "three.md"),
        ("docs/one.md", "[words](how-to/two.md#planted)", "#planted"),
        ("docs/how-to/three.md", "# A page that nav lacks", "how-to/three.md"),
    ],
)
def test_a_planted_fault_stops_the_build(small, tmp_path, page, planted, said):
    with (small / page).open("a") as file:
        file.write(f"\n{planted}\n")
    done = build(small, tmp_path / "out")
    assert done.returncode != 0
    assert done.stderr.count("WARNING") == 1
    assert said in done.stderr.split("WARNING")[1]


def pages(entry):
    """Yield the pages of an entry of `nav`."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from pages(part)


def test_the_navigation_has_every_page_once_and_no_other():
    made = {"index.md", "commands.md", "api.md"}  # by scripts/site_pages.py
    docs = SOURCE / "docs"
    files = [file for kind in ("md", "ipynb") for file in docs.rglob(f"*.{kind}")]
    written = {file.relative_to(docs).as_posix() for file in files}
    assert sorted(pages(NAV)) == sorted(
        made | {name for name in written if not name.startswith(NOT_IN_NAV)}
    )


class Page(html.parser.HTMLParser):
    """The links of a page and what they can lead to."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.links += [found[key] for key in ("href", "src") if found.get(key)]
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}


def test_every_link_of_the_site_leads_somewhere(site):
    pages = {file.resolve(): Page(file) for file in site.rglob("*.html")}
    assert len(pages) > 40
    for file, page in pages.items():
        for link in page.links:
            path, anchor = urldefrag(link)
            if ":" in path or path.startswith("//") or file.name == "404.html":
                continue
            target = (file.parent / unquote(path)).resolve() if path else file
            assert target.exists(), f"{file.relative_to(site)}: {link}"
            if anchor and not anchor.startswith("__") and target in pages:
                assert unquote(anchor) in pages[target].anchors, f"{file.name}: {link}"


def test_no_page_names_a_font_or_a_script_from_elsewhere(site):
    for file in site.rglob("*.html"):
        text = file.read_text()
        assert "googleapis" not in text and 'src="http' not in text, file


def test_diagrams_are_drawn_and_load_no_script(site):
    drawings = {file.name for file in (SOURCE / "docs/images/diagrams").glob("*.svg")}
    shown = Page(site / "architecture.html").links
    assert len(drawings) == 2 and drawings == {Path(s).name for s in shown if "diagrams/" in s}
    for file in site.rglob("*.html"):  # the theme loads mermaid for this class
        assert 'class="mermaid"' not in file.read_text(), file


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("index.html", ["make demo", "rf2"]),
        ("commands.html", ["reflow run", "--no-prefect", "reflow couplings get"]),
        ("api.html", ["fit_flow", "rectify", "ReflowError"]),
        ("theory.html", ["<math", "budget_defect"]),
        ("gallery.html", ["benchmarks/2026-11_recipe.html"]),
        ("notebooks/library.html", ["straightness_rel"]),
    ],
)
def test_a_page_says_what_it_is_for(site, page, words):
    text = (site / page).read_text()
    assert all(word in text for word in words)


def run(notebook: Path, folder: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    found = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(found, timeout=300, kernel_name="python3", resources=resources).execute()


@pytest.mark.slow
def test_the_notebook_of_the_library_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    run(NOTEBOOKS / "library.ipynb", tmp_path)


@pytest.mark.slow
def test_the_notebook_of_a_chain_runs_in_a_project(finished):
    root = finished.parent / "notebook"
    shutil.copytree(finished, root, symlinks=True)
    run(NOTEBOOKS / "records.ipynb", Chain(root).root)
