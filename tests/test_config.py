from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cover.config import changed, dump, keys, load, option
from cover.errors import UserError


@dataclass(frozen=True)
class Optimizer:
    lr: float = field(default=1e-3, metadata={"help": "peak learning rate"})
    betas: tuple[float, float] = (0.9, 0.999)
    name: Literal["adamw", "sgd"] = "adamw"
    clip: float | None = 1.0


@dataclass(frozen=True)
class Source:
    weight: float = 1.0
    epochs: int | None = None


@dataclass(frozen=True)
class Recipe:
    steps: int = field(metadata={"help": "optimizer steps"})
    title: str = "untitled"
    note: str | None = None
    bf16: bool = False
    tags: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(clip=5.0))
    teacher: Optimizer | None = None

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError("steps must not be negative")


@dataclass(frozen=True)
class Dog:
    kind: Literal["dog"] = "dog"
    age: int = 1
    breed: str = "mixed"


@dataclass(frozen=True)
class Bird:
    kind: Literal["bird"] = "bird"
    age: int = 1
    wings: int = 2


@dataclass(frozen=True)
class Fish:
    kind: Literal["fish"] = "fish"
    age: float = option(0.5, "years")


@dataclass(frozen=True)
class Pond:
    pet: Dog | Bird | Fish = field(default_factory=Dog)


