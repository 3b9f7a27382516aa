from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
# A machine that lacks one of the Pythons still tests the others, even where `CI` is set.
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("pytest", ["oldest", "newest"])
def tests(session: nox.Session, pytest: str) -> None:
    """Run the tests; what follows `--` goes to pytest."""
    # The oldest that a pytest-asyncio with loops of wider scopes takes; `fast` has the oldest of all.
    session.install("--editable", ".[test]", "pytest==8.2.*" if pytest == "oldest" else "pytest>8.2")
    session.run("pytest", *session.posargs)


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
@nox.parametrize("pytest", ["oldest", "newest"])
def fast(session: nox.Session, pytest: str) -> None:
    """Run the tests that need neither a browser nor the official SDK, which are long to install."""
    session.install("--editable", ".[test-fast]", "pytest==8.0.*" if pytest == "oldest" else "pytest>8.0")
    tests = [*map(str, Path("tests").glob("test_*.py"))]
    # The bytecode, once instead of once in each of the workers.
    session.run("pytest", "--collect-only", "-q", *tests, silent=True)
    session.run("pytest", "-n", "4", "-m", "not slow", *tests)


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style and the types."""
    session.install("--editable", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")


@nox.session(python="3.12" if shutil.which("python3.12") else None, reuse_venv=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it into an empty environment, and run the examples with it."""
    # Outside the checkout, or pytest would find the checkout's settings and conftest.py, and with them its package.
    with tempfile.TemporaryDirectory() as folder:
        session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".")
        (built,) = Path(folder).glob("*.whl")
        session.install(f"{built}[local,xdist]", "pytest-playwright")
        shutil.copytree("examples", Path(folder, "examples"))
        session.chdir(folder)
        options = ["-n", "2", "--anchor-local"]
        session.run("pytest", *options, "examples/sessions")
        session.run("pytest", *options, "--anchor-playwright", "test", "examples/tea_shop")
