"""Floor 3: a network of ours as one Python file, for people without this package (`trust_remote_code=True`).

The file is written from the source of our own rooms: the model classes, of a TextCNN the tokenizer, and whatever of our
code they need, found by following names, in place of the imports. Compiled kernels stay here; three definitions below
take their place.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spiketext.ops import lif_reference

NETWORKS = {  # model_type -> room and beginning of the names of its classes
    "spikebert": ("spiketext.models.spikebert", "SpikeBert"),
    "textcnn": ("spiketext.models.textcnn", "TextCnn"),
    "spiking-textcnn": ("spiketext.models.spiking_textcnn", "SpikingTextCnn"),
}
_CLASSES = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
}
_TOKENIZER = ("spiketext.words", "WordTokenizer")  # of the TextCNNs


def lif(current: Tensor, state: Tensor | None = None, **neuron: Any) -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire neurons, current [T, ...] -> spikes [T, ...] and the last membrane; see `Neuron`."""
    return lif_reference(current, state, **neuron)


def norm_lif(x: Tensor, weight: Tensor, bias: Tensor, eps: float, **neuron: Any) -> Tensor:
    """Layer norm over the last dimension of x [T, ..., D], scaled and shifted, and then `lif`: spikes."""
    return lif(nn.functional.layer_norm(x, x.shape[-1:], eps=eps) * weight + bias, **neuron)[0]


def spike_linear(spikes: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map: spikes [..., K], weight [N, K], bias [N] -> [..., N]."""
    return nn.functional.linear(spikes, weight, bias)


class _Room:
    """A module of ours as source: its top-level definitions and its imports, each by the name that it brings."""

    def __init__(self, module: str):
        source = inspect.getsource(importlib.import_module(module))
        self.lines, tree = source.splitlines(), ast.parse(source)
        self.about = ast.get_docstring(tree) or ""
        self.own: dict[str, ast.stmt] = {}
        self.imports: dict[str, tuple[str, ast.alias]] = {}  # module ("" for a plain import) and what comes from it
        for node in tree.body:
            if isinstance(node, ast.ImportFrom | ast.Import):
                source_module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
                self.imports |= {a.asname or a.name.split(".")[0]: (source_module, a) for a in node.names}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.own[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.own |= {n.id: node for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}

    def text(self, node: ast.stmt) -> str:
        """The source of a definition, with its decorators and comments."""
        first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
        return "\n".join(self.lines[first - 1 : node.end_lineno])


class _File:
    """What a modelling file is made of: foreign imports, constants, and definitions below all that they need."""

    def __init__(self) -> None:
        self.rooms: dict[str, _Room] = {}
        self.foreign: dict[str, set[str]] = {}
        self.constants: list[str] = []
        self.definitions: list[str] = []
        self.homes: dict[str, str] = {}

    def add(self, module: str, name: str) -> None:
        """Add what a name means in a module, after all that it needs; builtins and local names mean nothing there."""
        if module.startswith("spiketext.ops") and name in _REPLACED:
            module = __name__
        if module not in self.rooms:
            self.rooms[module] = _Room(module)
        room = self.rooms[module]
        if name in room.own:
            self._define(module, name, room.own[name])
        elif name in room.imports:
            source, alias = room.imports[name]
            if source.startswith("spiketext"):
                self.add(source, alias.name)
            else:
                self.foreign.setdefault(source, set()).add(ast.unparse(alias))

    def _define(self, module: str, name: str, node: ast.stmt) -> None:
        if name in self.homes:
            if self.homes[name] != module:
                raise AssertionError(f"{name} is defined in {self.homes[name]} and in {module}; rename one")
            return
        self.homes[name] = module
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
        for needed in dict.fromkeys(n.id for n in sorted(names, key=lambda n: (n.lineno, n.col_offset))):
            self.add(module, needed)
        kind = self.constants if isinstance(node, ast.Assign | ast.AnnAssign) else self.definitions
        text = self.rooms[module].text(node)
        kind += [text] if text not in kind else []  # two names of one assignment

    def imports(self) -> str:
        """The foreign imports, the standard library first."""
        blocks: tuple[list[str], list[str]] = ([], [])
        for module, items in sorted(self.foreign.items()):
            plain, renamed = [sorted(i for i in items if (" as " in i) == other) for other in (False, True)]
            lines = [f"from {module} import {names}" for names in filter(None, [", ".join(plain), *renamed])]
            for line in lines if module else [f"import {item}" for item in sorted(items)]:
                blocks[line.split()[1].split(".")[0] not in sys.stdlib_module_names].append(line)
        return "\n\n".join("\n".join(block) for block in blocks if block)


_REPLACED = ("lif", "norm_lif", "spike_linear")


def file_of(model_type: str) -> str:
    """The name of the modelling file of a network."""
    return f"modeling_{model_type.replace('-', '_')}.py"


def source(model_type: str) -> str:
    """The text of the modelling file of a network, one of `NETWORKS`."""
    (room, name), file = NETWORKS[model_type], _File()
    for part in _CLASSES.values():
        file.add(room, name + part)
    if model_type != "spikebert":
        file.add(*_TOKENIZER)
    about = file.rooms[room].about.replace(" `PRESETS` has the settings of both.", "")
    neurons = file.rooms.get("spiketext.ops.lif")
    equation = neurons.about.partition("\n\n")[2].partition("\n\nLetters")[0] if neurons else ""
    made = (
        f"Written by spiketext {version('spiketext')} from its own source (Apache-2.0); needs torch and transformers."
    )
    sooner = "The package itself trains such models, and computes the same sooner."
    head = "\n\n".join(part for part in (about, equation, f"{made}\n{sooner}") if part)
    top = "\n\n".join(
        [f'"""{head}\n"""', "from __future__ import annotations", file.imports(), "\n".join(file.constants)]
    )
    return "\n\n\n".join([top, *file.definitions]) + "\n"


def make_portable(folder: Path) -> None:
    """Write the modelling file into the folder of a saved network of ours and name it in its configs (`auto_map`).

    Raises:  ValueError when the folder holds another kind of model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"model {folder}: has no config.json; expected the folder of one of {', '.join(NETWORKS)}")
    model_type = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if model_type not in NETWORKS:
        raise ValueError(f"model {folder}: a modelling file exists for {', '.join(NETWORKS)}, not for {model_type!r}")
    (folder / file_of(model_type)).write_text(source(model_type), encoding="utf-8")
    module, prefix = file_of(model_type).removesuffix(".py"), NETWORKS[model_type][1]
    _add(path, {"auto_map": {auto: f"{module}.{prefix}{part}" for auto, part in _CLASSES.items()}})
    if model_type != "spikebert":
        _add(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": [f"{module}.{_TOKENIZER[1]}", None]}})


def _add(path: Path, settings: dict[str, Any]) -> None:
    known = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(known | settings, indent=2, ensure_ascii=False), encoding="utf-8")
