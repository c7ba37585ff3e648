"""Rules of the house that no linter knows."""

import ast
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
import types
from importlib import metadata
from pathlib import Path

import pytest

import prunella
from prunella import config, errors
from prunella.cli import onnx_files

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src" / "prunella").rglob("*.py"))
EXPORTED = {name: getattr(prunella, name) for name in prunella.__all__}
ERRORS = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


def relative(path):
    return str(path.relative_to(ROOT))


def calls(path):
    """Yield (dotted name, keyword arguments by name) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield ast.unparse(node.func), given


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_public_names_are_exactly_those_listed():
    public = {
        name
        for name, value in vars(prunella).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public == set(prunella.__all__)
    assert len(prunella.__all__) == len(set(prunella.__all__))


def test_type_checkers_see_the_same_names():
    source = ast.parse(Path(prunella.__file__).read_text(encoding="utf-8"))
    block = next(node for node in source.body if isinstance(node, ast.If))
    seen = {alias.asname: f"{n.module}.{alias.name}" for n in block.body for alias in n.names}
    assert set(seen) == set(prunella.__all__)
    for name, origin in seen.items():
        module, _, attribute = origin.rpartition(".")
        assert getattr(sys.modules[module], attribute) is EXPORTED[name]


def test_public_names_are_sorted():
    # Constants, then classes, then functions, as the formatter has them.
    def key(name):
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    assert list(prunella.__all__) == sorted(prunella.__all__, key=key)


@pytest.mark.parametrize("name", [name for name in EXPORTED if callable(EXPORTED[name])])
def test_every_exported_name_is_explained(name):
    text = inspect.getdoc(EXPORTED[name]) or ""
    assert len(text.split()) >= 4, f"`prunella.{name}` has no docstring to speak of"


def test_the_version_stands_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata.version("prunella"))
    assert not hasattr(prunella, "__version__"), "ask importlib.metadata, which cannot drift"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_the_command_line_prints(path):
    if "cli" in path.relative_to(ROOT / "src" / "prunella").parts[0]:
        return
    assert "print" not in {name for name, _ in calls(path)}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_pickle_is_written_or_read(path):
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert not {name.split(".")[0] for name in imported(path)} & banned
    for name, given in calls(path):
        assert name != "torch.save"
        if name == "torch.load":
            assert given.get("weights_only") == "True"
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False"


def required(path: Path) -> set[str]:
    """Name what is imported by `prunella.runtimes.runtime.required`."""
    return set(re.findall(r'\brequired\("([\w.]+)"', path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_file_is_called_utils(path):
    assert not re.search(r"util|helper|common|misc", path.stem)


def test_every_import_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[n] for n in ("demo", "vision", "onnx", "openvino"))]
    declared = {re.match(r"[\w-]+", entry)[0].lower() for found in lists for entry in found}
    distributions = metadata.packages_distributions()
    used = {
        distributions[top][0].lower()
        for path in SOURCES
        for top in {name.split(".")[0] for name in [*imported(path), *required(path)]}
        if top not in sys.stdlib_module_names and top != "prunella"
    }
    assert used == declared, "an import that is not declared, or a dependency without a user"


def test_importing_is_light():
    code = (
        "import prunella, torch, sys, json; [getattr(prunella, n) for n in prunella.__all__]; "
        "print(json.dumps([torch.cuda.is_initialized(), sorted(sys.modules)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    cuda, modules = json.loads(done.stdout)
    assert not cuda
    heavy = {"torchvision", "timm", "transformers", "accelerate", "optuna", "plotly", "typer"}
    assert not heavy & set(modules), "import these where they are used"
    assert done.stderr == ""


def test_every_error_is_in_the_tree():
    tree = (errors.__doc__ or "").splitlines()
    for cls in ERRORS:
        line = next((line for line in tree if re.search(rf"\b{cls.__name__}\b", line)), None)
        assert line is not None, f"{cls.__name__} is missing from the tree in errors.py"
        assert issubclass(cls, errors.PrunellaError)
        assert ("also ValueError" in line) == issubclass(cls, ValueError)
        assert cls.__doc__


def test_no_bare_exceptions_are_raised():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                assert ast.unparse(node.exc.func) not in ("Exception", "RuntimeError"), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/index.md",
        "docs/guides/resnet.md",
        "docs/guides/own-operator.md",
        "docs/guides/exporting.md",
    ],
)
def test_code_on_the_first_pages_runs(page, tmp_path, monkeypatch):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    )
    assert blocks
    monkeypatch.chdir(tmp_path)
    # One namespace: a page is read from top to bottom.
    names = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def commands():
    """Find every `prunella ...` a reader may type, as (page, arguments)."""
    pages = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in (*pages, *sorted((ROOT / "examples").glob("*.py"))):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ").replace("$(WORK)", "demo")
        for found in re.finditer(
            r"(?:\$ |\(BIN\)/|`|-m )prunella ((?:run|init|analyze|prune|finetune) ?[^`\n|]*)", text
        ):
            yield pytest.param(found[1].split(), id=f"{page.name}: {found[1]}")


@pytest.mark.parametrize("arguments", list(commands()))
def test_commands_on_the_pages_are_understood(arguments):
    if onnx_files.meant(arguments[1:]):
        assert onnx_files.parsed(arguments[1:])
        return
    # A switch of the verb itself, not a setting; tests/integration/test_cli.py runs it.
    arguments = [word for word in arguments if word != "--dry-run"]
    settings = [word for word in arguments[1:] if word.startswith("--")]
    rest = arguments[arguments.index(settings[0]) :] if settings else []
    config.load(overrides=config.parse_overrides(rest))


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def anchors(page):
    """List the anchors of a page's headings, as the documentation's generator makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=relative)
def test_links_of_the_documentation_stay_inside_it(page):
    """What lies outside of docs/ is not on the site, and `make docs` refuses it."""
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", text):
        found = (page.parent / target).resolve() if target else page
        assert found.is_file(), f"it links to {target}"
        assert found.is_relative_to(ROOT / "docs"), f"it links to {target}"
        assert not anchor or anchor in anchors(found), f"{target} has no {anchor}"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r"- ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = (page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md"))
    assert sorted(listed) == sorted(map(str, pages))


def documented():
    """Name everything that a page of the reference is generated from."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return re.findall(r"^::: (\S+)$", "\n".join(page.read_text() for page in pages), re.MULTILINE)


def test_the_reference_has_every_public_name():
    pages = {*documented()}
    if "prunella.errors" in pages:
        pages |= {f"prunella.{cls.__name__}" for cls in ERRORS}
    missing = {f"prunella.{name}" for name in prunella.__all__} - pages
    assert not missing, "say them in docs/reference/"


@pytest.mark.parametrize("name", documented())
def test_what_the_reference_names_exists(name):
    assert pkgutil.resolve_name(name).__doc__


def called():
    """Find the calls that pages name by their full path, as (page, name)."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name in sorted(set(re.findall(r"(?<![\w/.])prunella(?:\.[A-Za-z_]\w*)+(?=\()", text))):
            yield pytest.param(name, id=f"{page.name}: {name}")


@pytest.mark.parametrize("name", list(called()))
def test_what_the_pages_call_exists(name):
    assert callable(pkgutil.resolve_name(name))


def test_contributing_stays_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 60
