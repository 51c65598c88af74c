"""Causal text towers: pooling under any padding, tied heads, likelihoods against the plain computation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.encoders.text_byte_patches import TextBytePatches
from mmalign.encoders.text_bytes import END, START, TextBytes
from mmalign.encoders.text_causal import scoring_windows
from mmalign.encoders.text_hf import TextCausalHF

TEXTS = ["a", "the small red circle", "the big circle is left of the green square", "", "thé été"]


def pooled_patches(**settings):
    return TextBytePatches(**settings, pooler_depth=1)


@pytest.fixture(params=["bytes", "byte patches", "byte patches, pooler", "llama", "gpt2", "llama with end"])
def tower(request, hf_folder):
    torch.manual_seed(0)
    if request.param.startswith("byte"):
        own = {"bytes": TextBytes, "byte patches": TextBytePatches, "byte patches, pooler": pooled_patches}[
            request.param
        ]
        encoder = own(width=16, depth=2, heads=2, max_length=64)
        torch.nn.init.normal_(encoder.embedding.weight)
        return encoder.eval()
    name, *end = request.param.split(" with ")
    return TextCausalHF(str(hf_folder(name)), max_length=64, append_end=bool(end)).eval()


def collated(encoder, texts=TEXTS):
    return encoder.preprocess.collate([encoder.preprocess.prepare(text, None) for text in texts])


def shifted(values, mask):
    """The same rows, padded in front."""
    left, left_mask = torch.zeros_like(values), torch.zeros_like(mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        left[i, len(left[i]) - length :] = values[i, :length]
        left_mask[i, len(left[i]) - length :] = True
    return left, left_mask


def naive_nats(encoder, text):
    """One text, no padding, no chunks: cross entropy of each id from the ids before it."""
    ids = torch.tensor(encoder.preprocess.encode_whole(text))[None]
    log_probabilities = encoder.logits(encoder(ids).sequence)[0].log_softmax(-1)
    return -sum(log_probabilities[i, ids[0, i + 1]] for i in range(ids.shape[1] - 1)), ids.shape[1] - 1


def test_alone_equals_in_a_batch(tower, tower_check):
    tower_check(tower, [tower.preprocess.prepare(text, None) for text in TEXTS])


def test_padding_on_either_side_gives_the_same(tower):
    values, mask = collated(tower)
    left, left_mask = shifted(values, mask)
    with torch.no_grad():
        right_tokens, left_tokens = tower(values, mask), tower(left, left_mask)
    torch.testing.assert_close(right_tokens.pooled, left_tokens.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(right_tokens.sequence[mask], left_tokens.sequence[left_mask], atol=1e-5, rtol=0)
    if not isinstance(tower, TextBytePatches):
        last = right_tokens.sequence[torch.arange(len(TEXTS)), mask.sum(1) - 1]
        assert torch.equal(right_tokens.pooled, last)
    with torch.no_grad():
        nats = [tower.likelihood(*arguments) for arguments in
                [(right_tokens, values, mask), (left_tokens, left, left_mask)]]  # fmt: skip
    torch.testing.assert_close(nats[0], nats[1], atol=1e-4, rtol=1e-5)


def test_likelihood_equals_the_naive_one(tower):
    values, mask = collated(tower)
    with torch.no_grad():
        found = tower.likelihood(tower(values, mask), values, mask)
        for (nats, count), text in zip(found.tolist(), TEXTS, strict=True):
            expected, n = naive_nats(tower, text)
            assert count == n
            assert nats == pytest.approx(float(expected), abs=1e-3)


def test_chunks_and_recomputation_change_nothing(tower):
    values, mask = collated(tower)

    def gradients(largest):
        tower.zero_grad()
        tower.largest_logits_bytes = largest
        nats = tower.likelihood(tower(values, mask), values, mask)[:, 0]
        nats.sum().backward()
        found = {name: p.grad for name, p in tower.named_parameters()}
        assert all(name.startswith("pooler.") for name, gradient in found.items() if gradient is None)
        return nats.detach(), {name: gradient.clone() for name, gradient in found.items() if gradient is not None}

    plain, chunked = gradients(10**9), gradients(7 * 4 * 260)
    torch.testing.assert_close(plain[0], chunked[0], atol=1e-4, rtol=1e-6)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(gradient, chunked[1][name], atol=1e-4, rtol=1e-4)


def test_no_predicted_token_is_no_likelihood_and_no_gradient(tower):
    values, mask = collated(tower, ["", ""])
    result = tower.likelihood(tower(values, mask), values, mask)
    assert result.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    result.sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in tower.parameters())


def test_the_head_stays_tied_and_is_no_second_parameter(tower):
    names = [name for name, _ in tower.named_parameters()]
    head = tower.embedding if isinstance(tower, TextBytes | TextBytePatches) else tower.lm.get_input_embeddings()
    assert not [name for name in names if "lm_head" in name]
    probe = torch.linspace(-1, 1, tower.width)[None]
    before = tower.logits(probe)
    with torch.no_grad():
        head.weight.mul_(2)
    torch.testing.assert_close(tower.logits(probe), before * 2, atol=1e-4, rtol=1e-4)
    in_layers = {id(p) for layer in tower.layers() for p in layer.parameters()}
    assert in_layers == {id(p) for p in tower.parameters()}
    pooler = getattr(tower, "pooler", None)
    assert len(tower.layers()) == 3 + (pooler is not None)
    assert pooler is None or tower.layers()[-1] is pooler  # trained alone, it leaves the language model as it is


def test_long_texts_are_scored_once_and_whole(tower):
    text = "the long text goes on and on, thé " * 9
    with torch.no_grad():
        nats, tokens, n_bytes = tower.score_text([text, "short", text[:40], ""], positions_per_batch=70)
        assert tokens[0] == len(tower.preprocess.encode_whole(text)) - 1
        assert n_bytes.tolist() == [len(t.encode()) for t in (text, "short", text[:40], "")]
        for i, part in ((1, "short"), (2, text[:40]), (3, "")):
            assert float(nats[i]) == pytest.approx(float(naive_nats(tower, part)[0]), abs=1e-3)
        ids = tower.preprocess.encode_whole(text)
        expected = 0.0
        for window, first in scoring_windows(ids, 64):
            scores = tower.logits(tower(torch.tensor(window)[None]).sequence)[0].log_softmax(-1)
            expected -= sum(float(scores[i - 1, window[i]]) for i in range(first, len(window)))
        assert float(nats[0]) == pytest.approx(expected, rel=1e-4)


@given(st.integers(1, 400), st.integers(2, 50))
def test_windows_predict_each_id_once_and_in_order(length, size):
    ids = list(range(length))
    windows = list(scoring_windows(ids, size))
    assert [i for window, first in windows for i in window[first:]] == ids[1:]
    assert all(len(window) <= size for window, _ in windows)
    assert all(first >= size // 2 for _, first in windows[1:])


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=60))
def test_bytes_tokens_are_the_bytes(text):
    preprocess = TextBytes(width=8, depth=1, heads=2, max_length=16).preprocess
    ids = preprocess.encode(text)
    assert (ids[0], ids[-1]) == (START, END)
    assert bytes(ids[1:-1]) == text.encode()[:14]
    assert bytes(preprocess.encode_whole(text)[1:]) == text.encode()


@pytest.mark.parametrize("own", [TextBytes, TextBytePatches, pooled_patches])
def test_byte_models_see_no_future(own):
    torch.manual_seed(0)
    encoder = own(width=16, depth=2, heads=2).eval()
    one, other = (torch.tensor(encoder.preprocess.encode(text))[None] for text in ("the cat sat", "the cat ran"))
    with torch.no_grad():
        difference = (encoder(one).sequence - encoder(other).sequence).abs().amax(2)[0]
    assert (difference[:9] < 1e-6).all()
    assert difference[9] > 1e-4


@pytest.mark.parametrize("own", [TextBytes, TextBytePatches])
def test_byte_models_learn_a_text(own):
    torch.manual_seed(0)
    encoder = own(width=32, depth=1, heads=2, max_length=64)
    values, mask = collated(encoder, ["the cat sat on the mat", "the dog ran to the park"])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nats, count = encoder.likelihood(encoder(values, mask), values, mask).sum(0)
        (nats / count).backward()
        optimizer.step()
    nats, _, n_bytes = encoder.eval().score_text(["the cat sat on the mat", "the dog ran to the park"])
    assert float(nats.sum() / n_bytes.sum()) / math.log(2) < 1.0


def test_start_token_is_the_one_asked_for(hf_folder):
    folder = str(hf_folder("llama"))
    assert TextCausalHF(folder, max_length=64).preprocess.encode_whole("a")[0] == 1
    assert TextCausalHF(folder, max_length=64, start="<pad>").preprocess.encode_whole("a")[0] == 0
    with pytest.raises(ValueError, match="no token '<none>'"):
        TextCausalHF(folder, max_length=64, start="<none>").preprocess.encode_whole("a")


@pytest.mark.assets
def test_smollm2_knows_english(cached_asset):
    cached_asset("smollm2-135m")
    encoder = TextCausalHF("smollm2-135m").eval()
    nats, tokens, n_bytes = encoder.score_text(["The cat sat on the mat and looked out of the window at the birds."])
    assert 8 < float((nats / tokens).exp()) < 20
    assert float(nats / n_bytes) / math.log(2) < 1.2
    assert encoder.lm.lm_head.weight is encoder.lm.model.embed_tokens.weight
    assert len(encoder.layers()) == 31
