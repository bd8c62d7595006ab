"""The rules of the house, checked on the repository's source: floors, megatron, work at import, sizes.

Each rule is a function of a path and its source that returns what is wrong, so that each is shown to fail
on a planted source.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("tpt_megatron", "kernels", "tools", "examples", "tests")
FLOORS = {
    **dict.fromkeys(("errors", "artifact", "slots"), 0),
    **dict.fromkeys(("config", "records", "tokenizer", "tpt_kernels"), 1),
    **dict.fromkeys(("models", "thinking", "data"), 2),
    "mcore": 3,
    **dict.fromkeys(("train", "convert", "evaluate", "plan", "report", "launch"), 4),
    **dict.fromkeys(("cli", "__main__"), 5),
    **dict.fromkeys(("tools", "examples", "tests"), 6),
}
SHARED_FLOORS = (0, 5, 6)  # here neighbours may import each other: artifact raises errors, __main__ calls cli
ENVIRONMENT_READERS = ("tpt_megatron/cli.py", "tpt_megatron/launch/", "tpt_megatron/mcore/groups.py")
OPTIONAL = frozenset(
    {
        "ray",
        "wandb",
        "mlflow",
        "tensorboard",
        "lm_eval",
        "math_verify",
        "transformer_engine",
        "apex",
        "sglang",
        "liger_kernel",
        "cut_cross_entropy",
        "flash_attn",
        "quack",
        "aiter",
        "sentencepiece",
        "py3langid",
        "rensa",
        "datatrove",
        "datasets",
    }
)
# Calls that only describe something: a type, a constant, a pattern, a record, a kernel not yet compiled.
HARMLESS_CALLS = frozenset(
    {"Path", "PurePath", "PurePosixPath", "frozenset", "set", "tuple", "dict", "list", "range"}
    | {"enumerate", "zip", "sorted", "TypeVar", "ParamSpec"}
    | {"NewType", "namedtuple", "NamedTuple", "MappingProxyType", "partial", "Final", "slice"}
    | {"Field", "field", "ConfigDict", "dataclass", "field_validator", "model_validator", "contextmanager"}
    | {"re.compile", "pa.schema", "pa.field", "np.dtype", "torch.device", "struct.Struct"}
    | {f"pa.{name}" for name in ("string", "int8", "int32", "int64", "bool_", "float32", "float64", "list_")}
    | {"triton.jit", "triton.autotune", "triton.heuristics", "triton.Config", "torch.no_grad", "tl.constexpr"}
    | {"torch.library.custom_op", "torch.library.triton_op", "torch.library.register_fake"}
    | {"torch.inference_mode", "dict.fromkeys", "functools.wraps", "functools.lru_cache"}
    | {"Family", "Rule"}  # model families are data: records of models/family.py
)  # fmt: skip
DEFINITIONS = (
    *(ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
    *(ast.Assign, ast.AnnAssign, ast.TypeAlias, ast.Pass),
)
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_KERNEL_LINES = 400, 60, 150

type Rule = Callable[[PurePosixPath, str], list[str]]


@functools.cache
def parse(source: str) -> ast.Module:
    return ast.parse(source)


@functools.cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parse(source)))


def room_of(path: PurePosixPath) -> str:
    """The room that a file stands in: what FLOORS has names for."""
    if path.parts[0] == "kernels":
        return "tpt_kernels"
    return PurePosixPath(path.parts[1]).stem if path.parts[0] == "tpt_megatron" else path.parts[0]


def imported(path: PurePosixPath, node: ast.AST) -> Iterator[str]:
    """Dotted names that a node imports, relative ones made absolute, `import_module("...")` included."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = path.parts[: len(path.parts) - node.level] if node.level else ()
        base = ".".join([*above, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        yield from (
            a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)
        )


def floors(path: PurePosixPath, source: str) -> list[str]:
    """Imports point down: to a lower floor, or within the room."""
    wrong = []
    room = room_of(path)
    for node in nodes(source):
        for name in imported(path, node):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0] if package == "tpt_megatron" else package
            if package not in ("tpt_megatron", "tpt_kernels", "tools", "examples", "tests") or target == room:
                continue
            if room not in FLOORS or target not in FLOORS:
                wrong.append(f"{path}:{node.lineno}: no floor for {room} or {target}")
            elif room == "tpt_kernels":
                wrong.append(f"{path}:{node.lineno}: tpt_kernels imports {name}")
            elif FLOORS[target] > FLOORS[room]:
                wrong.append(f"{path}:{node.lineno}: {room} imports {name} from a floor above")
            elif FLOORS[target] == FLOORS[room] and FLOORS[room] not in SHARED_FLOORS:
                wrong.append(f"{path}:{node.lineno}: {room} imports its neighbour {name}")
    return wrong


