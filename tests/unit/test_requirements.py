"""requirements.txt and pyproject.toml name the same packages with the same ranges."""

import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def declared():
    """({requirement of the package}, {requirement of any extra})."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    return set(project["dependencies"]), {line for extra in extras for line in extra}


def listed():
    lines = (PROJECT / "requirements.txt").read_text("utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def test_every_dependency_of_the_package_is_listed_with_its_range():
    package, _ = declared()
    assert package - listed() == set()


def test_every_line_is_declared_in_the_project_with_its_range():
    package, extras = declared()
    assert listed() - package - extras == set()
