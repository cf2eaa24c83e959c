"""The house rules, read off the source: who may import whom, one door for each library, the kernel mirror.

Every import counts, also one inside a function, under TYPE_CHECKING, or made with `import_module("...")`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from kernels import Backend
from kernels.cuda import source

ROOT = Path(__file__).parent.parent
FLOORS = {"kernels": 0, "stages": 1, "pipeline": 2, "graphs": 2, "examples": 3, "tests": 3}
PACKAGES = ("kernels", "stages", "pipeline", "graphs")

DOORS = {  # library -> the only files of the packages that may import it; numpy may be imported anywhere
    "cupy": {"kernels/cuda/card.py"},
    "gguf": {"pipeline/tools/quantize.py"},
    "jiwer": {"pipeline/tools/score.py"},
    "llvmlite": {"kernels/cpu/machine.py", "kernels/cpu/native/emitter.py"},
    "numba": {"kernels/cpu/native/words.py"},
    "reactivex": {"pipeline/operators.py"},
    "rich": {"pipeline/ends/terminal.py", "pipeline/progress.py"},
    "sounddevice": {"pipeline/ends/mic.py"},
    "soundfile": {"pipeline/ends/file.py"},
    "soxr": {"stages/audio/resample.py"},
    "threadpoolctl": {"pipeline/tools/machine.py"},
    "torch": {"pipeline/tools/card_peers.py"},
    "transformers": {"pipeline/tools/card_peers.py"},
    "whisper_normalizer": {"pipeline/tools/score.py"},
    "yaml": {"pipeline/tree.py"},
}
NOT_DECLARED = {"threadpoolctl", "torch", "transformers"}  # used where they happen to be installed
DECLARED_AS = {  # where the names differ
    "yaml": {"pyyaml"},
    "llvmlite": {"numba"},
    "cupy": {"cupy_cuda12x", "cupy_cuda13x"},
}
EXAMPLES = {"numpy", "reactivex"}  # what an example may ask for; those in examples/train ask for more
NOT_A_STAGES_BUSINESS = {"asyncio", "multiprocessing", "random", "socket", "subprocess", "threading", "time"}
OPS = {  # what each of a backend's seven files defines, in this order
    "linear": ("linear", "embed"),
    "norm": ("rms_norm", "layer_norm"),
    "rope": ("rope",),
    "attention": ("append", "attend"),
    "conv": ("conv1d",),
    "pointwise": ("add", "gelu", "elu", "silu_mul"),
    "select": ("argmax", "nearest", "pick", "advance"),
}
MEMORY = ("zeros", "upload", "adopt", "fetch", "copy", "clear", "ring", "ring_bytes", "free_bytes", "capture")
CUDA = [path for path in sorted((ROOT / "kernels/cuda").iterdir()) if path.suffix in (".cu", ".cuh")]
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
MOST_COLUMNS = 120  # of a CUDA file: signatures are long there; ruff sees to Python
MOST_LINES = 400  # a longer file says "long because" in its docstring
MOST_FUNCTION_LINES = 50  # its docstring not counted

ALONE = """
import sys
from importlib.abc import MetaPathFinder

class OnlyNumpy(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "numpy", "stages", "kernels"}:
            raise ModuleNotFoundError(f"refused: {name}", name=name)

