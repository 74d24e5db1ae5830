"""The documentation site has all pages and no dead link; the notebooks run."""

import html.parser
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests.conftest import SOURCE
from tests.real_chain import Chain

NOTEBOOKS = SOURCE / "docs" / "notebooks"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "NO_MKDOCS_2_WARNING": "1"}
    words = ["-m", "mkdocs", "build", "--strict", "-q", "-f", "scripts/mkdocs.yml", "-d", str(out)]
    done = subprocess.run(
        [sys.executable, *words], cwd=SOURCE, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


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
