"""The house of the design: who may import whom, what an import costs, and how functions take their arguments."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cnn_jax

ROOT = Path(cnn_jax.__file__).parent
GROUND = {"models", "tasks", "data", "annotation", "analysis", "reporting"}
# Modules that lie in no folder: everyone may use the first three; the others join the parts.
LOOSE = {
    "errors": set(),
    "files": {"errors"},
    "statistics": set(),
    "runtime": {"errors", "files"},
    "cli": {"errors"},
    "run": {"errors", "reporting"},
}
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(cnn_jax.__path__, "cnn_jax.") if "__main__" not in module.name
)
PACKAGES = [name for name in MODULES if hasattr(importlib.import_module(name), "__path__")]

# Optional parameters that may be given by position, and why.
BY_POSITION = {
    "cnn_jax.reporting.pictures.image_grid": "titles are data as much as the images are",
    "cnn_jax.reporting.pictures.feature_maps_side_by_side": "the image is data as much as its feature maps are",
    "cnn_jax.reporting.progress.Progress.update": "values are data, not an option",
    "cnn_jax.reporting.progress.Progress.line": "text is data, not an option",
    "cnn_jax.reporting.style.power_of_ten": "matplotlib calls it with a position that it ignores",
    "cnn_jax.reporting.style.short_number": "matplotlib calls it with a position that it ignores",
    "cnn_jax.reporting.overlays.with_classes": "the map is data as much as the image is",
    "cnn_jax.tasks.coco.iou": "whose crowds they are is data as much as the boxes are",
    "cnn_jax.training.parallel.parallel": "the name of the way, as in create(name)",
}


def imported(source: str, module: str, *, package: bool) -> set[str]:
    """The modules that Python code names in its imports, in functions too; relative ones are made absolute."""
    parents = module.split(".") if package else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def arrows() -> set[tuple[str, str, str]]:
    """(part, part that it imports, file) over the whole package; files at the top are parts of their own."""
    found = set()
    for path in ROOT.rglob("*.py"):
        inside = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(["cnn_jax", *inside]).removesuffix(".__init__")
        for name in imported(path.read_text(), module, package=path.name == "__init__.py"):
            parts = name.split(".")
            if parts[0] == "experiments":
                found.add((inside[0], "experiments", str(path)))
            elif parts[0] == "cnn_jax" and len(parts) > 1 and parts[1] != "__version__":
                found.add((inside[0], parts[1], str(path)))
    return {arrow for arrow in found if arrow[0] != arrow[1]}


def test_the_parser_sees_every_form_of_import():
    source = "import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef h():\n    from .i.j import k"
    seen = {"a.b", "c", "c.d", "x.y", "x.y.e", "x.f", "x.f.g", "x.y.i.j", "x.y.i.j.k"}
    assert imported(source, "x.y.z", package=False) == seen
    assert imported("from .e import f", "x.y", package=True) == {"x.y.e", "x.y.e.f"}


def test_no_arrow_turns_back():
    allowed = (
        {part: {"errors", "files", "statistics"} for part in GROUND}
        | {"training": {"errors", "tasks"}, "__init__": set()}
        | LOOSE
    )
    found = arrows()
    assert {("run", "reporting"), ("data", "errors"), ("training", "errors")} <= {arrow[:2] for arrow in found}
    wrong = [arrow for arrow in found if arrow[1] not in allowed[arrow[0]]]
    assert wrong == []
    # Of tasks, training may know the type alone.
    of_training = {
        name
        for path in (ROOT / "training").glob("*.py")
        for name in imported(path.read_text(), f"cnn_jax.training.{path.stem}", package=False)
        if name.startswith("cnn_jax.tasks")
    }
    assert of_training <= {"cnn_jax.tasks", "cnn_jax.tasks.Task", "cnn_jax.tasks.task", "cnn_jax.tasks.task.Task"}


def test_folders_are_those_of_the_design():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= GROUND | {"training"}
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", *LOOSE}


def test_heavy_packages_are_imported_where_they_are_used():
    """Neither `import cnn_jax` nor its parts load what only some runs need."""
    heavy = ["tensorflow_datasets", "tensorflow", "grain", "orbax", "matplotlib", "tensorboardX", "PIL", "cv2"]
    heavy += ["simplejpeg", "torch", "sklearn"]
    code = (
        "import sys, cnn_jax\n"
        "from cnn_jax import analysis, data, models, reporting, tasks, training, cli, run, runtime\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def functions():
    """(full name, function) of everything public: functions, and methods of public classes."""
    for module_name in MODULES:
        for name, value in vars(importlib.import_module(module_name)).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module_name:
                continue
            if inspect.isfunction(value):
                yield f"{module_name}.{name}", value
            elif inspect.isclass(value):
                generated = {"__init__"} if dataclasses.is_dataclass(value) else set()
                for method_name, method in vars(value).items():
                    public = not method_name.startswith("_") or method_name in ("__init__", "__call__")
                    # A field's default can be a function too, of another name.
                    if not inspect.isfunction(method) or not method.__qualname__.startswith(f"{name}."):
                        continue
                    if public and method_name not in generated:
                        yield f"{module_name}.{name}.{method_name}", method


FUNCTIONS = dict(functions())


def own_parameters(function) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]


def test_functions_are_found():
    assert {"cnn_jax.training.state.create_state", "cnn_jax.data.augment.flip", "cnn_jax.run.Run.__init__"} <= set(
        FUNCTIONS
    )


def test_a_key_comes_first():
    with_key = {name: [p.name for p in own_parameters(f)] for name, f in FUNCTIONS.items()}
    with_key = {name: names for name, names in with_key.items() if "key" in names}
    assert len(with_key) >= 10  # the augmentations and create_state
    assert {name for name, names in with_key.items() if names[0] != "key"} == set()
    assert {name for name, f in FUNCTIONS.items() if any(p.name in ("rng", "prng") for p in own_parameters(f))} == set()


def test_options_are_by_keyword_only():
    by_position = {
        name
        for name, function in FUNCTIONS.items()
        for p in own_parameters(function)
        if p.default is not p.empty and p.kind is not p.KEYWORD_ONLY
    }
    assert by_position == set(BY_POSITION)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_offers_is_documented(name):
    package = importlib.import_module(name)
    assert package.__doc__
    assert package.__all__ == sorted(package.__all__, key=lambda n: (not n[0].isupper(), n))
    for offered in package.__all__:
        value = getattr(package, offered)
        doc = inspect.getdoc(value) if inspect.ismodule(value) else vars(value).get("__doc__", value.__doc__)
        assert doc, f"{name}.{offered}"
        # What a NamedTuple and a dataclass write themselves says nothing.
        assert not doc.startswith(f"{offered}("), f"{name}.{offered}"


def test_public_functions_are_documented():
    undocumented = {name for name, function in FUNCTIONS.items() if not function.__doc__}
    # A class's docstring speaks for its construction and its call; the others are documented in protocols.
    special = ("__init__", "__call__", "where", "read", "empty")
    special = {name for name in undocumented if name.rsplit(".", 1)[1] in special}
    assert undocumented - special == set()
