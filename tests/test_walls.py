"""The walls of the house, read from its imports: which rooms may know which."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STANDARD = sys.stdlib_module_names
OURS = ("app", "engines", "storage", "ui")
WORKER_SIDE = ("engines.protocol", "engines.engine", "engines.hardware", "engines.worker", "engines.toolkit")
"""What runs under a foreign environment's Python, beside the engine modules themselves."""


def modules() -> dict[str, Path]:
    """Module name -> file, of everything the app is made of."""
    files = [ROOT / "app.py", *(path for room in OURS[1:] for path in (ROOT / room).rglob("*.py"))]
    return {path.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."): path for path in files}


MODULES = {name.removesuffix(".__init__"): path for name, path in modules().items()}


@cache
def imports_of(name: str) -> list[tuple[str, bool]]:
    """Every module that `name` imports, and whether it does so as soon as it is imported itself."""
    found: list[tuple[str, bool]] = []
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    lazy = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in lazy) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((inner if inner in MODULES else node.module, node not in lazy))
    return found


def within(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def is_engine(name: str) -> bool:
    return name.startswith("engines.") and name.endswith("_engine")


def breaches(inside, forbidden) -> list[str]:
    return [
        f"{name} imports {imported}"
        for name in MODULES
        if inside(name)
        for imported, _ in imports_of(name)
        if forbidden(imported)
    ]


def on_worker_side(name: str) -> bool:
    return within(name, *WORKER_SIDE) or is_engine(name)


def test_the_workers_side_runs_under_a_foreign_python_and_imports_nothing_else_of_ours():
    assert not breaches(
        on_worker_side,
        lambda imported: within(imported, *OURS) and not on_worker_side(imported) and imported != "engines",
    )


def test_engines_know_no_page_and_no_database():
    assert not breaches(
        lambda name: within(name, "engines"),
        lambda imported: within(imported, "gradio", "sqlite3", "sqlite_utils", "storage", "ui", "app"),
    )


def test_storage_knows_no_page():
    assert not breaches(
        lambda name: within(name, "storage"), lambda imported: within(imported, "gradio", "ui", "app")
    )


def test_the_page_asks_the_storage_and_never_opens_the_database_itself():
    assert not breaches(lambda name: within(name, "ui"), lambda imported: within(imported, "sqlite3"))
    opened = [
        path.as_posix()
        for path in (ROOT / "ui").rglob("*.py")
        if re.search(r"\.(reading|writing)\(", path.read_text("utf-8"))
    ]
    assert not opened


def test_turns_and_conversations_know_no_gradio():
    """Nor any room of the page: the command line uses them alone."""
    assert not breaches(
        lambda name: within(name, "ui.chat"),
        lambda imported: (
            within(imported, "gradio", "app")
            or (within(imported, "ui") and not within(imported, "ui.chat", "ui.format"))
        ),
    )


def test_commands_know_no_gradio():
    assert not breaches(lambda name: within(name, "ui.cli"), lambda imported: within(imported, "gradio"))


def test_engine_modules_import_no_library_until_they_are_used():
    """Importing one must stay free; the page's process reads their specs."""
    found = []
    for name in filter(is_engine, MODULES):
        for imported, at_once in imports_of(name):
            if at_once and not within(imported, "engines") and imported.partition(".")[0] not in STANDARD:
                found.append(f"{name} imports {imported}")
    assert not found


def test_no_module_is_named_after_a_library_it_imports():
    found = []
    for name in MODULES:
        leaf = name.rpartition(".")[2]
        libraries = {i.partition(".")[0] for i, _ in imports_of(name)} - set(OURS)
        if leaf in libraries:
            found.append(name)
    assert not found


def test_no_module_imports_itself_in_a_circle():
    arrows = {name: {i for i, _ in imports_of(name) if i in MODULES and i != name} for name in MODULES}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            pytest.fail(" → ".join((*path[path.index(name) :], name)))
        if name not in done:
            for inner in sorted(arrows[name]):
                walk(inner, (*path, name))
            done.add(name)

    for name in MODULES:
        walk(name, ())


def test_everything_a_browser_can_call_is_in_the_table_of_who_may_do_what(tmp_path):
    """Whoever adds a handler or a route says in ui/access.py whom it is for; without that it is refused."""
    from gradio.routes import App

    from tests.helpers.walking import routes_of, whole_pages
    from ui.access import _ROLES_OF, OWNER, VISITOR, handler_name, is_authorised, route_of, server_functions
    from ui.share.door import Door
    from ui.share.guarded_app import GuardedApp

    missing = []
    for page, roles in zip(whole_pages(tmp_path), (OWNER, VISITOR), strict=True):
        functions = [dependency.fn for dependency in page.fns.values() if dependency.fn is not None]
        functions += [function for block in page.blocks.values() for _, function in server_functions(block)]
        assert len(functions) > 20
        for function in functions:
            assert is_authorised(function), f"{handler_name(function)} does not ask who calls it"
            if _ROLES_OF.get(handler_name(function)) != roles:
                missing.append(f"handler {handler_name(function)} for {roles}")
        server = App.create_app(page, app=GuardedApp(Door()))
        missing += [f"route {m} {path}" for m, path in routes_of(server.routes) if route_of(m, path) is None]
    assert not missing, f"add these to ui/access.py: {missing}"
