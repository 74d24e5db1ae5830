"""`make diagrams`: draw the mermaid diagrams of docs/ as SVG, so that the site needs no script.

Needs npm, which brings mermaid into .reflow/mermaid, and Debian's chromium. A drawing is named by
the hash of its text, so that scripts/site_pages.py finds it, and sees that a diagram has none yet.
"""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRAWINGS = "images/diagrams"
FENCE = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)
MERMAID = "mermaid@11.9.0"
CHROMIUM = ("chromium", "chromium-browser")
DRAW = """async ([id, text]) => {
    mermaid.initialize({startOnLoad: false, theme: 'neutral', htmlLabels: false,
                        flowchart: {htmlLabels: false}});
    return (await mermaid.render(id, text)).svg;
}"""


def name(text: str) -> str:
    """Return the file of a diagram, relative to docs/."""
    return f"{DRAWINGS}/{hashlib.sha256(text.encode()).hexdigest()[:12]}.svg"


def main() -> None:
    """Draw every diagram; remove drawings of diagrams that are gone."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if browser is None or shutil.which("npm") is None:
        sys.exit("error: npm and chromium expected; apt-get install npm chromium")
    docs = ROOT / "docs"
    found = [
        text for page in sorted(docs.rglob("*.md")) for text in FENCE.findall(page.read_text())
    ]
    wanted = {docs / name(text): text for text in found}
    for old in set((docs / DRAWINGS).glob("*.svg")) - wanted.keys():
        old.unlink()
    place = ROOT / ".reflow" / "mermaid"
    subprocess.run(["npm", "install", "--silent", "--prefix", str(place), MERMAID], check=True)
    (docs / DRAWINGS).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as engine:
        tab = engine.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
        tab.add_script_tag(path=place / "node_modules/mermaid/dist/mermaid.min.js")
        for number, (file, text) in enumerate(wanted.items()):
            file.write_text(tab.evaluate(DRAW, [f"diagram{number}", text]) + "\n")
            print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
