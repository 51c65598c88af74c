"""Every method can be named in a YAML, and the example in its docstring is one that works."""

import textwrap
from pathlib import Path

import pytest
import yaml

import mmalign.retention
from mmalign.retention import Policy, Retention
from mmalign.training.config import build_part

EXPORTED = {name: getattr(mmalign.retention, name) for name in mmalign.retention.__all__}
METHODS = [cls for name, cls in EXPORTED.items() if issubclass(cls, Retention) and cls is not Retention]


@pytest.mark.parametrize("method", METHODS, ids=lambda cls: cls.__name__)
def test_the_example_in_the_docstring_builds_the_method(method: type[Retention]) -> None:
    text = textwrap.dedent(method.__doc__.split("Example:\n")[1])
    config = yaml.safe_load(text)["retention"]
    built = build_part(config, dict[str, Retention])
    assert [type(part) for part in built.values()] == [method]


@pytest.mark.parametrize("method", METHODS, ids=lambda cls: cls.__name__)
def test_the_docstring_says_what_is_asked_of_it(method: type[Retention]) -> None:
    documentation = " ".join(method.__doc__.split())
    for word in ("Stored: ", "Cost: "):
        assert word in documentation
    assert "Loss: " in documentation or "Average: " in documentation
    assert any(str(year) in documentation for year in range(1990, 2026))  # a paper


def test_policies_can_be_named() -> None:
    policies = {name: cls for name, cls in EXPORTED.items() if issubclass(cls, Policy) and cls is not Policy}
    assert len(policies) == 6
    for name, cls in policies.items():
        arguments = {"policy": {"class_path": f"mmalign.retention.{name}"}}
        replay = build_part({"class_path": "mmalign.retention.Replay", "init_args": arguments}, Retention)
        assert type(replay.memory.policy) is cls


def test_no_method_without_its_name_in_the_package() -> None:
    folder = Path(mmalign.retention.__file__).parent
    defined = {
        line.partition("class ")[2].partition("(")[0]
        for path in folder.glob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("class ") and line.endswith(("(Retention):", "(_Distillation):")) and "class _" not in line
    }
    assert defined == {method.__name__ for method in METHODS}
