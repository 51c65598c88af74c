"""A converted GGUF file is the model that transformers de-quantises, weight for weight, with the same tokenizer."""

from pathlib import Path

import numpy as np
import pytest

from mmalign.assets.convert import gguf_to_safetensors

gguf = pytest.importorskip("gguf", reason="the extra `gguf` is not installed")

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN = 64, 2, 2, 1, 96


def _write_gguf(path: Path) -> None:
    """A tiny Llama with grouped-query attention, matrices in four bits (Q4_1), and a byte-level tokenizer."""
    from tokenizers.pre_tokenizers import ByteLevel

    generator = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("toy")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(0)

    def add_matrix(name: str, rows: int, columns: int) -> None:
        kind = gguf.GGMLQuantizationType.Q4_1
        values = generator.normal(0, 0.1, (rows, columns)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def add_scale(name: str) -> None:
        writer.add_tensor(name, generator.normal(1, 0.1, WIDTH).astype(np.float32))

    add_matrix("token_embd.weight", len(tokens), WIDTH)
    add_scale("output_norm.weight")
    for layer in range(LAYERS):
        prefix = f"blk.{layer}"
        kv_width = WIDTH // HEADS * KV_HEADS
        add_scale(f"{prefix}.attn_norm.weight")
        add_scale(f"{prefix}.ffn_norm.weight")
        for name, rows, columns in [
            ("attn_q", WIDTH, WIDTH),
            ("attn_k", kv_width, WIDTH),
            ("attn_v", kv_width, WIDTH),
            ("attn_output", WIDTH, WIDTH),
            ("ffn_gate", HIDDEN, WIDTH),
            ("ffn_up", HIDDEN, WIDTH),
            ("ffn_down", WIDTH, HIDDEN),
        ]:
            add_matrix(f"{prefix}.{name}.weight", rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_converted_model_equals_the_quantised_one(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    direct, converted = tmp_path / "direct", tmp_path / "converted"
    for folder in (direct, converted):
        folder.mkdir()
        _write_gguf(folder / "toy.gguf")
    assert gguf_to_safetensors(converted) == ""
    assert not list(converted.glob("*.gguf"))
    expected = AutoModelForCausalLM.from_pretrained(direct, gguf_file="toy.gguf", dtype=torch.float32)
    found = AutoModelForCausalLM.from_pretrained(converted)
    assert found.dtype == torch.float32
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    assert (found.config.num_key_value_heads, found.config.rms_norm_eps) == (KV_HEADS, pytest.approx(1e-5))
    own = AutoTokenizer.from_pretrained(converted)
    text = "ab cab — grün"
    tokens = own(text).input_ids
    assert tokens == AutoTokenizer.from_pretrained(direct, gguf_file="toy.gguf")(text).input_ids
    assert own.decode(tokens) == text
    with torch.no_grad():
        batch = torch.tensor([tokens])
        assert torch.equal(found.eval()(input_ids=batch).logits, expected.eval()(input_ids=batch).logits)
