"""What the registry promises, and that what it names is what is in the cache."""

import re
import subprocess
import sys

import pytest

from mmalign import assets
from mmalign.assets.registry import ASSETS, Asset
from mmalign.assets.sources import DebianPackage, Hub, Wheel

HASH = re.compile("[0-9a-f]{64}")


@pytest.mark.parametrize("asset", ASSETS.values(), ids=list(ASSETS))
def test_every_entry_is_complete(asset: Asset) -> None:
    assert asset.description
    assert asset.licence
    assert asset.download_mb > 0
    first = asset.sources[0]
    assert isinstance(first, Wheel | DebianPackage)
    assert first.files, "the first source names the hash of what it serves"
    for source in asset.sources:
        assert all(HASH.fullmatch(value) for value in source.files.values())
        if isinstance(source, Wheel):
            assert re.fullmatch(r"[\w-]+==[\d.]+", source.requirement), "an exact version"
        if isinstance(source, Hub):
            assert not any(pattern.endswith((".bin", ".pth", ".pkl")) for pattern in source.patterns), "no pickles"


def test_importing_assets_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "pooch", "huggingface_hub")
    code = f"import sys, mmalign.assets.commands; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def _cached(name: str) -> str:
    try:
        return str(assets.path(name))
    except FileNotFoundError:
        try:
            return str(assets.fetch(name))
        except ConnectionError as error:
            pytest.skip(f"asset {name} cannot be fetched here: {str(error).splitlines()[0]}")


@pytest.mark.assets
def test_efficientnet_holds_the_tensors_of_timms_model() -> None:
    import torch

    state = torch.load(_cached("efficientnet-lite0"), weights_only=True)
    assert len(state) == 296


@pytest.mark.assets
def test_smollm2_is_converted_to_tied_float32_safetensors_with_its_tokenizer() -> None:
    from safetensors import safe_open
    from transformers import AutoTokenizer

    folder = _cached("smollm2-135m")
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        names = list(file.keys())
        assert file.get_slice("model.layers.0.self_attn.k_proj.weight").get_shape() == [192, 576]
        assert file.get_slice("model.embed_tokens.weight").get_dtype() == "F32"
    assert len(names) == 272
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The frog croaks — très fort."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == 49152


@pytest.mark.assets
def test_minilm_loads_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert AutoConfig.from_pretrained(_cached("minilm")).hidden_size == 384


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "pattern", "count"), [("tuxpaint-stamps", "*.png", 796), ("openclipart-png", "*.png", 8121)]
)
def test_data_sets_are_whole(name: str, pattern: str, count: int) -> None:
    from pathlib import Path

    assert sum(1 for _ in Path(_cached(name)).rglob(pattern)) == count
