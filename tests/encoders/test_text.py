"""Text towers that embed: Hugging Face encoders and open_clip's, against the libraries' own results."""

import pytest
import torch

from mmalign.encoders.text_hf import TextCausalHF, TextHF
from mmalign.encoders.text_open_clip import TextOpenClip

TEXTS = ["a", "the small red circle", "the big circle is left of the green square", "", "the cat"]


def prepared(encoder, texts=TEXTS):
    return [encoder.preprocess.prepare(text, None) for text in texts]


def test_encoder_alone_equals_in_a_batch(hf_folder, tower_check):
    encoder = TextHF(str(hf_folder("bert")), max_length=64)
    tower_check(encoder, prepared(encoder))


def test_encoder_equals_transformers_with_its_own_padding(hf_folder):
    import transformers

    folder = hf_folder("bert")
    encoder = TextHF(str(folder), max_length=12).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = tokenizer(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        states = model(**inputs).last_hidden_state
        weight = inputs["attention_mask"].unsqueeze(-1)
        expected = (states * weight).sum(1) / weight.sum(1)
        found = encoder(*encoder.preprocess.collate(prepared(encoder)))
    torch.testing.assert_close(found.pooled, expected, atol=1e-5, rtol=0)
    assert torch.equal(found.mask, inputs["attention_mask"].bool())


def test_random_weights_follow_the_seed(hf_folder):
    folder = str(hf_folder("bert"))

    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in TextHF(folder, pretrained=False, max_length=64).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_every_parameter_of_an_encoder_is_trained(hf_folder):
    encoder = TextHF(str(hf_folder("bert")), max_length=64)
    encoder(*encoder.preprocess.collate(prepared(encoder))).pooled.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []
    in_layers = {id(p) for layer in encoder.layers() for p in layer.parameters()}
    assert in_layers == {id(p) for p in encoder.parameters()}


def test_the_wrong_class_and_too_long_texts_are_refused(hf_folder, tmp_path_factory):
    with pytest.raises(ValueError, match="TextCausalHF"):
        TextHF(str(hf_folder("llama")), max_length=64)
    with pytest.raises(ValueError, match="64 positions"):
        TextCausalHF(str(hf_folder("llama")), max_length=65)


@pytest.mark.parametrize(
    ("vision", "text"),
    [("vit", {}), ("timm", {}), ("timm", {"no_causal_mask": True, "pool_type": "last"}), ("timm", {"embed_cls": True})],
)
def test_open_clip_tower_equals_open_clip(open_clip_folder, tower_check, vision, text):
    import open_clip

    name = f"local-dir:{open_clip_folder(vision, **text)}"
    encoder = TextOpenClip(name).eval()
    model = open_clip.create_model(name).eval()
    tower_check(encoder, prepared(encoder, TEXTS[:3]))
    with torch.no_grad():
        tokens = encoder(*encoder.preprocess.collate(prepared(encoder)))
        expected = model.encode_text(open_clip.get_tokenizer(name)(TEXTS))
    torch.testing.assert_close(tokens.pooled, expected, atol=1e-5, rtol=0)
    assert tokens.sequence.shape == (5, 16, 20)
    assert tokens.mask.sum(1).tolist() == [3, 6, 11, 2, 4]
    ends = tokens.sequence[torch.arange(5), tokens.mask.sum(1) - 1]
    if not text:
        torch.testing.assert_close(ends, expected, atol=1e-5, rtol=0)  # the projected token that is pooled


@pytest.mark.assets
def test_minilm_equals_transformers(cached_asset):
    import transformers

    folder = cached_asset("minilm")
    encoder = TextHF("minilm").eval()
    texts = ["A frog croaks.", "Une grenouille coasse dans l'étang au clair de lune.", "A green toad makes a sound."]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        pooled = encoder(*encoder.preprocess.collate(prepared(encoder, texts))).pooled
        for row, text in zip(pooled, texts, strict=True):
            expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)
    similarity = torch.nn.functional.cosine_similarity(pooled[:1], pooled[1:])
    assert similarity[1] > similarity[0]
    assert str(folder) not in str(encoder.spec)  # names travel, places on a disk do not