@dataclass(frozen=True)
class Zoo:
    pet: Dog | Bird = field(default_factory=lambda: Dog(age=3))


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    inner: Inner


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """Writes a file and loads it: recipe("steps: 3", "--optimizer.lr", "1")."""

    def write_and_load(text: str, *overrides: str) -> Recipe:
        (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
        return load(Recipe, tmp_path / "x.yaml", overrides)

    return write_and_load


def complaint(recipe: Any, text: str, *overrides: str) -> str:
    """The error's message without the folder of the file, having checked that it is one line and
    starts with the file.
    """
    with pytest.raises(UserError) as caught:
        recipe(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert "x.yaml: " in message
    return message[message.index("x.yaml: ") :]


def test_the_file_goes_over_the_defaults_and_overrides_go_over_the_file(recipe: Any) -> None:
    text = "steps: 10\noptimizer: {lr: 0.1, name: sgd}\nsources:\n  ssv2:\n  k400: {weight: 2}\n"
    assert recipe(text, "--optimizer.lr", "3e-4", "--sources.ssv2.epochs=4") == Recipe(
        steps=10,
        optimizer=Optimizer(lr=3e-4, name="sgd", clip=5.0),
        sources={"ssv2": Source(epochs=4), "k400": Source(weight=2.0)},
    )


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.001", ".001", "1.e-3", "+1e-3", "1_0e-4"])
def test_every_way_to_write_a_float_gives_a_float(recipe: Any, number: str) -> None:
    text = f"steps: 1\noptimizer: {{lr: {number}, betas: [{number}, 1]}}\nrates: {{a: {number}}}"
    loaded = recipe(text)
    assert (loaded.optimizer.lr, loaded.optimizer.betas, loaded.rates) == (0.001, (0.001, 1.0), {"a": 0.001})
    assert isinstance(loaded.optimizer.betas[1], float)
    assert recipe("steps: 1", "--optimizer.lr", number).optimizer.lr == 0.001


@pytest.mark.parametrize(
    "word", ["2024-01-02", "007", "010", "1e3", "3", "1.5", "yes", "no", "on", "true", "1:30", ".inf"]
)
def test_text_that_looks_like_something_else_stays_text(recipe: Any, word: str) -> None:
    loaded = recipe(f"steps: 1\ntitle: {word}\nnote: {word}\ntags: [{word}, null]\nrates: {{{word}: 1}}")
    assert (loaded.title, loaded.note, loaded.tags, loaded.rates) == (word, word, [word, "null"], {word: 1.0})
    loaded = recipe(
        "steps: 1", "--title", word, "--note", word, "--tags", f"[{word}, null]", "--rates", f"{{{word}: 2}}"
    )
    assert (loaded.title, loaded.note, loaded.tags, loaded.rates) == (word, word, [word, "null"], {word: 2.0})


def test_null_is_nothing_but_where_it_is_quoted(recipe: Any) -> None:
    assert recipe("steps: 1\nnote: null").note is None
    assert recipe("steps: 1\nnote:").note is None
    assert recipe("steps: 1\nnote: 'null'").note == "null"
    assert recipe("steps: 1", "--note=").note == ""
    assert recipe("steps: 1", "--title", "null").title == "null"


@pytest.mark.parametrize("word", ["yes", "no", "on"])
def test_true_and_false_alone_are_truth_values(recipe: Any, word: str) -> None:
    assert recipe("steps: 1\nbf16: True").bf16 is True
    assert f'bf16: expected bool, got "{word}"' in complaint(recipe, f"steps: 1\nbf16: {word}")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (["--tags", "[a, b c]"], {"tags": ["a", "b c"]}),
        (["--tags=[]"], {"tags": []}),
        (["--bf16", "true"], {"bf16": True}),
        (["--note", "null"], {"note": None}),
        (["--title="], {"title": ""}),
        (["--title", "a=b"], {"title": "a=b"}),
        (["--title=--x"], {"title": "--x"}),
        (["--rates", '{"a": 1, "b c": 2e-1}'], {"rates": {"a": 1.0, "b c": 0.2}}),
        (["--rates.ssv2", "-3"], {"rates": {"k": 1.0, "ssv2": -3.0}}),
        (["--rates.k", "1", "--rates.k", "2"], {"rates": {"k": 2.0}}),
        (["--sources", "{a: {epochs: 2}, b: {}}"], {"sources": {"a": Source(epochs=2), "b": Source()}}),
        (["--optimizer", "{lr: 1}"], {"optimizer": Optimizer(lr=1.0, clip=5.0)}),
        (["--optimizer", "{lr: 1}", "--optimizer.name", "sgd"], {"optimizer": Optimizer(lr=1.0, name="sgd", clip=5.0)}),
        (["--optimizer.betas", "[0.8, 0.9]"], {"optimizer": Optimizer(betas=(0.8, 0.9), clip=5.0)}),
        (["--teacher.clip", "null"], {"teacher": Optimizer(clip=None)}),
        (["--teacher.lr", "1", "--teacher", "null"], {"teacher": None}),
    ],
)
def test_override_forms(recipe: Any, override: list[str], expected: dict[str, Any]) -> None:
    assert recipe("steps: 1\nnote: x\nrates: {k: 1}", *override) == Recipe(
        **{"steps": 1, "note": "x", "rates": {"k": 1.0}, **expected}
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("steps: 1\noptimizer: {lrr: 1}", [], 'x.yaml: unknown key "optimizer.lrr"; did you mean "optimizer.lr"?'),
        ("steps: 1", ["--optimizer.lrr", "1"], 'x.yaml: unknown key "optimizer.lrr"; did you mean "optimizer.lr"?'),
        ("steps: 1\nlr: 1", [], 'x.yaml: unknown key "lr"; did you mean "optimizer.lr"?'),
        ("steps: 1\noptimizer: {zzz: 1}", [], 'x.yaml: unknown key "optimizer.zzz"; known: betas, clip, lr, name'),
        (
            "steps: 1\nsources: {a: {wight: 1}}",
            [],
            'x.yaml: unknown key "sources.a.wight"; did you mean "sources.a.weight"?',
        ),
        (
            "steps: 1",
            ["--sources.a.wight=1"],
            'x.yaml: unknown key "sources.a.wight"; did you mean "sources.a.weight"?',
        ),
        ("steps: 1", ["--optimizer.lr.x", "1"], 'x.yaml: unknown key "optimizer.lr.x"'),
        ("steps: 1", ["--rates.", "1"], 'x.yaml: unknown key "rates."'),
        ("steps: 1\noptimizer: {lr: fast}", [], 'x.yaml: optimizer.lr: expected float, got "fast"'),
        ("steps: 1", ["--optimizer.lr=fast"], 'x.yaml: optimizer.lr: expected float, got "fast"'),
        ("steps: 1\noptimizer: {lr: true}", [], "x.yaml: optimizer.lr: expected float, got true"),
        ("steps: 1\noptimizer: {lr: }", [], "x.yaml: optimizer.lr: expected float, got null"),
        ("steps: 1.5", [], "x.yaml: steps: expected int, got 1.5"),
        ("steps: 1\ntitle: [3]", [], "x.yaml: title: expected str, got [3]"),
        ("steps: 1\ntitle: null", [], "x.yaml: title: expected str, got null"),
        ("steps: 1\ntitle:", [], "x.yaml: title: expected str, got null"),
        ("steps: 1\nbf16: 1", [], "x.yaml: bf16: expected bool, got 1"),
        ("steps: 1\noptimizer: {betas: [1]}", [], "x.yaml: optimizer.betas: expected tuple[float, float], got [1]"),
        ("steps: 1\ntags: [a, [2]]", [], 'x.yaml: tags: expected list[str], got ["a", [2]]'),
        ("steps: 1\ntags: a", [], 'x.yaml: tags: expected list[str], got "a"'),
        ("steps: 1\nrates: {a: b}", [], 'x.yaml: rates.a: expected float, got "b"'),
        ("steps: 1\nrates: [1]", [], "x.yaml: rates: expected keys with values, got [1]"),
        ("steps: 1\noptimizer: fast", [], 'x.yaml: optimizer: expected keys with values, got "fast"'),
        ("steps: 1\noptimizer: 3", ["--optimizer.lr", "1"], "x.yaml: optimizer: expected keys with values, got 3"),
        ("steps: 1\noptimizer: {clip: x}", [], 'x.yaml: optimizer.clip: expected float or null, got "x"'),
        (
            "steps: 1\noptimizer: {name: adam}",
            [],
            'x.yaml: optimizer.name: expected "adamw" or "sgd", got "adam"; did you mean "adamw"?',
        ),
        ("title: x", [], 'x.yaml: "steps" is missing: it needs int'),
        ("", [], 'x.yaml: "steps" is missing: it needs int'),
        ("steps: -1", [], "x.yaml: steps must not be negative"),
        ("steps: 1", ["--optimizer", "{lr: "], "x.yaml: optimizer: line 1, column 6: not YAML: "),
        ("steps: 1", ["--title"], "x.yaml: --title needs a value: write --title value or --title=value"),
        ("steps: 1", ["--title", "--bf16", "true"], "x.yaml: --title needs a value: "),
        (
            "steps: 1",
            ["title"],
            'x.yaml: "title" on the command line belongs to no key: write --key value or --key=value',
        ),
    ],
)
def test_every_mistake_is_one_line(recipe: Any, text: str, overrides: list[str], message: str) -> None:
    said = complaint(recipe, text, *overrides)
    assert said.startswith(message)
    assert said == message or message.endswith(": ")


