"""Every `reflow` command in the documents is one that `reflow` takes; it is parsed, never run."""

import re
import shlex

import pytest
import typer
from typer.main import get_command

from flows.cli import main
from tests.conftest import SOURCE

README = SOURCE / "README.md"
PAGES = [
    README, SOURCE / "params.yaml", *sorted((SOURCE / "params").glob("*.yaml")),
    *sorted((SOURCE / "docs").rglob("*.md")), *sorted((SOURCE / "flows/start").glob("*.md")),
]  # fmt: skip
FENCE = re.compile(r"^ *```(\w*)[^\n`]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
SHELL = ("", "sh", "bash", "console", "shell")
ALONE = re.compile(r"^ *(?:\$ )?(?:[\w./]*/)?reflow .*", re.MULTILINE)
"""A command in a block that does not say its language."""
EXAMPLE = re.compile(r"^# {3,}((?:\$ )?reflow .*)", re.MULTILINE)
"""A command on a line of its own in the comments of a parameter file."""
INLINE = re.compile(r"(?<!`)`((?:[\w./]*/)?reflow [^`]+)`")
BEFORE = re.compile(r"\$|!|\w+=.*|time|nohup|exec|env|srun|do|then|else|-.*")
"""Words that may stand before `reflow` on its line."""
PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*([/:@][A-Z_]+)*")
UsageError = typer.BadParameter.__mro__[1]
"""The base of all that the parser refuses; Typer gives it no public name."""


def stop(_context, _param, value):
    if value:
        raise typer.Exit


def parser():
    """Return `reflow` without what its commands do: they parse their words, and nothing follows."""
    root = get_command(main.app)
    commands = [root]
    for command in commands:
        command.callback = None
        for param in command.params:
            ends = command is root and param.callback  # such as --version
            param.callback = stop if ends else None
        commands += getattr(command, "commands", {}).values()
    return root


def wrong(words, whole):
    """Return what `reflow` has against these words; those that are not whole may lack some."""
    given = ["1" if PLACEHOLDER.fullmatch(word) else word for word in words]
    try:
        parser().main(given, "reflow", standalone_mode=False)
    except UsageError as error:
        kind = type(error).__name__
        if not whole and kind == "MissingParameter":
            return ""
        if not whole and kind == "BadOptionUsage" and words[-1].startswith("-"):
            return wrong([*words, "1"], whole)  # an option without its value
        return error.format_message()
    return ""


def commands(text):
    """Yield the words after each `reflow` of a shell text, quoted commands included."""
    text = re.sub(r"\$\(\(.*?\)\)", "0", text.replace("\\\n", " "))
    for line in [line for line in text.splitlines() if "reflow" in line]:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words = []
        for word in [*lexer, ";"]:
            if set(word) <= set("();<>|&"):
                yield from simple(words)
                words = []
            else:
                words.append(word)


def simple(words):
    for number, word in enumerate(words):
        image = words[:2] == ["docker", "run"] and re.fullmatch(r"reflow-chain(:\w+)?", word)
        if image or word.split("/")[-1] == "reflow":
            if image or all(BEFORE.fullmatch(before) for before in words[:number]):
                yield words[number + 1 :]
            return
        if " " in word:
            yield from commands(word)


def shown(text):
    """Yield (words, are they a whole command) of all commands of a page or a parameter file."""
    for kind, code in FENCE.findall(text):
        if kind in SHELL:
            code = code if kind else "\n".join(ALONE.findall(code))
            yield from ((words, True) for words in commands(code))
    yield from ((words, True) for line in EXAMPLE.findall(text) for words in commands(line))
    for code in INLINE.findall(re.sub(r"^ *```.*$", "", text, flags=re.MULTILINE)):
        line = re.sub(r"\s*\n[#>\s]*", " ", code)
        yield from ((words, False) for words in commands(re.sub(r"[][]|\.\.\.", " ", line)))


def faults(text):
    return [
        f"reflow {shlex.join(words)}: {fault}"
        for words, whole in shown(text)
        if (fault := wrong(words, whole))
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(SOURCE).as_posix())
def test_every_command_of_a_document_is_one_that_reflow_takes(page):
    assert faults(page.read_text()) == []


def test_the_documents_have_commands():
    whole = [known for page in PAGES for _, known in shown(page.read_text())]
    assert whole.count(True) > 80 and whole.count(False) > 150


def test_every_option_in_the_table_of_commands_is_one_of_its_command():
    rows = re.findall(r"^\| `reflow ([a-z-]+)[^`]*` \| (.*) \|$", README.read_text(), re.MULTILINE)
    assert len(rows) > 20
    for name, text in rows:
        command = parser().commands[name]
        below = [command, *getattr(command, "commands", {}).values()]
        params = [param for one in below for param in one.params]
        known = {option for param in params for option in (*param.opts, *param.secondary_opts)}
        assert set(re.findall(r"`(--[a-z-]+)`", text)) <= known, name


SOUND = (
    "reflow run", "$ reflow compare --baseline rf1", ".venv/bin/reflow demo", "reflow --version",
    "make setup && .venv/bin/reflow run train@rf1 train@rf2  # a comment --planted",
    "reflow sample rf2 \\\n  x.png --nfe 4", 'eval "$(reflow env)"', "A=1 reflow plan --json > x",
    'sbatch --wrap "reflow run"', "docker run --rm reflow-chain:cuda doctor", "reflow replicate N",
    "reflow couple rf1 --shards $((8 * ID)):$((8 * ID + 8))", "if true; then reflow push; fi",
    "reflow plan | grep --planted x", "reflow --install-completion", "reflow couplings get HEAD",
)  # fmt: skip
PLANTED = (
    ("reflow run --planted", "--planted"),
    ("$ reflow compare --baseline", "baseline"),
    (".venv/bin/reflow demonstrate", "demonstrate"),
    ("cd x && reflow plan --planted && ls", "--planted"),
    ("reflow sample rf2 \\\n  x.png --planted 4", "--planted"),
    ('eval "$(reflow env --planted)"', "--planted"),
    ('sbatch --wrap "reflow run --planted"', "--planted"),
    ("docker run --rm reflow-chain:cuda --planted", "--planted"),
    ("if true; then reflow push --planted; fi", "--planted"),
    ("A=1 reflow plan one", "unexpected"),
    ("reflow sample rf2", "Missing"),
    ("reflow sample rf2 x.png --nfe many", "--nfe"),
    ("reflow couplings got HEAD", "got"),
    ("reflow couplings get", "Missing"),
    ("reflow --planted", "--planted"),
)


@pytest.mark.parametrize("line", SOUND)
def test_a_right_line_passes(line):
    text = f"```sh\n{line}\n```\n"
    assert len(list(shown(text))) == 1 and faults(text) == []


@pytest.mark.parametrize(("line", "said"), PLANTED)
def test_a_wrong_line_is_found(line, said):
    (fault,) = faults(f"Words.\n\n   ```sh\n   ls\n   {line}\n   ```\n")
    assert said in fault.split(": ", 1)[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("`reflow couple --shards`, `reflow sample\nrf2 --label a`, `reflow run [STAGES]`", None),
        ("`reflow` alone, a reflow chain, `reflow_chain`, `s3://x/reflow y`", None),
        ("```\ndon't\n  reflow run --planted\n```\n", "--planted"),
        ("one `reflow couple --planted` here", "--planted"),
        ("| `reflow ship ROUND --planted` | words |", "--planted"),
        ("# Two lines: `reflow run\n# --planted 3`.\na: 1\n", "--planted"),
        ("# So:\n#   reflow run --planted\na: 1\n", "--planted"),
        ("a `reflow sample rf2 x.png --nfe many`", "--nfe"),
        ("a `reflow plan one`", "unexpected"),
    ],
)
def test_a_command_in_a_sentence_may_lack_arguments_and_nothing_else(text, said):
    found = faults(text)
    assert found == [] if said is None else len(found) == 1 and said in found[0].split(": ", 1)[1]
