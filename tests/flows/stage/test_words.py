"""A wrong word in a command of dvc.yaml is one clear line, for each verb."""

import pytest

from flows.dag import graph, inputs
from flows.stage import verbs
from flows.stage.words import KEYED, WORDS, read_words
from fmcore.settings import ReflowError
from tests.conftest import SOURCE

STAGES = {n: s for n, s in graph.read(SOURCE).items() if n != inputs.STAGE}


def words(verb: str) -> list[str]:
    return [
        verb,
        *(["rf1"] if verb in KEYED else []),
        *(f"{name}=a/{name}" for name in WORDS[verb]),
    ]


def stage(verb: str) -> str:
    return f"{verb}@rf1" if verb in KEYED else verb


def said(arguments: list[str]) -> str:
    with pytest.raises(ReflowError) as error:
        read_words(arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_verb_has_its_words():
    assert set(WORDS) == set(verbs.VERBS) == {name.partition("@")[0] for name in STAGES}
    assert set(KEYED) == {name.partition("@")[0] for name in STAGES if "@" in name}


@pytest.mark.parametrize("name", STAGES)
def test_the_commands_of_dvc_yaml_are_right(name):
    command = read_words(STAGES[name].cmd.split()[3:])
    assert "@".join(filter(None, (command.verb, command.key))) == name
    assert command.paths == STAGES[name].paths


@pytest.mark.parametrize("verb", WORDS)
def test_a_wrong_missing_or_double_path_is_named(verb):
    good, name = words(verb), WORDS[verb][-1]
    expected = f"in its command; expected: {', '.join(WORDS[verb])}"
    typo = [word.replace(f"{name}=", f"{name[:-1]}=") for word in good]
    for arguments, what in (
        (typo, f"unknown path {name[:-1]!r}"),
        (good[:-1], f"path {name!r} is missing"),
        ([*good, f"{name}=b"], f"path {name!r} twice"),
        ([*good[:-1], f"{name}="], f"nothing after {name}="),
        ([*good, "more"], "unknown word 'more'"),
    ):
        assert said(arguments) == f"dvc.yaml: stage {stage(verb)}: {what} {expected}"


@pytest.mark.parametrize("verb", KEYED)
def test_a_missing_name_is_said(verb):
    arguments = [word for word in words(verb) if word != "rf1"]
    assert said(arguments).startswith(f"dvc.yaml: stage {verb}: the name of the {KEYED[verb]} is")


def test_a_verb_that_there_is_none_of_is_said():
    assert said(["trian"]) == f"expected a stage: {', '.join(WORDS)}; got ['trian']"
    assert said(["inputs", "out=elsewhere"]).endswith("expected: out=inputs")


@pytest.mark.parametrize("verb", WORDS)
def test_the_stage_ends_with_one_line_and_status_2(verb, capsys):
    arguments = [*words(verb)[:-1], "curv=b"]
    assert verbs.main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: dvc.yaml: stage {stage(verb)}: unknown path 'curv'")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("verb", KEYED)
def test_a_name_that_params_yaml_lacks_is_one_line(verb, capsys, empty, monkeypatch):
    empty.write("params.yaml", (SOURCE / "params.yaml").read_text())
    empty.write("dvc.yaml", "stages: {}\n")
    monkeypatch.chdir(empty.root)
    assert verbs.main([word.replace("rf1", "rf9") for word in words(verb)]) == 2
    printed = capsys.readouterr().err
    assert f"no {KEYED[verb]} 'rf9'; params.yaml has: rf1" in printed and printed.count("\n") == 1
