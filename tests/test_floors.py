"""Versions that are known to be unsafe are neither asked for nor accepted."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from mmalign import floors

ROOT = Path(__file__).parents[1]
NAMED = {"lightning": "2.6.6", "torch": "2.10", "pillow": "12.1.1"}


def test_what_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ranges = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"]
    pinned = {r.name: Version(next(iter(r.specifier)).version) for r in pins}
    assert {name: floor for name, (floor, _) in floors.FLOORS.items()} == NAMED
    for name, floor in NAMED.items():
        assert [(s.operator, s.version) for s in ranges[name]] == [(">=", floor)]
        assert pinned[name] >= Version(floor)
    assert pinned["pytorch-lightning"] >= Version(NAMED["lightning"])  # the same, under its other name


@pytest.mark.parametrize(
    ("package", "installed", "reason"),
    [
        ("lightning", "2.6.5", "CVE-2026-58659"),
        ("lightning", "2.6.3", "malware"),
        ("lightning", "2.6.6rc1", "CVE-2026-58659"),
        ("torch", "2.9.1+cu128", "CVE-2026-24747"),
        ("torch", "2.10.0.dev20260101", "CVE-2026-24747"),
        ("pillow", "12.1.0", "CVE-2026-25990"),
    ],
)
def test_an_unsafe_version_is_refused(package, installed, reason, monkeypatch) -> None:
    real = floors.version
    monkeypatch.setattr(floors, "version", lambda name: installed if name == package else real(name))
    with pytest.raises(ImportError) as caught:
        floors.check_floors()
    line = str(caught.value)
    assert f"{package} {installed}" in line
    assert f"{package} >= {NAMED[package]}" in line
    assert reason in line


@pytest.mark.parametrize("installed", ["2.10", "2.10.0", "2.10.0+cpu", "2.15.0", "3.0.0", "2.10.0.post1"])
def test_a_safe_version_is_accepted(installed, monkeypatch) -> None:
    monkeypatch.setattr(floors, "version", lambda name: installed if name == "torch" else NAMED[name])
    floors.check_floors()


@pytest.mark.parametrize("package", ["mmalign.cli", "mmalign.training.module", "mmalign.data.decode"])
def test_nothing_unsafe_is_imported(package) -> None:
    """Malware runs on import: the check comes first, for users of the library as well."""
    code = (
        "import importlib.metadata as m, sys\n"
        "m.version = lambda name: '0.1'\n"
        f"try: import {package}\n"
        "except ImportError as error: print(error)\n"
        "print(sorted({'lightning', 'torch', 'PIL'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    error, imported = done.stdout.splitlines()
    assert error.startswith("lightning 0.1 is not safe to use")
    assert imported == "[]"