sys.meta_path.insert(0, OnlyNumpy())
import numpy as np
import stages.text.tekken, stages.voxtral.decoder, stages.voxtral.text, stages.weights.folder
from stages import Mel, Resample, bind, pcm
same = bind(Resample(pcm(16_000), to=16_000))
mel = bind(Mel(pcm(16_000)))
frames = sum(p.items for p in mel.step(same.step(np.zeros(16_000, np.float32))[0]) + mel.flush())
print(frames, *sorted(m for m in ("yaml", "reactivex", "soxr", "pipeline") if m in sys.modules))
"""


@cache
def sources(*folders: str) -> tuple[Path, ...]:
    return tuple(sorted(chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders)))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module a file imports, dotted, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: imports are absolute here"
            yield node.module or "", node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value).partition(":")[0], node.lineno


def libraries(path: Path) -> Iterator[tuple[str, int]]:
    """The packages of others that a file imports, the standard library and NumPy aside."""
    ours = {*FLOORS, *(sibling.stem for sibling in path.parent.glob("*.py"))}
    for module, line in imports(path):
        top = module.partition(".")[0]
        if top not in ours and top not in sys.stdlib_module_names and top != "numpy":
            yield top, line


def functions(path: Path) -> dict[str, list[str]]:
    """The functions a file defines, in order, with the names of their arguments."""
    return {
        node.name: [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef)
    }


def signed(op: str) -> list[str]:
    """The argument names of `op` in the contract."""
    code = getattr(Backend, op).__code__
    return list(code.co_varnames[1 : code.co_argcount])


def cuda_code(path: Path) -> str:
    """A CUDA file without its comments."""
    return re.sub(r"//.*", "", path.read_text(encoding="utf-8"))


def backends() -> list[Path]:
    return [
        path.parent
        for path in sources("kernels")
        if path.name == "backend.py" and path.parent != ROOT / "kernels"
    ]


def test_imports_go_down_the_floors_only() -> None:
    wrong = [
        f"{name(path)}:{line}: {module}"
        for path in sources(*FLOORS)
        for module, line in imports(path)
        if FLOORS.get(module.partition(".")[0], 0) > FLOORS[path.relative_to(ROOT).parts[0]]
    ]
    assert not wrong, "imports from above:\n" + "\n".join(wrong)


def test_every_library_comes_in_by_its_own_door() -> None:
    wrong = [
        f"{name(path)}:{line}: {library}"
        for path in sources(*PACKAGES)
        for library, line in libraries(path)
        if name(path) not in DOORS.get(library, ())
    ]
    assert not wrong, "a second door, or a library without one:\n" + "\n".join(wrong)


def test_every_door_is_in_use() -> None:
    used = {(library, name(path)) for path in sources(*PACKAGES) for library, _ in libraries(path)}
    assert not {(library, door) for library, doors in DOORS.items() for door in doors} - used


def test_declared_dependencies_are_those_with_a_door() -> None:
    """What nothing imports is not required, what is imported is; `dev` is for tests and tools."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *chain.from_iterable(extras[e] for e in extras if e != "dev")]
    declared = {re.split(r"[^\w-]", want)[0].lower().replace("-", "_") for want in wanted}
    doors = chain.from_iterable(DECLARED_AS.get(door, {door}) for door in DOORS)
    assert declared == {*doors} - NOT_DECLARED | {"numpy"}


def test_examples_ask_for_nothing_heavy() -> None:
    wrong = [
        f"{name(path)}:{line}: {library}"
        for path in sources("examples")
        if path.parent.name == "examples"
        for library, line in libraries(path)
        if library not in EXAMPLES
    ]
    assert not wrong


def test_models_do_not_know_each_other() -> None:
    models = [path.name for path in (ROOT / "stages").iterdir() if (path / "config.py").is_file()]
    assert "voxtral" in models
    wrong = [
        f"{name(path)}:{line}: {module}"
        for model in models
        for path in sources(f"stages/{model}")
        for module, line in imports(path)
        if any(module.startswith(f"stages.{other}") for other in models if other != model)
    ]
    assert not wrong


def test_stages_read_no_clock_and_start_no_thread() -> None:
    wrong = [
        f"{name(path)}:{line}: {module}"
        for path in sources("stages")
        for module, line in imports(path)
        if module.partition(".")[0] in NOT_A_STAGES_BUSINESS or module.startswith("numpy.random")
    ]
    assert not wrong


def test_kernels_never_mention_what_stands_on_them() -> None:
    word = re.compile(r"\b(stages?|pipeline|voxtral|kyutai)\b", re.IGNORECASE)
    suffixes = (".py", ".cu", ".cuh", ".wgsl", ".md")
    files = [path for path in (ROOT / "kernels").rglob("*") if path.suffix in suffixes]
    wrong = [
        f"{name(path)}:{line}: {text.strip()}"
        for path in files
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_environment_variable_is_read_below_the_pipeline() -> None:
    wrong = [
        f"{name(path)}:{node.lineno}"
        for path in sources("kernels", "stages")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "getenvb")
    ]
    assert not wrong


def test_every_backend_keeps_the_seven_op_files() -> None:
    assert "portable" in {folder.name for folder in backends()}
    for folder in backends():
        missing = [op_file for op_file in OPS if not list(folder.glob(f"{op_file}.*"))]
        assert not missing, f"{name(folder)} has no {missing}"


def test_the_mirror_covers_the_whole_contract() -> None:
    verbs = [verb for verb in vars(Backend) if callable(getattr(Backend, verb)) and not verb.startswith("_")]
    assert verbs == [*MEMORY, *chain.from_iterable(OPS.values())]


@pytest.mark.parametrize("op_file", OPS)
def test_op_files_mirror_the_contract(op_file: str) -> None:
    """Same ops, same order, same argument names; a backend may add arguments of its own behind them.

    What a memory verb does for the file's own layout, as `ring` for attention, may stand there too.
    """
    ops = list(chain.from_iterable(OPS.values()))
    for path in (folder / f"{op_file}.py" for folder in backends()):
        if path.exists():
            found = functions(path)
            assert [op for op in found if op in ops] == list(OPS[op_file]), name(path)
            for op in OPS[op_file]:
                assert found[op][: len(signed(op))] == signed(op), f"{name(path)}: {op}"


