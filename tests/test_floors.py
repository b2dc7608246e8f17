"""The direction of imports, the size of rooms, and what every public name must say."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

import spiketext

PACKAGE = Path(spiketext.__file__).parent
FLOORS = [
    {
        "ops",
        "losses",
        "options",
        "augmentation",
        "tables",
        "machine",
        "figures",
        "meter",
        "values",
        "vectors",
        "coding",
        "downloads",
        "hubsets",
        "processes",
        "callbacks",
        "published",
        "significance",
    },
    {"neurons", "batching", "runs", "splits", "words", "portraits", "answers", "textfiles"},
    {"models", "datasets", "rates", "results"},
    {"data", "precision", "experiments", "portable"},
    {"corpora", "checkpoints"},
    {"evaluation", "about", "wordmodels", "passages", "substitutes", "skipgram"},
    {"fitting", "counting", "recipes", "sharing", "ledger", "baseline"},
    {"training"},
    {"distillation", "maskedlm", "conversion", "energy", "audit", "insight", "attacks"},
    {"bench", "demo", "reproduce", "report"},
    {"commands"},
    {"cli"},
]
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LONGEST = 400
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.stem not in ("__init__", "__main__"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            module = node.module or ""
            found += [f"{module}.{alias.name}" for alias in node.names] if module == "spiketext" else [module]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "spiketext"]


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} == set(FLOOR_OF)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_room_that_names_its_floor_is_on_it(path):
    named = re.match(r'"""Floor (\d+):', path.read_text(encoding="utf-8"))
    assert named is None or int(named[1]) == FLOOR_OF[room_of(path)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_only_go_down(path):
    here = room_of(path)
    for name in imports_of(path):
        there = name.split(".")[1] if "." in name else None
        if there in (None, "__version__"):
            assert here == "cli", f"{path.name} imports the package root"
            continue
        assert there == here or FLOOR_OF[there] < FLOOR_OF[here], f"{here} may not import {there}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_room_is_too_large(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_the_floor_of_numbers_needs_torch_only():
    for path in [*PACKAGE.glob("ops/*.py"), PACKAGE / "losses.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] != "transformers", path


def test_options_and_texts_start_without_torch():
    for name in (
        "options",
        "tables",
        "splits",
        "datasets",
        "data",
        "augmentation",
        "runs",
        "vectors",
        "figures",
        "cli",
    ):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                heads = {node.module} if isinstance(node, ast.ImportFrom) else {a.name for a in node.names}
                assert not {(head or "").split(".")[0] for head in heads} & {"torch", "transformers"}, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_public_name_is_documented(path):
    module = importlib.import_module("spiketext." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    assert module.__doc__
    for name, value in vars(module).items():
        public = not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        if public and (inspect.isfunction(value) or inspect.isclass(value)):
            assert inspect.getdoc(value), f"{module.__name__}.{name}"


def test_public_names_can_be_imported():
    for name in spiketext.__all__:
        assert getattr(spiketext, name) is not None