def test_a_missing_key_of_a_required_section_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(UserError, match=r'"inner\.size" is missing'):
        load(Outer, tmp_path / "x.yaml", [])
    assert load(Outer, tmp_path / "x.yaml", ["--inner.size", "3"]) == Outer(Inner(3))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"title: caf\xe9")
    for path, reason in (
        (tmp_path / "no.yaml", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin.yaml", "not UTF-8"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            load(Recipe, path, [])
        assert str(caught.value).startswith(f"{path}: ")


def test_a_section_named_like_a_file_is_not_read_as_one(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("lr: 7")
    assert "expected keys with values" in complaint(recipe, "steps: 1", "--optimizer", str(tmp_path / "other.yaml"))


def test_an_override_of_an_aliased_section_leaves_the_other_alone(recipe: Any) -> None:
    loaded = recipe("steps: 1\nsources:\n  a: &a {weight: 2}\n  b: *a\n", "--sources.b.weight", "3")
    assert loaded.sources == {"a": Source(2.0), "b": Source(3.0)}


def test_one_more_entry_leaves_the_default_ones_in_place(recipe: Any, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Weighted:
        rates: dict[str, float] = field(default_factory=lambda: {"a": 1.0})

    (tmp_path / "x.yaml").write_text("")
    assert load(Weighted, tmp_path / "x.yaml", ["--rates.b", "2"]).rates == {"a": 1.0, "b": 2.0}
    assert load(Weighted, tmp_path / "x.yaml", ["--rates", "{b: 2}"]).rates == {"b": 2.0}


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["null", "1e-3", "010", "yes", "[a]", "1:30", "~", "\x85", "a\u2028 b\n"]
)
floats = st.floats(allow_nan=False)
names = st.text("abcXYZ-_ 019é", min_size=1, max_size=6)
optimizers = st.builds(
    Optimizer,
    lr=floats,
    betas=st.tuples(floats, floats),
    name=st.sampled_from(["adamw", "sgd"]),
    clip=st.none() | floats,
)
recipes = st.builds(
    Recipe,
    steps=st.integers(min_value=0),
    title=texts,
    note=st.none() | texts,
    bf16=st.booleans(),
    tags=st.lists(texts, max_size=3),
    rates=st.dictionaries(names, floats, max_size=3),
    sources=st.dictionaries(names, st.builds(Source, weight=floats, epochs=st.none() | st.integers()), max_size=3),
    optimizer=optimizers,
    teacher=st.none() | optimizers,
)


@given(recipes)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_dumped_tree_loads_back_equal(tmp_path: Path, resolved: Recipe) -> None:
    (tmp_path / "x.yaml").write_text(dump(resolved), encoding="utf-8")
    assert load(Recipe, tmp_path / "x.yaml", []) == resolved


@pytest.mark.parametrize(
    ("text", "overrides", "pet"),
    [
        ("{}", [], Dog(age=3)),
        ("pet: {age: 4}", [], Dog(age=4)),
        ("pet: {kind: bird}", [], Bird()),
        ("pet: {kind: bird, wings: 3}", ["--pet.age", "7"], Bird(age=7, wings=3)),
        ("pet: {breed: poodle}", ["--pet.kind", "dog"], Dog(age=3, breed="poodle")),
        ("{}", ["--pet.kind", "bird", "--pet.wings", "4"], Bird(wings=4)),
    ],
)
def test_one_section_of_several_is_chosen_by_its_first_key(
    tmp_path: Path, text: str, overrides: list[str], pet: Dog | Bird
) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    zoo = load(Zoo, tmp_path / "x.yaml", overrides)
    assert zoo == Zoo(pet)
    (tmp_path / "x.yaml").write_text(dump(zoo), encoding="utf-8")
    assert load(Zoo, tmp_path / "x.yaml") == zoo


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("pet: {kind: cat}", "pet.kind"),
        ("pet: {kind: bird, breed: poodle}", "pet.breed"),
        ("pet: {wings: 3}", "pet.wings"),
        ("pet: 3", "pet"),
    ],
)
def test_a_mistake_in_a_section_of_several_names_its_key(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load(Zoo, tmp_path / "x.yaml")
    assert key in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_changed_says_which_section_it_is_of() -> None:
    assert changed(Zoo(Dog(age=1))) == {"pet": {}}
    assert changed(Zoo(Bird())) == {"pet": {"kind": "bird", "age": 1, "wings": 2}}


def test_keys_lists_type_default_and_help() -> None:
    lines = keys(Recipe)
    squeezed = [" ".join(line.split()) for line in lines]
    assert squeezed[0] == "steps: int (required) optimizer steps"
    assert "optimizer.lr: float = 0.001 peak learning rate" in squeezed
    assert "optimizer.clip: float or null = 5.0" in lines
    assert 'optimizer.name: "adamw" or "sgd" = "adamw"' in lines
    assert "sources.NAME.epochs: int or null = null" in lines
    assert "rates: dict[str, float] = {}" in lines


def test_keys_lists_a_key_of_several_sections_once_for_each_meaning() -> None:
    assert [" ".join(line.split()) for line in keys(Pond)] == [
        'pet.kind: "dog" or "bird" or "fish" = "dog"',
        "pet.age: int = 1",
        "pet.age: float = 0.5 fish: years",
        'pet.breed: str = "mixed"',
        "pet.wings: int = 2",
    ]


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, cover.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
