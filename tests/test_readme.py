"""What the README shows works: its classes, its commands, its tables."""

import inspect
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mmalign.batch import Embeddings
from mmalign.cli import build_parser
from mmalign.report.readme import stale_tables

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def defined(name: str):
    (block,) = [block for block in BLOCKS if f"class {name}(" in block]
    scope = {"__name__": "readme"}
    exec(compile(block, name, "exec"), scope)
    return scope[name]


def test_the_encoder_of_the_readme():
    encoder = defined("ImuEncoder")()
    values, mask = encoder.preprocess.collate([torch.randn(5, 6), None, torch.randn(9, 6)])
    tokens = encoder(values, mask)
    assert tokens.pooled.shape == (3, 32)
    assert not tokens.pooled[1].any()


def test_the_loss_of_the_readme():
    vectors = {name: torch.nn.functional.normalize(torch.randn(6, 4), dim=1) for name in "ab"}
    present = {"a": torch.ones(6, dtype=torch.bool), "b": torch.tensor([1, 1, 1, 0, 1, 1]).bool()}
    loss = defined("Distance")("a", "b")
    whole = Embeddings(vectors, present, torch.arange(6))
    parts = [Embeddings(vectors, present, torch.arange(6), rows=rows) for rows in ((0, 3), (3, 6))]
    torch.testing.assert_close(loss(whole), sum(loss(part) for part in parts))


def test_the_source_of_the_readme(tmp_path):
    from mmalign.data.shards import build
    from mmalign.data.shardset import ShardSet

    build(defined("Greetings")(), tmp_path / "greetings")
    sample = ShardSet.open(tmp_path / "greetings", "train").read(0)
    assert [v.data for v in sample.variants("captions[fr]")] == [b"bonjour"]


COMMANDS = sorted(
    set(re.findall(r"(?m)^    (?:.*-m )?(mmalign (?:train|demo|data|compare|report|export) [^\[\|…]*?)$", TEXT))
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readme_parse(command):
    words = shlex.split(command.replace("\\", ""), comments=True)[1:]
    options, _ = build_parser().parse_known_args(words)
    for file in [getattr(options, "config", None)]:
        assert file is None or file == Path("FILE") or (ROOT / file).exists()


def test_the_tables_are_those_of_the_results():
    assert stale_tables(ROOT / "README.md", ROOT / "configs" / "results") == []


def test_every_file_of_the_map_exists():
    for name in re.findall(r"(?m)^      (\w+(?:\.py|/)) ", TEXT):
        assert (ROOT / "mmalign" / name).exists(), name
    for name in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / name).exists(), name


def _parts():
    """The table of parts: (package, class) of each."""
    table = TEXT.partition("### The parts of an experiment")[2].partition("\n\n`mmalign search`")[0]
    package = ""
    for line in re.findall(r"(?m)^\| (.*) \|$", table)[2:]:
        _, given, classes = line.split("|")
        package = given.strip("` ") or package
        yield from ((package, name) for name in re.findall(r"`([\w.]+)`", classes))


def test_the_table_of_parts_is_complete():
    from mmalign.data.sources import SOURCES

    contracts = {
        "encoders": "Encoder", "fusion": "Fusion", "losses": "Loss", "retention": "Retention", "evaluation": "Evaluator"
    }  # fmt: skip
    offered = {f"mmalign.retention.{name}" for name in _subclasses("retention", "Policy")} | set(SOURCES.values())
    for package, contract in contracts.items():
        offered |= {f"mmalign.{package}.{name}" for name in _subclasses(package, contract)}
    offered -= {"mmalign.encoders.CausalLanguageModel"}  # what two of them are
    named = [f"{package}.{name}" for package, name in _parts()]
    assert sorted(named) == sorted(offered)


def _subclasses(package, contract):
    module = import_module(f"mmalign.{package}")
    base = getattr(module, contract)
    found = {name: getattr(module, name) for name in module.__all__}
    return [n for n, kind in found.items() if isinstance(kind, type) and issubclass(kind, base) and kind is not base]


@pytest.mark.parametrize("part", [".".join(part) for part in _parts()])
def test_every_part_tells_its_settings(part):
    """`python -m pydoc` shows the docstrings of class and constructor: every setting stands in one of them."""
    module, _, kind = part.rpartition(".")
    kind = getattr(import_module(module), kind)
    told = f"{kind.__doc__}\n{kind.__init__.__doc__}"
    for name, setting in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        variadic = setting.kind in (setting.VAR_POSITIONAL, setting.VAR_KEYWORD)  # of object, where there is no own one
        assert variadic or re.search(rf"\b{name}\b", told), name
