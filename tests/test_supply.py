"""What CI installs is pinned to the byte, and what setup.cfg promises to work with is what CI tests as the lowest."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
CI = ROOT / ".ci"


def required(*extras: str) -> dict[str, Requirement]:
    """Return what setup.cfg requires by itself and with these extras, by name, our own extras left out."""
    parser = ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    lines = [parser["options"]["install_requires"], *(parser["options.extras_require"][extra] for extra in extras)]
    found = [Requirement(line) for text in lines for line in text.split("\n") if line]
    return {canonicalize_name(each.name): each for each in found if each.name != "cloudstore-mapping"}


def pinned(name: str) -> dict[str, set[Version]]:
    """Return the versions that a file of CI's names, by the package; some depend on the Python."""
    versions: dict[str, set[Version]] = {}
    for match in re.finditer(r"^([\w.-]+)==([\w.]+)", (CI / name).read_text("utf-8"), re.MULTILINE):
        versions.setdefault(canonicalize_name(match[1]), set()).add(Version(match[2]))
    return versions


def test_the_lowest_are_those_of_setup_cfg() -> None:
    """The run on the lowest versions has the lower bound of each package that users need, and no other."""
    bounds = {}
    for name, requirement in required("cli", "server", "postgres", "testing").items():
        assert {specifier.operator for specifier in requirement.specifier} <= {">=", "<"}, requirement
        bounds[name] = {Version(each.version) for each in requirement.specifier if each.operator == ">="}
    assert pinned("lowest.txt") == bounds


def test_packages_with_private_names_in_use_have_both_bounds() -> None:
    """A major version of `requests` or `urllib3` may rename what we use of them, so none is allowed untested."""
    base = required()
    newest = pinned("requirements.txt")
    for name in ("requests", "urllib3"):
        (below,) = (Version(each.version) for each in base[name].specifier if each.operator == "<")
        assert {version.major + 1 for version in newest[name]} == {below.major}


def test_uvicorn_has_both_bounds() -> None:
    """A minor version of uvicorn 0 may rename what we use of its private names, so none is allowed untested."""
    (below,) = (Version(each.version) for each in required("server")["uvicorn"].specifier if each.operator == "<")
    assert {(version.major, version.minor + 1) for version in pinned("requirements.txt")["uvicorn"]} == {below.release}


def test_each_package_imported_is_required() -> None:
    """The base install names every package that the client imports, but `rich`, which only shows progress."""
    imports = re.compile(r"^ *(?:import|from) (\w+)", re.MULTILINE)
    files = [*(ROOT / "cloudstore_mapping" / "client").glob("*.py"), ROOT / "cloudstore_mapping" / "wire.py"]
    imported = {name for file in files for name in imports.findall(file.read_text("utf-8"))}
    assert imported & set(packages_distributions()) - {"cloudstore_mapping", "CloudStore", "rich"} <= set(required())


def test_all_that_is_required_is_pinned() -> None:
    """Each package of the extra `dev` is pinned in a version that setup.cfg allows."""
    versions = pinned("requirements.txt")
    for name, requirement in required("cli", "server", "postgres", "testing", "dev").items():
        assert all(version in requirement.specifier for version in versions[name]), requirement


def test_each_pin_has_its_hashes() -> None:
    """Nothing is pinned without the hashes of its files, and no address says where to get it."""
    text = (CI / "requirements.txt").read_text("utf-8")
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(blocks) > 60
    for block in blocks:
        assert re.search(r"^    --hash=sha256:[0-9a-f]{64}", block, re.MULTILINE), block
    assert "://" not in text


@pytest.mark.parametrize(
    ("found", "status", "says"),
    [
        (
            json.dumps({"dependencies": [{"name": "a", "version": "1", "vulns": []}]}),
            0,
            "Packages looked up: 1; known faults in them: 0.",
        ),
        (
            json.dumps(
                {"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}]}]}
            ),
            1,
            "a 1: CVE-1, mended in 2.",
        ),
        (json.dumps({"dependencies": [{"name": "a", "skip_reason": "not there"}]}), 0, "names them: 1."),
        ("", 0, "no package was looked up"),
        ("Traceback", 0, "no package was looked up"),
    ],
)
def test_known_faults_fail(found: str, status: int, says: str) -> None:
    """A known fault in what is pinned fails the run; what could not be looked up is said, and passes."""
    command = [sys.executable, str(CI / "audited.py")]
    ran = subprocess.run(command, input=found, check=False, capture_output=True, text=True)
    assert ran.returncode == status
    assert says in ran.stdout
