"""A setting of two forms, a value or a section, has one line: of the form that was given."""

import pytest

from flows.params.load import load
from fmcore.settings import ReflowError
from tests.real_chain import PARAMS

TARGETS = "rounds.rf2.train.adapter.targets"
GUIDANCE = "couplings.rf1.guidance"
ADAPTER = "warmup: 20}\ncouplings", "warmup: 20, adapter: {targets: VALUE}}\ncouplings"
GUIDED = "pairs: 2000", "pairs: 2000, guidance: VALUE"
WITHIN = "pairs: 2000", "pairs: 2000, guidance: {strength: 3, within: VALUE}"
NFE = "nfe: [1, 4, 16]", "nfe: VALUE"


@pytest.mark.parametrize(
    ("edit", "value", "line"),
    [
        (ADAPTER, "to_q", f"{TARGETS}: expected a list, such as ['to_q'], got 'to_q'"),
        (ADAPTER, "{a: 1}", f"{TARGETS}: expected a list, such as [a, b], got a section"),
        (ADAPTER, "[3]", f"{TARGETS}.0: expected a text, got 3"),
        (WITHIN, "[0.8, 0.2]", f"{GUIDANCE}: within: expected two times, the smaller first, got"
                               " (0.8, 0.2)"),
        (WITHIN, "0.2", f"{GUIDANCE}.within: expected a list, such as [0.2], got 0.2"),
        (WITHIN, "[0.2]", f"{GUIDANCE}.within: item 2 is missing; add it"),
        (GUIDED, "{strength: 3}", f"{GUIDANCE}.within: is missing; add it"),
        (GUIDED, "strong", f"{GUIDANCE}: expected a number, got 'strong'"),
        (GUIDED, "-1", f"{GUIDANCE}: expected a number of at least 0, got -1"),
        (NFE, "4", "evaluate.nfe: expected a list, such as [4], got 4"),
    ],
)  # fmt: skip
def test_one_line_says_what_was_expected(tmp_path, edit, value, line):
    before, after = edit
    assert before in PARAMS
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS.replace(before, after.replace("VALUE", value)))
    with pytest.raises(ReflowError) as caught:
        load(file)
    [said] = str(caught.value).splitlines()
    assert said.partition(": ")[2] == line


@pytest.mark.parametrize("strength", ["x", "{a: 1}"])  # a section, where only a number belongs
def test_two_mistakes_of_one_section_are_two_lines(tmp_path, strength):
    given = f"{{strength: {strength}, within: [0, 2]}}"
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS.replace(*GUIDED).replace("VALUE", given))
    with pytest.raises(ReflowError) as caught:
        load(file)
    said = [line.split(": ")[1] for line in str(caught.value).splitlines()]
    assert said == [f"{GUIDANCE}.strength", f"{GUIDANCE}.within.1"]
