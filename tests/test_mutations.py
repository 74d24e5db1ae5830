"""The list of mutations is alive: each changes the code as it is, and its test exists."""

import ast

import pytest

from tests.mutations import MUTATIONS, SOURCE


def test_there_are_forty_and_more():
    assert len(MUTATIONS) >= 40
    assert len({m.what for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.what)
def test_a_mutation_changes_the_code_and_names_a_test(mutation):
    text = (SOURCE / mutation.file).read_text()
    assert mutation.old in text, f"{mutation.file} has changed: write the mutation anew"
    broken = text.replace(mutation.old, mutation.new)
    assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(text))
    file, _, name = mutation.test.partition("::")
    functions = {n.name for n in ast.walk(ast.parse((SOURCE / file).read_text()))
                 if isinstance(n, ast.FunctionDef)}  # fmt: skip
    assert not name or name in functions
