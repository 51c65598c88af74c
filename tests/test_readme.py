"""What the README shows works: its classes, its commands, its tables."""

import re
import shlex
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
