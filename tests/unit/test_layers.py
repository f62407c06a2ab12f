"""Rules of the layers: who may import whom, who opens files, and what no file of `parity/` may contain."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "parity"

BASE = frozenset({"errors", "registry"})
WEIGHTS = BASE | {"numerics", "weights"}
DATA = WEIGHTS | {"execution", "known", "lora", "pair", "space"}
SIDES = DATA | {"stage", "loaded", "impact", "live", "lora_audit"}
"""What one side gives."""
RUN = SIDES | {"session", "draws", "run"}
"""Everything a case needs, from a pair to its verdicts."""
RECORDED = {"recorder", "cached", "native_recorder", "recorded", "compared", "references"}
SERVICES = {
    "case", "explored", "sensitivity", "choices", "discover", "engine", "environment", "inventory", "runs", "io",
    "report", "diagnose", "gate",
}  # fmt: skip

LAYERS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "registry": frozenset({"errors"}),
    "known": frozenset({"errors"}),
    "gate": BASE | {"known"},
    "numerics": BASE,
    "execution": BASE | {"numerics"},
    "weights": BASE | {"numerics"},
    "lora": WEIGHTS,
    "space": frozenset({"errors"}),
    "pair": BASE | {"execution", "known", "weights", "lora", "space"},
    "case": BASE | {"execution", "pair"},
    "choices": BASE | {"pair"},
    "discover": BASE | {"pair"},
    "selection": BASE | {"case"},
    "environment": BASE,
    "stage": DATA,
    "loaded": DATA,
    "lora_loading": WEIGHTS | {"io", "lora"},
    "lora_probes": DATA | {"stage", "loaded"},
    "lora_wanted": DATA | {"stage", "loaded", "lora_probes"},
    "lora_audit": DATA | {"stage", "loaded", "lora_probes", "lora_wanted"},
    "impact": DATA | {"stage", "loaded"},
    "live": SIDES,
    "session": SIDES,
    "identity": SIDES | {"environment", "io"},
    "kept": SIDES | {"identity", "io", "diagnose"},
    "recorder": SIDES | {"identity", "about", "environment", "io", "kept", "diagnose"},
    "cached": SIDES | {"identity", "io", "kept", "recorder"},
    "native_recorder": RUN | {"identity", "about", "environment", "io", "kept", "recorded", "recorder", "diagnose"},
    "compared": RUN | {"identity", "about", "io", "recorded", "recorder"},
    "recorded": SIDES | {"identity", "recorder", "io"},
    "references": SIDES | RECORDED | {"io"},
    "draws": SIDES | {"session"},
    "diagnose": SIDES | {"session", "draws"},
    "felt": SIDES | {"session", "draws"},
    "run": RUN - {"run"} | {"diagnose", "felt", "four"},
    "report": BASE | {"numerics", "diagnose", "gate"},
    "io": BASE | {"weights", "execution", "report", "gate"},
    "failures": BASE,
    "about": RUN | {"case", "io"},
    "fresh": SIDES | {"session"},
    "examples": RUN - {"run"} | {"fresh"},
    "sensitivity": SIDES | {"session", "fresh"},
    "explored": RUN - {"run"} | {"examples", "strategies"},
    "strategies": BASE | {"space"},
    "described": RUN | {"case", "compared", "io", "report"},
    "unreached": RUN | {"about", "case"},
    "engine": RUN | RECORDED | {"unreached"} | {"about", "case", "described", "diagnose", "failures", "report"},
    "runs": BASE | {"environment", "report", "io"},
    "captured": SIDES,
    "four": RUN - {"run"},
    "propagation": SIDES | {"io"},
    "answers": RUN | RECORDED | {"identity", "io", "diagnose"},
    "__main__": BASE | {"cli"},
    "commands": RUN | RECORDED | SERVICES | {"answers", "captured", "four", "propagation", "scaffold", "selection"},
    "inventory": DATA | {"discover", "io"},
    "doctor": BASE | {"environment", "pair", "discover", "gate", "inventory"},
    "plugin": RUN | RECORDED | SERVICES | {"propagation"} | {"strategies"},
    "cli": RUN | RECORDED | SERVICES | {"commands", "doctor", "selection"},
    "scaffold": DATA,
}
"""What each folder or file may import of the others; itself and the package's own name always."""

