"""Each mistake that pydantic finds has one form of words: `expected ..., got ...`."""

from typing import Annotated, Literal

import pytest
from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from fmcore.expected import EXPECTED, mistake
from fmcore.settings import Settings


class One(Settings):
    name: Literal["one"]


class Two(Settings):
    name: Literal["two"]


class Part(Settings):
    size: int = 1


class Whole(Settings):
    count: int = Field(default=1, gt=0, le=9)
    rate: float = Field(default=0.5, ge=0, lt=1)
    flag: bool = False
    text: str = Field(default="ab", min_length=2, max_length=3)
    kind: Literal["a", "b"] = "a"
    numbers: tuple[int, ...] = Field(default=(1,), min_length=1, max_length=2)
    parts: dict[str, int] = Field(default={"a": 1}, min_length=1)
    part: Part = Part()
    choice: Annotated[One | Two, Field(discriminator="name")] = One(name="one")
    nothing: None = None

    @model_validator(mode="after")
    def _no_seven(self) -> "Whole":
        if self.count == 7:
            raise ValueError("seven is no count")
        return self


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("count", "many", "expected a whole number, got 'many'"),
        ("count", 1.5, "expected a whole number, got 1.5"),
        ("count", True, "expected a whole number, got true"),
        ("count", None, "expected a whole number, got null"),
        ("count", 0, "expected a number above 0, got 0"),
        ("count", 10, "expected a number of at most 9, got 10"),
        ("count", [1], "expected a whole number, got a list"),
        ("count", {}, "expected a whole number, got a section"),
        ("rate", "x", "expected a number, got 'x'"),
        ("rate", -0.5, "expected a number of at least 0, got -0.5"),
        ("rate", 1.0, "expected a number below 1, got 1.0"),
        ("rate", float("nan"), "expected a finite number, got nan"),
        ("flag", "yes", "expected true or false, got 'yes'"),
        ("text", 3, "expected a text, got 3"),
        ("text", "a", "expected a text of at least 2 characters, got 'a'"),
        ("text", "abcd", "expected a text of at most 3 characters, got 'abcd'"),
        ("kind", "c", "expected 'a' or 'b', got 'c'"),
        ("numbers", 3, "expected a list, such as [3], got 3"),
        ("numbers", {"a": 1}, "expected a list, such as [a, b], got a section"),
        ("numbers", (), "expected at least 1 entries, got 0"),
        ("numbers", (1, 2, 3), "expected at most 2 entries, got 3"),
        ("parts", 3, "expected a section, `{key: value, ...}`, got 3"),
        ("parts", {}, "expected at least 1 entries, got 0"),
        ("part", "x", "expected a section, `{key: value, ...}`, got 'x'"),
        ("part", [], "expected a section, `{key: value, ...}`, got an empty list"),
        ("choice", {"name": "three"}, "its name: expected one of 'one', 'two', got 'three'"),
        ("choice", {}, "its name is missing; add `name: ...`"),
        ("nothing", 1, "expected null, got 1"),
        ("count", "x" * 100, f"expected a whole number, got '{'x' * 39}..."),
        ("count", 7, "seven is no count"),
    ],
)
def test_what_was_expected_and_what_was_got(key, value, words):
    with pytest.raises(ValidationError) as caught:
        Whole.model_validate({key: value})
    [error] = caught.value.errors()
    assert mistake(error) == words


def test_a_tag_that_a_function_finds_is_told_by_its_name():
    found = Annotated[
        Annotated[One, Tag("one")] | Annotated[Two, Tag("two")],
        Discriminator(lambda given: given.get("name")),
    ]
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(found).validate_python({"name": "three"})
    assert mistake(caught.value.errors()[0]).endswith(": expected one of 'one', 'two', got 'three'")


def test_a_type_that_has_no_words_here_keeps_those_of_pydantic():
    error = {"type": "decimal_type", "msg": "Decimal input should be a number", "input": "x"}
    assert mistake(error) == "decimal input should be a number, got 'x'"


def test_words_fill_in_what_pydantic_gives():
    for form in EXPECTED.values():
        assert form.format_map({k: 1 for k in CONTEXT})


CONTEXT = ("gt", "ge", "lt", "le", "expected", "min_length", "max_length")
