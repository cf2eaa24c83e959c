"""What is shipped is whole: the wheel, a machine with NumPy alone, and every command the README gives.

The slow ones install into fresh environments and need a package index; `.ci/run` runs them.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from pipeline.cli import RANDOM, make_parser
from pipeline.graph import parse_graph
from pipeline.plugs import check_ports
from tests.test_architecture import ALONE
from tests.test_examples import AUDIO, rows

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("graphs", "kernels", "pipeline", "stages")
NEEDS_MORE = re.compile(r"\bmic\b|talk|[*]|voxtral")  # than a clone has: a microphone, recordings, weights
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache")
MOST_WHEEL_BYTES = 20_000_000  # 16 MB of models and a little code


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def readme_commands() -> list[list[str]]:
    """The arguments of every `python -m pipeline ...` of the README."""
    return [shlex.split(line) for line in re.findall(r"python -m pipeline ([^`#&\n]+)", README)]


def shell(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed, in an environment that names no other weights."""
    env = {name: value for name, value in os.environ.items() if name not in ("VOXTRAL", "PYTHONPATH")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def fresh(folder: Path, *packages: str | Path) -> Path:
    """The python of a new environment that holds `packages` and what they require."""
    shell(sys.executable, "-m", "venv", folder, cwd=ROOT)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    shell(python, "-m", "pip", "install", "-q", *packages, cwd=ROOT)
    return python


@pytest.fixture(scope="module")
def spoken() -> str:
    """What the default recording says."""
    return next(row["text"] for row in rows(AUDIO / "transcripts.tsv") if row["file"] == "default.flac")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout and nothing stale is taken along."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=LEFT_OUT)
    shell(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", folder / "source", cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_versions_agree() -> None:
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest is not None
    assert PROJECT["project"]["version"] == newest[1] == version("headrace")


def test_headrace_is_the_command_line() -> None:
    (script,) = entry_points(group="console_scripts", name="headrace")
    assert script.value == "pipeline.cli:main"
    assert callable(script.load())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_ships(package: str) -> None:
    """What is neither Python nor covered by package-data would be missing from the wheel."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"][package]
    covered = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    files = {path for path in (ROOT / package).rglob("*.*") if "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} <= covered
    assert all((path.parent / "__init__.py").is_file() for path in files if path.suffix == ".py")


def test_type_checkers_may_read_the_packages() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in ("kernels", "pipeline", "stages"))


def test_readme_python_runs(monkeypatch, capsys, spoken: str) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    for block in readme_blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.startswith(spoken + "\n")


def test_readme_graphs_are_valid() -> None:
    assert readme_blocks("yaml")
    for text in readme_blocks("yaml"):
        check_ports(parse_graph(text, "README.md", folder=ROOT / "graphs"))


def test_readme_commands_exist() -> None:
    commands = readme_commands()
    assert {"run", "transcribe", "quantize", "weights"} <= {command[0] for command in commands}
    for command in commands:
        if "--help" not in command:
            two_words = " ".join(command[:2]) == RANDOM
            words = [RANDOM, *command[2:]] if two_words else command
            arguments, rest = make_parser().parse_known_args(words)
            assert arguments.takes_params or not rest, command


def test_readme_names_files_that_exist() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)", README)
    named = re.findall(r"\b(?:examples|graphs)/[\w./-]*\w", README)
    assert not [name for name in {*linked, *named} if not (ROOT / name).exists()]


@pytest.mark.slow
def test_readme_commands_run(spoken: str) -> None:
    said = {
        " ".join(command): shell(sys.executable, "-m", "pipeline", *command, cwd=ROOT)
        for command in readme_commands()
        if not NEEDS_MORE.search(" ".join(command))
    }
    assert said["run graphs/file.yaml"] == spoken + "\n"


@pytest.mark.slow
def test_wheel_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert {"graphs/file.yaml", "graphs/audio/default.flac", "stages/py.typed"} <= names
    assert any(name.startswith("graphs/models/small-voxtral/") for name in names)
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels").rglob("*.cu*")} <= names
    assert {Path(name).name for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}
    assert wheel.stat().st_size < MOST_WHEEL_BYTES


@pytest.mark.slow
def test_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path, spoken: str) -> None:
    python = fresh(tmp_path / "env", wheel)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert shell(python, "-m", "pipeline", "run", "file", cwd=elsewhere) == spoken + "\n"
    assert shell(python.with_name("headrace"), "run", "file", cwd=elsewhere) == spoken + "\n"
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_stages_work_where_numpy_is_all_there_is(wheel: Path, tmp_path: Path) -> None:
    python = fresh(tmp_path / "env", "numpy")
    shell(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=tmp_path)
    assert shell(python, "-W", "error", "-c", ALONE, cwd=tmp_path).split() == ["100"]


@pytest.mark.slow
def test_uv_runs_graphs_and_tests_from_a_clone(tmp_path: Path, spoken: str) -> None:
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    clone = tmp_path / "clone"
    shutil.copytree(ROOT, clone, ignore=LEFT_OUT)
    run = (uv, "run", "--quiet", "--python", sys.executable)
    assert shell(*run, "python", "-m", "pipeline", "run", "graphs/file.yaml", cwd=clone) == spoken + "\n"
    assert " passed" in shell(*run, "--extra", "dev", "pytest", "tests/test_architecture.py", cwd=clone)