LIBRARIES = {
    "pytest": {"plugin"}, "_pytest": {"plugin"}, "xdist": {"plugin"}, "hypothesis": {"strategies"},
    "typer": {"cli", "commands"}, "click": {"cli"}, "rich": {"cli"}, "safetensors": {"io"}, "tempfile": {"io"},
    "fcntl": {"io"}, "jinja2": {"report"}, "plotly": {"report"}, "playwright": set(),
}  # fmt: skip
NO_TORCH = {"errors", "registry"}

OPENERS = {
    "open", "read_text", "read_bytes", "write_text", "write_bytes", "safe_open", "load_file", "save_file", "mkstemp",
    "NamedTemporaryFile", "TemporaryDirectory", "fdopen",
}  # fmt: skip
MODULE_OPENERS = {
    "torch": {"load", "save"}, "np": {"load", "save", "savez"}, "numpy": {"load", "save", "savez"},
    "json": {"load", "dump"}, "pickle": {"load", "dump"}, "tomllib": {"load"},
}  # fmt: skip

MODELS = re.compile(
    r"longcat|long_cat|cosmos|hunyuan|fastvideo|fast_video|diffusers|(?<![a-z])(?:wan|flux)(?![a-z])", re.IGNORECASE
)
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}

Files = dict[str, ast.Module]
"""Parsed files by their dotted path below the package: `io.records`, `run`, `execution.__init__`."""


@cache
def nodes(tree: ast.Module) -> list[ast.AST]:
    """Every node of a file, walked once for all rules."""
    return list(ast.walk(tree))


@pytest.fixture(scope="module")
def package() -> Files:
    """The package's own files."""
    return parsed(ROOT)


def parsed(root: Path) -> Files:
    files = {}
    for path in sorted(root.rglob("*.py")):
        dotted = ".".join(path.relative_to(root).with_suffix("").parts)
        files[dotted] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return files


def layer(dotted: str) -> str:
    return dotted.partition(".")[0]


