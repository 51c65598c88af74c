"""What every tower promises, as one check."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmalign.encoders.base import Encoder


def check_tower(encoder: Encoder, rows: list[Tensor], atol: float = 1e-5) -> None:
    """Alone equals in any batch, an absent neighbour included; and widths, spec, layers and preprocessing."""
    encoder.eval()
    values, mask = encoder.preprocess.collate([rows[0], None, *rows[1:]])
    with torch.no_grad():
        together = encoder(values, mask)
        assert together.pooled.isfinite().all()
        assert together.sequence.isfinite().all()
        assert together.pooled.shape[1] == together.sequence.shape[2] == encoder.width
        first, second = (encoder(*encoder.preprocess.collate([row])).pooled for row in rows[-2:])
        difference = (first - second).abs().max().item()
        assert difference > 1e-5  # a tower that ignores its input would pass the rest
        atol = min(atol, difference / 20)
        for row, position in zip(rows, [0, *range(2, len(rows) + 1)], strict=True):
            alone = encoder(*encoder.preprocess.collate([row]))
            torch.testing.assert_close(together.pooled[position], alone.pooled[0], atol=atol, rtol=0)
            real = together.sequence[position][together.mask[position]]
            torch.testing.assert_close(real, alone.sequence[0][alone.mask[0]], atol=atol, rtol=0)
    assert json.loads(json.dumps(encoder.spec)) == encoder.spec
    again = pickle.loads(pickle.dumps(encoder.preprocess))
    assert again == encoder.preprocess
    assert again.spec == encoder.preprocess.spec
    parameters = {id(p) for p in encoder.parameters()}
    in_layers = [id(p) for layer in encoder.layers() for p in layer.parameters()]
    assert set(in_layers) <= parameters
    assert len(in_layers) == len(set(in_layers))  # each in one layer only


@pytest.fixture
def tower_check() -> Callable[..., None]:
    return check_tower


@pytest.fixture
def cached_asset() -> Callable[[str], Path]:
    """The path of a real asset; the test is skipped where the asset is neither cached nor to be fetched."""

    def path(name: str) -> Path:
        from mmalign import assets

        try:
            return assets.fetch(name)
        except Exception as error:
            pytest.skip(f"asset {name} is not available: {error}")

    return path


@pytest.fixture
def open_clip_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small open_clip model, with a "vit", a "timm" or a "resnet" for pictures, as a local-dir."""

    def write(vision: str = "vit", **text: object) -> Path:
        from open_clip.model import CLIP, CustomTextCLIP
        from safetensors.torch import save_file

        torch.manual_seed(0)
        custom = vision == "timm"
        towers: dict[str, dict[str, object]] = {
            "vit": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
            "timm": {"timm_model_name": "resnet10t", "timm_proj": "linear", "timm_pool": "avg", "image_size": 64},
            "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        }
        text_cfg = {"context_length": 16, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2, **text}
        config = {"embed_dim": 20, "vision_cfg": towers[vision], "text_cfg": text_cfg}
        model = (CustomTextCLIP if custom else CLIP)(**config)
        preprocess = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "resize_mode": "squash"}
        preprocess["interpolation"] = "bilinear"
        document = {"model_cfg": {**config, "custom_text": custom}, "preprocess_cfg": preprocess}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
        return tmp_path

    return write


@pytest.fixture
def hf_folder(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a small random Hugging Face model and a byte-level tokenizer: "bert", "llama" or "gpt2"."""

    def write(architecture: str) -> Path:
        import transformers
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

        special = ["<pad>", "<s>", "</s>"]
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: i for i, token in enumerate([*special, *alphabet, "th", "the"])}
        tokenizer = Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        if architecture == "bert":
            ends = [("<s>", 1), ("</s>", 2)]
            tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
        )
        sizes = {"vocab_size": len(vocabulary), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        torch.manual_seed(0)
        if architecture == "gpt2":
            config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **sizes)
            model = transformers.GPT2LMHeadModel(config)
        else:
            shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
            shape["max_position_embeddings"] = 64
            if architecture == "bert":
                model = transformers.BertModel(transformers.BertConfig(**shape, **sizes))
            else:
                grouped = {"num_key_value_heads": 2, "tie_word_embeddings": True}
                model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, **grouped, **sizes))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # the usual start gives nearly equal outputs for all inputs
        model.save_pretrained(tmp_path)
        fast.save_pretrained(tmp_path)
        return tmp_path

    return write
