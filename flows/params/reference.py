"""The reference of all settings: docs/settings.md, and the output of `reflow settings KEY`."""

import difflib
from collections import Counter
from collections.abc import Iterator

from flows.params.fields import Section, Setting, sections
from fmcore.settings import ReflowError

HEAD = """\
# Settings

Every key of `params.yaml`. This page is generated from the settings classes by `make settings`;
`reflow settings KEY` prints the same for a key (`lr`), a place (`train.lr`) or a section
(`rounds.rf2.train`). Editors that read the first line of `params.yaml` complete and check keys with
[`params.schema.json`](../params.schema.json). An unknown key, a wrong type or a value out of bounds
is an error with its line, before anything runs. A key without a default is required.

The examples of this page together are a whole parameter file.
"""

EXAMPLES = {
    "seed": "seed: 0",
    "data": "data: {name: images, root: data/images}",
    "source": "source: {name: noise}",
    "network": "network: {name: unet, channels: [32, 64], attend: [1], dropout: 0.1}",
    "rounds": """\
rounds:
  rf1:                                # a velocity from data and noise
    coupling: independent
    init: scratch
    train: {steps: 20000, lr: 2.0e-4, flip: true}
  rf2:                                # a straighter one, from the pairs of rf1
    coupling: rf1
    init: rf1
    train:
      steps: 10000
      lr: 2.0e-4
      time: {name: beta, a: 1.5, b: 0.5}
      loss: {name: pseudo_huber}
  student:                            # one step
    coupling: rf1
    init: rf2
    train: {steps: 5000, lr: 1.0e-4, time: point}""",
    "couplings": """\
couplings:
  rf1:
    round: rf1
    pairs: 100000
    solver: {name: ab4, steps: 23, shift: 0.5}
    mix: {generated: 0.8, inverted: 0.2}
  teacher:                            # pairs that somebody else made
    round: scratch
    import: {kind: npz, path: data/pairs, target: images, source: noise}""",
    "evaluate": "evaluate: {nfe: [1, 2, 4, 8], solver: {steps: 32}, likelihood: {samples: 1024}}",
    "yardstick": "yardstick: {features: {kind: lite0}, samples: 5000, splits: 4}",
    "gates": "gates: {held_out_ratio: {warn: 1.1, fail: 1.5}}",
    "compute": "compute: {device: auto, threads: 4, precision: auto}",
    "without_gpu": "without_gpu: {share: 0.02, batch: 64, network: {width: 256}}",
}
"""An example of each section, in the order of the page."""


def page() -> str:
    """Return docs/settings.md."""
    found = list(sections())
    tops = {top.place: top for top in found[0].settings}
    shown: dict[type, list[Section]] = {}
    parts = [HEAD]
    for name in [*EXAMPLES, *(name for name in tops if name not in EXAMPLES)]:
        parts.append(f"## {name}\n\n{_escaped(tops[name].description)}\n")
        parts.append(f"```yaml\n{EXAMPLES[name]}\n```\n" if name in EXAMPLES else "")
        own = [section for section in found if section.place.split(".")[0] == name]
        parts.append("" if own else f"It is a {value_of(tops[name])}.\n")
        parts += _described(own, name, shown)
    return "\n".join(part for part in parts if part)


def _described(own: list[Section], name: str, shown: dict[type, list[Section]]) -> Iterator[str]:
    """Yield the tables below a key, then references for sections with keys already shown."""
    again = []
    for group in _groups(own):
        place = group[0].place
        if group[0].cls in shown:
            again.append(group)
            continue
        new = [section for section in group if section.cls not in shown]
        yield f"### `{place}`\n" if place != name else ""
        yield _table([s for section in new for s in section.settings])
        for same in dict.fromkeys(shown[s.cls][0].place for s in group if s not in new):
            yield f"With any other name: the keys of [`{same}`](#{_anchor(same)}).\n"
        shown |= {section.cls: group for section in new}
    for same in dict.fromkeys(shown[group[0].cls][0].place for group in again):
        groups = [g for g in again if shown[g[0].cls][0].place == same]
        fewer = len(groups[0]) < len(shown[groups[0][0].cls])
        kinds = (groups[0][0].kind or shown[groups[0][0].cls][0].kind) if fewer else ""
        places = ", ".join(f"`{group[0].place}`" for group in groups)
        only = f", with name {kinds}" if kinds else ""
        yield f"{places}: the keys of [`{same}`](#{_anchor(same)}){only}.\n"


def _groups(found: list[Section]) -> Iterator[list[Section]]:
    """Yield the sections of each place as one list: the kinds that `name` selects from."""
    places = dict.fromkeys(section.place for section in found)
    for place in places:
        yield [section for section in found if section.place == place]


def _table(settings: list[Setting]) -> str:
    lines = ["| key | value | default | what it is |", "|---|---|---|---|"]
    kinds = len({s.kind for s in settings})
    alike = Counter((s.place, s.description) for s in settings)
    shared = [s for s in settings if kinds > 1 and alike[s.place, s.description] == kinds]
    own = [s for s in settings if s not in shared]
    for s in [*own, *{s.place: s for s in shared}.values()]:
        key = s.place.rpartition(".")[2]
        shown = f"`{key}`"
        if s.kind and key in ("name", "kind"):
            shown = f"`{key}: {s.kind}`"
        elif s in shared:
            shown = f"with any name: `{key}`"
        elif s.kind:
            shown = f"· `{key}`"
        value = "" if s.kind == s.holds and s.kind else value_of(s)
        default = f"`{s.default}`" if s.default else ""
        lines.append(f"| {shown} | {_escaped(value)} | {default} | {_escaped(s.description)} |")
    return "\n".join(lines) + "\n"


def value_of(setting: Setting) -> str:
    """Return the type and the bounds of a setting, in words."""
    return f"{setting.holds}, {setting.bounds}" if setting.bounds else setting.holds


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _anchor(title: str) -> str:
    return "".join(c for c in title.lower() if c.isalnum() or c in "_-")


def find(key: str) -> list[Setting]:
    """Return the settings that a key names, and all below it; all settings for "".

    `lr` is every lr, `train.lr` that of a round, `rounds.rf2.train` a section, `u_shaped` the
    settings of that law of t. Raises ReflowError, with close matches, when there is none.
    """
    every = [setting for section in sections() for setting in section.settings]
    words = [word for word in key.split(".") if word]
    found = [s for s in every if any(_holds(path, words) for path in _paths(s))]
    if found or not words:
        return found or every
    known = {".".join(path[i:]) for s in every for path in _paths(s) for i in range(len(path))}
    close = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.7)
    last = difflib.get_close_matches(words[-1], sorted(k for k in known if "." not in k), n=3)
    hint = f"did you mean {' or '.join(close or last)}? " if close or last else ""
    raise ReflowError(f"settings: no setting {key!r}; {hint}`reflow settings` lists all")


def _paths(setting: Setting) -> Iterator[list[str]]:
    """Yield the words of a place; in a section with names, also the words with each name added."""
    words = setting.place.split(".")
    yield words
    for kind in setting.kind.split(", ") if setting.kind else ():
        yield [*words[:-1], kind, words[-1]]


def _holds(path: list[str], words: list[str]) -> bool:
    """Say whether the words follow each other in a path; `<round>` matches any one word."""
    for at in range(len(path) - len(words) + 1):
        pairs = list(zip(path[at:], words, strict=False))
        if all(a == b or a[0] == "<" for a, b in pairs) and any(a == b for a, b in pairs):
            return True
    return False


if __name__ == "__main__":
    print(page(), end="")