def imports(dotted: str, tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Full dotted names of what a file imports anywhere in it, relative imports resolved."""
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = ["parity", *dotted.split(".")][: -node.level]
                module = ".".join([*above, module] if module else above)
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def upward_imports(files: Files) -> Iterator[str]:
    for dotted, tree in files.items():
        here = layer(dotted)
        allowed = LAYERS.get(here, frozenset()) | {here}
        for name, line in imports(dotted, tree):
            parts = name.split(".")
            target = parts[1] if parts[0] == "parity" and len(parts) > 1 else None
            if target in LAYERS and target not in allowed:
                yield f"{dotted}:{line} imports {target}, which is not below {here}"


def unplaced_files(files: Files) -> Iterator[str]:
    strangers = (dotted for dotted in files if layer(dotted) not in {*LAYERS, "__init__"})
    yield from (f"{dotted} has no place in the table of layers" for dotted in strangers)


def misplaced_libraries(files: Files) -> Iterator[str]:
    for dotted, tree in files.items():
        for name, line in imports(dotted, tree):
            top = name.partition(".")[0]
            if layer(dotted) not in LIBRARIES.get(top, {layer(dotted)}):
                yield f"{dotted}:{line} imports {top}, which belongs in {', '.join(sorted(LIBRARIES[top]))}"
            if top == "torch" and layer(dotted) in NO_TORCH:
                yield f"{dotted}:{line} imports torch"


def opened_files(files: Files) -> Iterator[str]:
    for dotted, tree in files.items():
        for node in nodes(tree) if layer(dotted) != "io" else ():
            if isinstance(node, ast.Call) and _opens(node.func):
                yield f"{dotted}:{node.lineno} opens a file: {ast.unparse(node.func)}"


def _opens(func: ast.expr) -> bool:
    if isinstance(func, ast.Name):
        return func.id in OPENERS
    if isinstance(func, ast.Attribute):
        owner = func.value.id if isinstance(func.value, ast.Name) else ""
        return func.attr in OPENERS or func.attr in MODULE_OPENERS.get(owner, set())
    return False


def model_names(files: Files) -> Iterator[str]:
    for dotted, tree in files.items():
        if dotted.startswith("lora.formats"):
            continue
        for text, line in _words(tree):
            if MODELS.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", text)):
                yield f"{dotted}:{line} names a model: {text.strip().splitlines()[0][:60]!r}"


def _words(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Identifiers and strings, without docstrings (a string that is a statement of its own)."""
    spoken = {id(n.value) for n in nodes(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}
    for node in nodes(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in spoken:
            yield node.value, line
        for field in ("id", "attr", "arg", "name", "asname", "module"):
            if isinstance(value := getattr(node, field, None), str):
                yield value, line


def prints(files: Files) -> Iterator[str]:
    for dotted, tree in files.items():
        for node in nodes(tree) if layer(dotted) not in {"cli", "plugin"} else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"{dotted}:{node.lineno} prints"


def vague_names(files: Files) -> Iterator[str]:
    for dotted in files:
        if found := VAGUE & {word for part in dotted.split(".") for word in part.split("_")}:
            yield f"{dotted} is named {', '.join(found)}, which says nothing"


Rule = Callable[[Files], Iterator[str]]
RULES: list[Rule] = [
    upward_imports, unplaced_files, misplaced_libraries, opened_files, model_names, prints, vague_names,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule: Rule, package: Files) -> None:
    problems = list(rule(package))
    assert not problems, "\n".join(problems)


BROKEN: list[tuple[Rule, str, str]] = [
    (upward_imports, "numerics/metrics.py", "from parity.execution.shadow import Shadow"),
    (upward_imports, "weights/keymap.py", "def f():\n    import parity.io.records"),
    (upward_imports, "execution/tap.py", "from parity import run"),
    (upward_imports, "execution/__init__.py", "from ..pair import ModelPair"),
    (upward_imports, "lora/formats/peft.py", "from ...execution.shadow import Shadow"),
    (unplaced_files, "extras.py", ""),
    (misplaced_libraries, "run.py", "import pytest"),
    (misplaced_libraries, "plugin.py", "from hypothesis import given"),
    (misplaced_libraries, "report/terminal.py", "from typer import echo"),
    (misplaced_libraries, "errors.py", "import torch.nn"),
    (opened_files, "run.py", "with open('x') as f: pass"),
    (opened_files, "cli.py", "from pathlib import Path\nPath('x').write_text('y')"),
    (opened_files, "weights/source.py", "import torch\ntorch.load('x')"),
    (opened_files, "report/record.py", "import json\njson.dump({}, None)"),
    (model_names, "run.py", "if pair == 'wan': pass"),
    (model_names, "run.py", "class WanTransformer: pass"),
    (model_names, "pair.py", "import diffusers"),
    (model_names, "numerics/limits.py", "LONGCAT_MARGIN = 2"),
    (model_names, "cli.py", "run(wan22=1)"),
    (prints, "run.py", "print('x')"),
    (vague_names, "report/utils.py", ""),
    (vague_names, "io/file_helpers.py", ""),
]


@pytest.mark.parametrize(("rule", "file", "text"), BROKEN)
def test_rule_finds_what_breaks_it(rule: Rule, file: str, text: str, tmp_path: Path) -> None:
    assert list(rule(parsed(planted(tmp_path, file, text))))


KEPT: list[tuple[str, str]] = [
    ("run.py", '"""Wan and LongCat are only spoken of."""\nwanted = "unwanted swans"  # diffusers'),
    ("lora/formats/peft.py", "from parity.weights.source import TensorSource\nDIFFUSERS = 'diffusers'"),
    ("io/records.py", "open('x')"),
    ("cli.py", "import typer\nprint('x')"),
    ("plugin.py", "import pytest"),
    ("execution/shadow.py", "from .tap import Tap\nfrom parity.numerics import metrics\nimport parity"),
]


@pytest.mark.parametrize(("file", "text"), KEPT)
def test_rules_let_pass_what_keeps_them(file: str, text: str, tmp_path: Path) -> None:
    root = planted(tmp_path, file, text)
    assert not [problem for rule in RULES for problem in rule(parsed(root))]


def planted(folder: Path, file: str, text: str) -> Path:
    path = folder / "parity" / file
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return folder / "parity"