def megatron(path: PurePosixPath, source: str) -> list[str]:
    """`megatron` is imported in mcore/ only, inside of functions too; tests are free."""
    if path.is_relative_to("tpt_megatron/mcore") or path.parts[0] == "tests":
        return []
    return [
        f"{path}:{node.lineno}: imports {name}"
        for node in nodes(source)
        for name in imported(path, node)
        if name.partition(".")[0] == "megatron"
    ]


def runs_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that an import runs: the module's and its classes', not those for type checkers."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.ClassDef):
            yield from runs_at_import(statement.body)
        elif isinstance(statement, ast.Try):
            handlers = [s for handler in statement.handlers for s in handler.body]
            yield from runs_at_import([*statement.body, *handlers, *statement.orelse, *statement.finalbody])
        elif isinstance(statement, ast.If) and not is_inert_if(statement):
            yield from runs_at_import([*statement.body, *statement.orelse])


def is_inert_if(statement: ast.If) -> bool:
    test = ast.unparse(statement.test)
    return (
        test in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'") and not statement.orelse
    )


def evaluated(statement: ast.stmt) -> list[ast.expr]:
    """The expressions that running a statement of a module or class body evaluates."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
        defaults = [*statement.args.defaults, *(d for d in statement.args.kw_defaults if d is not None)]
        return [*statement.decorator_list, *defaults]
    if isinstance(statement, ast.ClassDef):
        return [*statement.decorator_list, *statement.bases, *(k.value for k in statement.keywords)]
    if isinstance(statement, ast.Assign | ast.AnnAssign):
        return [statement.value] if statement.value is not None else []
    return []


def calls(expression: ast.expr) -> Iterator[ast.Call]:
    """Calls in an expression, those in the body of a lambda excepted."""
    waiting: list[ast.AST] = [expression]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call):
            yield node
        if not isinstance(node, ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def records(source: str) -> set[str]:
    """The classes of a module that are plain records, so that making one at import is a constant."""
    return {
        node.name
        for node in nodes(source)
        if isinstance(node, ast.ClassDef)
        and re.search(r"\b(?:dataclass|Section|NamedTuple)\b", ", ".join(map(ast.unparse, evaluated(node))))
    }


def import_work(path: PurePosixPath, source: str) -> list[str]:
    """Importing a module of ours only defines: no statement or call that does work."""
    if path.parts[0] not in ("tpt_megatron", "kernels"):
        return []
    wrong = []
    for statement in runs_at_import(parse(source).body):
        inert = isinstance(statement, ast.If) and is_inert_if(statement)
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        foreign = any(isinstance(target, ast.Attribute | ast.Subscript) for target in targets)
        if foreign or not (inert or docstring or isinstance(statement, DEFINITIONS)):
            wrong.append(
                f"{path}:{statement.lineno}: work at import: {ast.unparse(statement).splitlines()[0]}"
            )
        for call in (call for expression in evaluated(statement) for call in calls(expression)):
            name = ast.unparse(call.func)
            record = name.endswith(("Config", "Options")) or name in records(source)
            if not record and name not in HARMLESS_CALLS and name != "Path(__file__).with_name":
                wrong.append(f"{path}:{call.lineno}: work at import: calls {name}")
    return wrong


def environment(path: PurePosixPath, source: str) -> list[str]:
    """Environment variables are read in cli.py, launch/ and mcore/groups.py only; tests are free."""
    if path.parts[0] == "tests" or str(path).startswith(ENVIRONMENT_READERS):
        return []
    names = ("environ", "environb", "getenv", "getenvb")
    wrong = []
    for node in nodes(source):
        attribute = isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os"
        from_os = isinstance(node, ast.ImportFrom) and node.module == "os"
        if attribute or (from_os and any(alias.name in names for alias in node.names)):
            wrong.append(f"{path}:{node.lineno}: reads the environment")
    return wrong


def optional_imports(path: PurePosixPath, source: str) -> list[str]:
    """What comes with an extra is imported inside the one function that uses it; tests may skip on it."""
    if path.parts[0] == "tests":
        return []
    return [
        f"{path}:{statement.lineno}: imports the optional {name} with the module"
        for statement in runs_at_import(parse(source).body)
        for name in imported(path, statement)
        if name.partition(".")[0] in OPTIONAL
    ]


def sizes(path: PurePosixPath, source: str) -> list[str]:
    """No file over 400 lines, no function over a screen; a kernel may take 150 lines."""
    lines = len(source.splitlines())
    wrong = [f"{path}: {lines} lines, at most {MAX_FILE_LINES}"] if lines > MAX_FILE_LINES else []
    limit = MAX_KERNEL_LINES if path.parts[0] == "kernels" else MAX_FUNCTION_LINES
    for node in nodes(source):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if length > limit:
                wrong.append(f"{path}:{node.lineno}: {node.name} has {length} lines, at most {limit}")
    return wrong


RULES: tuple[Rule, ...] = (floors, megatron, import_work, environment, optional_imports, sizes)


@functools.cache
def repository() -> tuple[tuple[PurePosixPath, str], ...]:
    """Every Python file of the repository's own folders."""
    files = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    return tuple((PurePosixPath(path.relative_to(ROOT).as_posix()), path.read_text()) for path in files)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_repository_keeps(rule: Rule) -> None:
    assert len(repository()) > 20
    assert [problem for path, source in repository() for problem in rule(path, source)] == []


