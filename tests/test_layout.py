"""The house rules no linter knows: where packages are found, what an import loads, what an `__init__.py` may hold."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Collection
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((REPO_ROOT / "pyproject.toml").read_text())
PACKAGES: list[str] = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
PYTHON_FILES = sorted(
    path
    for folder in (*PACKAGES, "tests", "benchmarks")
    for path in (REPO_ROOT / folder).rglob("*.py")
    if not any(part.startswith(".") for part in path.relative_to(REPO_ROOT).parts)
)
SERVICE_CLIENTS = ("confluent_kafka", "kafka", "aiokafka", "faust", "redis", "prometheus_client", "litestar", "httpx")


def in_repo(path: Path) -> str:
    return str(path.relative_to(REPO_ROOT))


def test_the_six_packages_are_the_folders_of_the_architecture() -> None:
    assert PACKAGES == ["stream", "model", "utility_blender", "ranker", "sim", "freshrank"]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_found_in_this_checkout_and_not_under_tests(package: str) -> None:
    module = importlib.import_module(package)
    assert Path(str(module.__file__)).parent == REPO_ROOT / package


@pytest.mark.parametrize("path", [path for path in PYTHON_FILES if path.name == "__init__.py"], ids=in_repo)
def test_init_file_holds_a_docstring_at_most(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)
    assert len(body) <= 1


def test_every_folder_with_python_files_is_a_package() -> None:
    folders = {path.parent for path in PYTHON_FILES}
    assert not [in_repo(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()]


def test_no_top_level_package_is_named_like_a_standard_library_module() -> None:
    assert not set(PACKAGES) & sys.stdlib_module_names


def test_schema_imports_without_any_client_or_array_library() -> None:
    assert not loaded_by(["stream.schema"]) & {*SERVICE_CLIENTS, "torch", "numpy", "pyarrow"}


def test_utility_blender_imports_without_torch() -> None:
    assert not loaded_by(modules_of("utility_blender") - {"utility_blender.store_redis"}) & {*SERVICE_CLIENTS, "torch"}


def test_model_imports_where_neither_kafka_nor_redis_is_installed() -> None:
    assert not loaded_by(modules_of("model") - {"model.store_redis", "model.row_store_redis"}) & set(SERVICE_CLIENTS)


def modules_of(package: str) -> set[str]:
    files = (path for path in PYTHON_FILES if path.is_relative_to(REPO_ROOT / package))
    return {in_repo(path.with_suffix("")).replace("/", ".").removesuffix(".__init__") for path in files}


def loaded_by(modules: Collection[str]) -> set[str]:
    """Returns the top-level names in `sys.modules` after a fresh interpreter has imported these modules."""
    program = (
        "import sys\nfor name in sys.argv[1:]: __import__(name)\nprint(*{m.partition('.')[0] for m in sys.modules})"
    )
    argv = [sys.executable, "-c", program, *sorted(modules)]
    run = subprocess.run(argv, cwd=REPO_ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())
