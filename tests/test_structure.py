"""What keeps the house in order: imports run one way, and modules and functions stay short."""

import ast
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("flux_hf", "training", "conversion")
MODULES = {
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (REPOSITORY / package).rglob("*.py")
}
# From the ground up: a part may import those that stand before it, itself, and nothing else of ours.
FLOORS = (
    "flux_hf",
    "conversion",
    "training.data",
    "training.arguments training.backward training.pretrain_arguments training.teachers training.digests",
    "training.engine training.inference training.objectives training.distillation",
    "training.model training.batches training.feature_cache training.probing",
    "training.classification training.pretraining",
    "training.finetune training.pretrain training.finetune_with_trainer training.evaluate training.predict "
    "training.extract_features training.probe training.optimize_tokens training.check_videos",
    "training.study",
)
# As in transformers, everything of the model stands in one file.
LONG_MODULES = {"flux_hf.modeling_fluxvit"}
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 460, 60


def imports(name: str) -> set[str]:
    """Modules of ours that a module imports, wherever in it."""
    found, package = set(), name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            whole = ".".join(part for part in (base, node.module) if part)
            found.add(whole)
            found.update(f"{whole}.{alias.name}" for alias in node.names)
    return {module for module in found if module in MODULES and module != name}


def floor(name: str) -> int:
    for index, parts in enumerate(FLOORS):
        if any(f"{name}.".startswith(f"{part}.") for part in parts.split()):
            return index
    raise LookupError(f"{name} stands on no floor")


@pytest.mark.parametrize("name", [name for name in MODULES if name not in ("training", "conversion")])
def test_imports_go_down(name):
    for other in imports(name) - {"training", "conversion"}:
        assert floor(other) <= floor(name), f"{name} imports {other}"
        if floor(other) == floor(name) and floor(name) in (4, 7):  # rooms beside each other do not share
            assert name.split(".")[:2] == other.split(".")[:2], f"{name} imports {other}"


def test_no_module_imports_itself_by_a_detour():
    graph = {name: imports(name) for name in MODULES if MODULES[name].name != "__init__.py"}
    while leaves := [name for name, others in graph.items() if not others & graph.keys()]:
        for leaf in leaves:
            del graph[leaf]
    assert not graph, f"a circle among {sorted(graph)}"


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_stay_short(name):
    text = MODULES[name].read_text(encoding="utf-8")
    assert name in LONG_MODULES or len(text.splitlines()) <= MAX_MODULE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{name}.{node.name}"


@pytest.mark.parametrize("name", MODULES)
def test_text_files_are_opened_with_their_encoding(name):
    """Without one, Windows reads and writes its local code page."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        is_text = called in ("read_text", "write_text") and isinstance(node.func, ast.Attribute)
        is_text |= called == "open" and isinstance(node.func, ast.Name) and not any("b" in str(word) for word in words)
        given = {keyword.arg for keyword in node.keywords}
        assert not is_text or "encoding" in given, f"{name}, line {node.lineno}: {called} without encoding"
