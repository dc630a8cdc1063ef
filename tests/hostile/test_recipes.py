"""Recipes and overrides of any kind: a recipe, or one sentence; no traceback, no hang, no value lost in silence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from campaign import sentence_or_nothing, tries

from mira.data.shards import shard_paths
from mira.training.assignment_methods import METHODS
from mira.training.reading import load_recipe, recipe_to_yaml
from mira.training.recipe import Recipe
from mira.training.resolve import plan

pytestmark = pytest.mark.slow

VALUES: list[Any] = [
    *(0, 1, -1, 2, 2**31, 2**63, 2**63 - 1, -(2**63), 10**30, 10**400, 1e308, -1e308, 1e-320, 0.5, 1.5, -0.0),
    *(
        float("nan"),
        float("inf"),
        True,
        False,
        None,
        "",
        "x",
        "auto",
        "none",
        "1e3",
        "0x10",
        "010",
        "1:30",
        "\x00",
        "\ud800",
    ),
    *("a" * 100_000, "../..", "~nobodyhere/x", [], [1], [1, 2], [0.9, 0.5], [[]], {}, {"a": 1}, [None], ["x"] * 50_000),
    *(
        {1: 2},
        {"name": "mira"},
        {"name": ["x"]},
        [True, False],
        [1e400],
        "2024-99-99",
        "[bold]x[/bold]",
        list(range(9)),
    ),
]


def keys(model: type, prefix: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        found.append(prefix + name)
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            found += keys(field.annotation, f"{prefix}{name}.")
    return found


KEYS = [*keys(Recipe), *(key for method in METHODS for key in keys(method, "assignment."))]


def test_values_of_every_kind_under_every_key(tmp_path: Path) -> None:
    file = tmp_path / "again.yaml"
    for _, rng in tries("values in recipes", 1200):
        changes = [
            (KEYS[int(rng.integers(len(KEYS)))], VALUES[int(rng.integers(len(VALUES)))])
            for _ in range(int(rng.integers(1, 4)))
        ]
        recipe = sentence_or_nothing(lambda: load_recipe({}, changes), changes, ValueError)
        if recipe is not None:
            file.write_text(recipe_to_yaml(recipe), "utf-8")
            assert load_recipe(file) == recipe, changes
            plan(recipe, pictures=10**9)


WORDS = ["training", "epochs", "data", "source", "assignment", "beta", "model", "backbone", "options", "name", "x", "1"]
PIECES = [
    *(
        ": ",
        "\n",
        "\n  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "&a ",
        "*a",
        "!!int ",
        "!!python/object:os.system ",
        "!x ",
        "<<: ",
    ),
    *(
        "'",
        '"',
        "#",
        "|",
        ">",
        "%",
        "@",
        "`",
        "? ",
        "---\n",
        "...\n",
        "\t",
        "\x00",
        "\x85",
        "\ufeff",
        "é",
        "\U0001f600",
    ),
    *(
        "1",
        "0.5",
        "010",
        "1:30",
        "1e5",
        "~",
        "yes",
        "2024-99-99",
        "!!timestamp x",
        ".nan",
        "9" * 5000,
        "[" * 30,
        "{a: " * 25,
    ),
]


def text_of(rng: np.random.Generator) -> bytes:
    parts = [str(rng.choice(WORDS if rng.random() < 0.5 else PIECES)) for _ in range(int(rng.integers(1, 25)))]
    text = "".join(parts)
    encoding = ("utf-8", "utf-8", "utf-8", "utf-16", "latin-1", "utf-32")[int(rng.integers(6))]
    return text.encode(encoding, "replace")


def test_texts_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for _, rng in tries("texts of recipes", 800):
        content = text_of(rng)
        file.write_bytes(content)
        sentence_or_nothing(lambda: load_recipe(file), content, ValueError)
        override = f"{rng.choice(KEYS)}={content.decode('latin-1')}"
        sentence_or_nothing(lambda: load_recipe({}, [override]), override, ValueError)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {epochs: 3}\ntraining: {batch_size: 4}", "'training' is there twice: put both into one, line 2"),
        ("training: {epochs: 3, epochs: 4}", "'epochs' is there twice"),
        (BOMB + "training: {epochs: *i}", "anchors (&) and aliases (*) have no place here"),
        ("training: &a [*a]", "anchors"),
        ("training: " + "[" * 900 + "]" * 900, "more than 20 levels deep"),
        ("training: {epochs: !!int ''}", "tags such as !!int have no place"),
        ("training: {epochs: !!bool x}", "tags"),
        ("name: !!timestamp x", "tags"),
        ("training: {epochs: 1:30}", "training.epochs: must be a whole number, not '1:30'"),
        ("training: {epochs: " + "9" * 5000 + "}", "training.epochs: must be"),
        ("training: {epochs: 9223372036854775808}", "training.epochs: must be"),
        ("model: {head: {layers: 2147483648}}", "model.head.layers: must be"),
        ("monitor: {checkpoint_every: 1.0e+308}", "monitor.checkpoint_every: must be"),
        ("monitor: {knn_every: .inf}", "monitor.knn_every: must be"),
        ("model: {prototypes: {count: 9223372036854775808}}", "model.prototypes.count: must be"),
        (
            "model: {backbone: {name: vit_tiny_patch16_224, options: {depth: 1000000000}}}",
            "may have numbers up to 1000",
        ),
        ("assignment: {beta: [" + "0.5, " * 5_000 + "]}", "assignment.beta"),
        ("x" * 3_000_000, "larger than a recipe can be"),
    ],
)
def test_what_was_found_once_has_one_short_sentence(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"recipe\.yaml'") as caught:
        load_recipe(file)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_other_encodings_and_odd_but_right_values(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("training: {epochs: 020}\nname: 2024-99-99\noptimiser: {learning_rate: 1e-3}", "utf-16")
    recipe = load_recipe(file)
    assert (recipe.training.epochs, recipe.name, recipe.optimiser.learning_rate) == (20, "2024-99-99", 1e-3)
    file.write_bytes("name: caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"recipe\.yaml' is not valid YAML: it is no text in UTF-8 or UTF-16"):
        load_recipe(file)
    for name in ("1e5", "010", "null", "yes", "*a", "&b", "!!int 3", "a: b", "- x", "\U0001f600", "\x85", "1:30", "~"):
        named = Recipe(name=name)
        file.write_text(recipe_to_yaml(named), "utf-8")
        assert load_recipe(file) == named


@pytest.mark.parametrize(
    "pattern", ["x{0..99999999}.tar", "{0..999999}.tar", "{a,b}" * 40 + ".tar", "{{{{0..9999}}}}{0..99}.tar"]
)
def test_braces_that_stand_for_more_files_than_there_are(pattern: str) -> None:
    sentence_or_nothing(lambda: shard_paths(pattern, ".tar"), pattern, ValueError)


def test_twenty_thousand_unknown_keys_are_told_shortly() -> None:
    with pytest.raises(ValueError, match="and 19970 more") as caught:
        load_recipe({f"key{number}": number for number in range(20_000)})
    assert len(str(caught.value)) < 5000


def test_yaml_reads_json(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    for _, rng in tries("recipes as JSON", 50):
        values = {"training": {"epochs": int(rng.integers(1, 1000)), "seed": int(rng.integers(2**31))}}
        file.write_text(json.dumps(values))
        recipe = load_recipe(file, ["optimiser.warmup_epochs=0.5", "model.prototypes.freeze_epochs=0"])
        assert recipe.training.epochs == values["training"]["epochs"]
    assert yaml.safe_load(recipe_to_yaml(Recipe()))["training"]["epochs"] == 400
