"""Pages of the site that are not in docs/: the README, the benchmarks, commands, Python names.

MkDocs calls the functions `on_...` (https://www.mkdocs.org/user-guide/plugins/#events).
"""

import re
from collections.abc import Iterator
from pathlib import Path

import diagrams
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
FORMULA = re.compile(
    r"\$\$(?P<block>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?!\w)", re.DOTALL
)
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the files outside of docs/ that pages link to."""
    readme = (ROOT / "README.md").read_text()
    made = {"index.md": readme, "commands.md": commands(), "api.md": names()}
    for page in sorted(ROOT.glob("benchmarks/*.md")):
        made[f"benchmarks/{page.name}"] = page.read_text()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for pattern in ("scripts/*.slurm", "params/*.yaml", "params.schema.json", "LICENSE"):
        for file in sorted(ROOT.glob(pattern)):
            name = file.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into links of the site, formulas into MathML, diagrams into their drawings.

    For mermaid itself the theme would load a script from a CDN.
    """
    path = page.file.src_uri
    home = {"index.md": Path(), "commands.md": Path(), "api.md": Path()}.get(path)
    if home is None:
        home = Path(path).parent if path.startswith("benchmarks/") else Path("docs", path).parent

    def relinked(found: re.Match[str]) -> str:
        return found[1] + _on_site((ROOT / home / found[2]).resolve(), path) + found[3]

    parts = CODE.split(diagrams.FENCE.sub(lambda found: _diagram(found[1], path), markdown))
    parts[::2] = [FORMULA.sub(_formula, LINK.sub(relinked, part)) for part in parts[::2]]
    return "".join(parts)


def _on_site(target: Path, page: str) -> str:
    """Return the link from a page of the site to a file of the repository."""
    name = target.relative_to(ROOT).as_posix()
    other = {"README.md": "index.md", "benchmarks": "gallery.md"}
    name = other.get(name, name.removeprefix("docs/"))
    return "../" * page.count("/") + name


def _diagram(text: str, page: str) -> str:
    """Return the drawing of a diagram, on white in both of the theme's colours."""
    file = diagrams.name(text)
    if not (ROOT / "docs" / file).exists():
        raise PluginError(f"{page}: a diagram has no drawing yet; run `make diagrams`")
    return f'![diagram]({"../" * page.count("/")}{file}){{ style="background: white" }}'


def _formula(found: re.Match[str]) -> str:
    if found["block"]:
        return "\n\n" + convert(found["block"].strip(), display="block") + "\n\n"
    return f"<span>{convert(found['inline'])}</span>"  # alone at a line's begin it would be a block


def commands() -> str:
    """Return the page of all commands, as `--help` describes them."""
    from typer.main import get_command

    from flows.cli.main import app

    lines = ["# Commands", "", "What `reflow COMMAND --help` says, made from the code.", ""]
    return "\n".join([*lines, *_described(get_command(app), "reflow")]) + "\n"


def _described(command: object, name: str) -> Iterator[str]:
    """Yield the lines of a command and of the commands below it; click's classes have no types."""
    below = getattr(command, "commands", {})
    if name != "reflow":
        yield from (f"## {name}", "", str(getattr(command, "help", "") or "").strip(), "")
        rows = [_row(param) for param in getattr(command, "params", []) if param.name != "help"]
        if rows:
            yield from ("| argument, option | what it does | default |", "|---|---|---|", *rows, "")
    for word in sorted(below):
        yield from _described(below[word], f"{name} {word}")


def _row(param: object) -> str:
    names = [*getattr(param, "opts", []), *getattr(param, "secondary_opts", [])]
    argument = getattr(param, "param_type_name", "") == "argument"
    word = getattr(param, "metavar", None) or str(getattr(param, "name", "")).upper()
    shown = word if argument else ", ".join(names)
    default = getattr(param, "default", None)
    kept = default not in (None, False, (), []) and not callable(default)
    text = str(getattr(param, "help", "") or "").replace("|", "\\|")
    return f"| `{shown}` | {text} | {f'`{default}`' if kept else ''} |"


def names() -> str:
    """Return the page of the public names of fmcore, which mkdocstrings fills."""
    import fmcore

    lines = ["# Python", "", "The public names of `fmcore`, by the module that defines each.", ""]
    for module, own in fmcore._HOMES.items():
        lines += [f"## {module}", ""]
        for name in own:
            lines += [f"::: {module}.{name}", ""]
    return "\n".join(lines)