def test_the_reference_has_every_op_in_the_same_order() -> None:
    found = functions(ROOT / "kernels/reference.py")
    public = [op for op in found if not op.startswith("_")]
    assert public == list(chain.from_iterable(OPS.values()))
    for op in public:
        named = [argument for argument in signed(op) if argument not in ("out", "ring")]
        missing = [argument for argument in named if argument not in found[op]]
        assert not missing, f"reference.{op} calls {missing} something else"


def test_every_cuda_file_is_built_by_the_gates() -> None:
    assert {path.stem for path in CUDA if path.suffix == ".cu"} == set(source.FILES)


@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.name)
def test_cuda_files_open_with_what_they_compute_and_stay_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("// ")
    assert len(lines) <= MOST_LINES
    assert not [f"{path.name}:{n}" for n, line in enumerate(lines, 1) if len(line) > MOST_COLUMNS]


@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.name)
def test_inline_assembly_stands_in_one_file(path: Path) -> None:
    words = set(re.findall(r"\w+", cuda_code(path)))
    assert path.name == "primitives.cuh" or not words & {"asm", "__asm__"}


@pytest.mark.parametrize("path", CUDA, ids=lambda path: path.name)
def test_every_kernel_states_its_registers_and_a_block_of_whole_warps(path: Path) -> None:
    """Tools read these two lines: the gates of the compiler and the emulator."""
    kernels = cuda_code(path).count("__global__")
    if path.suffix == ".cuh":
        assert not kernels, "kernels stand in .cu files"
    else:
        assert kernels == len(source.kernels(path.stem)) > 0
        blocks = re.findall(r"__global__ void\s+__launch_bounds__\((\d+)[,)]", cuda_code(path))
        assert len(blocks) == kernels
        assert not [block for block in blocks if int(block) % 32 or not 32 <= int(block) <= 1024]


def test_no_backend_leans_on_the_reference() -> None:
    wrong = [
        name(path)
        for folder in backends()
        for path in sources(name(folder))
        for module, _ in imports(path)
        if module.startswith("kernels.reference")
    ]
    assert not wrong


def test_package_doors_hold_no_logic() -> None:
    wrong = [
        f"{name(path)}:{node.lineno}"
        for path in sources(*PACKAGES)
        if path.name == "__init__.py"
        for node in tree(path).body
        if not (
            isinstance(node, ast.Import | ast.ImportFrom)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__")
        )
    ]
    assert not wrong


def test_modules_are_named_after_what_they_hold() -> None:
    assert not [name(path) for path in sources(*FLOORS) if path.stem in EMPTY_NAMES]


def test_files_stay_short_or_say_why() -> None:
    wrong = [
        f"{name(path)}: {lines} lines"
        for path in sources(*FLOORS)
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MOST_LINES
        and "long because" not in (ast.get_docstring(tree(path)) or "").lower()
    ]
    assert not wrong


def test_functions_stay_short() -> None:
    wrong = [
        f"{name(path)}:{node.lineno}: {node.name}"
        for path in sources(*PACKAGES)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef) and written_lines(node) > MOST_FUNCTION_LINES
    ]
    assert not wrong


def written_lines(node: ast.FunctionDef) -> int:
    start = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - start.lineno + 1


def test_every_module_opens_with_a_docstring() -> None:
    silent = [
        name(path)
        for path in sources(*FLOORS)
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree(path))
    ]
    assert not silent


def test_nothing_is_left_for_later() -> None:
    later = re.compile(r"#.*\b(TODO|FIXME|XXX)\b")
    assert not [name(path) for path in sources(*PACKAGES) if later.search(path.read_text(encoding="utf-8"))]


def test_the_repository_names_no_package_index() -> None:
    """Whoever installs decides where packages come from: no lock file, no index address, no link list."""
    address = re.compile(r"(--(extra-)?index-url|--find-links|\[\[?tool\.uv\.index|(extra-)?index-url\s*=)")
    files = [ROOT / "pyproject.toml", *ROOT.glob("*.md"), *ROOT.glob(".ci/*"), *ROOT.glob("examples/**/*.md")]
    assert not [name(path) for path in files if address.search(path.read_text(encoding="utf-8"))]
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "uv.lock" in ignored


def test_stages_work_with_numpy_alone() -> None:
    command = [sys.executable, "-W", "error", "-c", ALONE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["100"]