LONG_FUNCTION = "def long():\n" + "    x = 1\n" * 60
BREACHES = [
    (floors, "tpt_megatron/models/a.py", "from tpt_megatron.mcore import model", "floor above"),
    (floors, "tpt_megatron/models/a.py", "from tpt_megatron import mcore", "floor above"),
    (floors, "tpt_megatron/records.py", "def f():\n    import tpt_megatron.data.pack", "floor above"),
    (floors, "tpt_megatron/data/a.py", "from ..thinking import job", "its neighbour"),
    (floors, "tpt_megatron/thinking/engines/a.py", "from ...data.pack import pack", "its neighbour"),
    (floors, "tpt_megatron/train/a.py", "from tpt_megatron.report import page", "its neighbour"),
    (floors, "tpt_megatron/config/a.py", "import_module('tpt_megatron.cli')", "floor above"),
    (floors, "tpt_megatron/cli.py", "import tools.preprocess_thinking", "floor above"),
    (floors, "kernels/tpt_kernels/a.py", "from tpt_megatron.errors import TptError", "tpt_kernels imports"),
    (floors, "tpt_megatron/attic/a.py", "import tpt_megatron.errors", "no floor"),
    (megatron, "tpt_megatron/train/a.py", "import megatron.core", "imports megatron.core"),
    (megatron, "tpt_megatron/models/a.py", "def f():\n    from megatron.core import a", "imports"),
    (megatron, "tools/a.py", "importlib.import_module('megatron.core.models')", "imports megatron.core"),
    (import_work, "tpt_megatron/a.py", "print('hello')", "print"),
    (import_work, "tpt_megatron/a.py", "DEVICE = torch.cuda.is_available()", "is_available"),
    (import_work, "kernels/tpt_kernels/a.py", "for x in (1, 2):\n    pass", "for x"),
    (import_work, "tpt_megatron/a.py", "class A:\n    files = os.listdir('.')", "listdir"),
    (import_work, "tpt_megatron/a.py", "def f(at=time.time()): ...", "time.time"),
    (import_work, "tpt_megatron/a.py", "@register('x')\ndef f(): ...", "register"),
    (import_work, "tpt_megatron/a.py", "try:\n    import x\nexcept ImportError:\n    x = None", "try"),
    (import_work, "tpt_megatron/a.py", "if DEBUG:\n    x = 1", "if DEBUG"),
    (import_work, "tpt_megatron/mcore/host.py", "torch.cuda.current_device = f", "work at import"),
    (import_work, "tpt_megatron/a.py", "class A: ...\nx = A()", "calls A"),
    (import_work, "tpt_megatron/a.py", "x = TextTokenizer('name')", "calls TextTokenizer"),
    (environment, "tpt_megatron/train/a.py", "def f():\n    return os.environ['A']", "environment"),
    (environment, "tpt_megatron/mcore/host.py", "from os import getenv", "environment"),
    (environment, "kernels/tpt_kernels/a.py", "x = os.getenv('A')", "environment"),
    (optional_imports, "tpt_megatron/train/a.py", "import wandb", "optional wandb"),
    (optional_imports, "tpt_megatron/a.py", "try:\n    import lm_eval.api\nfinally:\n    pass", "lm_eval"),
    (optional_imports, "tools/a.py", "from ray import data", "optional ray"),
    (sizes, "tpt_megatron/a.py", LONG_FUNCTION, "long has 61 lines"),
    (sizes, "tests/a.py", "class A:\n    def f(self):\n" + "        x = 1\n" * 60, "f has 61 lines"),
    (sizes, "kernels/tpt_kernels/a.py", "def f():\n" + "    x = 1\n" * 150, "f has 151 lines"),
    (sizes, "tools/a.py", "\n" * 401, "401 lines"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source", "problem"), BREACHES)
def test_a_breach_is_found(rule: Rule, path: str, source: str, problem: str) -> None:
    (found,) = rule(PurePosixPath(path), source)
    assert problem in found


KEPT = [
    (floors, "tpt_megatron/cli.py", "def f():\n    from tpt_megatron.train import a\n    import tpt_kernels"),
    (floors, "tpt_megatron/artifact.py", "from tpt_megatron.errors import DamagedError"),
    (floors, "tpt_megatron/__main__.py", "from tpt_megatron.cli import main"),
    (floors, "tpt_megatron/thinking/engines/a.py", "from ..job import f\nfrom tpt_megatron import records"),
    (floors, "tests/data/a.py", "import tpt_megatron.cli"),
    (megatron, "tpt_megatron/mcore/a.py", "def f():\n    from megatron.core import parallel_state"),
    (megatron, "tests/mcore/a.py", "import megatron.core"),
    (megatron, "tpt_megatron/train/a.py", "import tpt_megatron.mcore.model"),
    (import_work, "tpt_megatron/a.py", "A = re.compile('a')\nB: tuple[str] = ('b',)\ntype C = list[int]"),
    (import_work, "tpt_megatron/a.py", "if __name__ == '__main__':\n    main()"),
    (import_work, "tpt_megatron/a.py", "@dataclass(frozen=True)\nclass A:\n    x: int = field(default=0)"),
    (import_work, "tpt_megatron/a.py", "@dataclass\nclass A: ...\ndef f(a=A(), b=lambda: g()): ..."),
    (import_work, "tools/a.py", "print('hello')"),
    (environment, "tpt_megatron/launch/a.py", "def f():\n    return os.environ['A']"),
    (environment, "tpt_megatron/mcore/groups.py", "import os\nos.environ.get('RANK')"),
    (optional_imports, "tpt_megatron/train/a.py", "def f():\n    import wandb"),
    (optional_imports, "tpt_megatron/a.py", "if TYPE_CHECKING:\n    import ray"),
    (sizes, "tpt_megatron/a.py", LONG_FUNCTION.replace("    x = 1\n", "", 1)),
    (sizes, "kernels/tpt_kernels/a.py", LONG_FUNCTION),
    (sizes, "tools/a.py", "\n" * 400),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "path", "source"), KEPT)
def test_what_keeps_the_rules_passes(rule: Rule, path: str, source: str) -> None:
    assert rule(PurePosixPath(path), source) == []
