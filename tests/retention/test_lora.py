"""LoRA: wraps, trains little, merges into what the wrapped layers computed, and comes back after a kill."""

import pytest
import torch
from torch import nn

from mmalign.retention import EMA, LoRA, WiSE


def _names(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_only_the_additions_are_trained_and_merging_keeps_the_function(workshop) -> None:
    plan, model = workshop.plans()[0], workshop.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shapes = _names(model)
    seen: dict[str, torch.Tensor] = {}
    batch = workshop.stream(plan, model)[0]

    def watch(*_: object) -> None:
        trained = {name for name, p in model.encoders["b"].named_parameters() if p.requires_grad}
        assert trained
        assert all(".lora_" in name for name in trained)
        seen["vectors"] = model(batch).vectors["b"].detach()

    workshop.train(plan, model, {"lora": LoRA(["encoder.b"], rank=2)}, watch=watch)
    assert _names(model) == shapes
    torch.testing.assert_close(model(batch).vectors["b"], seen["vectors"])
    assert all(p.requires_grad for p in model.parameters())
    for part in ("first", "second"):
        change = model.state_dict()[f"encoders.b.{part}.weight"] - before[f"encoders.b.{part}.weight"]
        assert torch.linalg.matrix_rank(change, atol=1e-5) in (1, 2)
        assert torch.equal(model.state_dict()[f"encoders.b.{part}.bias"], before[f"encoders.b.{part}.bias"])
    assert not torch.equal(model.state_dict()["encoders.a.first.bias"], before["encoders.a.first.bias"])


def test_a_killed_stage_wraps_again_and_goes_on(workshop) -> None:
    plan, whole, part, again = workshop.plans()[0], workshop.model(), workshop.model(), workshop.model()

    def methods() -> dict:
        return {"wise": WiSE(0.5, ["encoder.b"]), "lora": LoRA(["encoder.*"], rank=2)}

    workshop.train(plan, whole, methods())
    torch.manual_seed(99)
    state = workshop.train(plan, part, methods(), stop=3)
    torch.manual_seed(77)
    workshop.train(plan, again, methods(), resume=state)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


def test_wise_around_lora_interpolates_merged_weights_in_either_order(workshop) -> None:
    plan = workshop.plans()[0]
    plain, around, within = workshop.model(), workshop.model(), workshop.model()
    start = plain.state_dict()["encoders.b.first.weight"].clone()
    workshop.train(plan, plain, {"lora": LoRA(["encoder.b"], rank=2)})
    workshop.train(plan, around, {"wise": WiSE(0.5, ["encoder.b"]), "lora": LoRA(["encoder.b"], rank=2)})
    end = plain.state_dict()["encoders.b.first.weight"]
    torch.testing.assert_close(around.state_dict()["encoders.b.first.weight"], 0.5 * (start + end))
    shapes = _names(within)
    workshop.train(plan, within, {"lora": LoRA(["encoder.b"], rank=2), "wise": WiSE(0.5, ["encoder.b"])})
    assert _names(within) == shapes


def test_ema_before_lora_says_how_to_list_them(workshop) -> None:
    methods = {"ema": EMA(), "lora": LoRA(["encoder.b"], rank=2)}
    with pytest.raises(ValueError, match="before this one"):
        workshop.train(workshop.plans()[0], workshop.model(), methods)
    workshop.train(workshop.plans()[0], workshop.model(), dict(reversed(methods.items())))


def test_a_frozen_component_stays_untouched_and_wrong_names_are_errors(workshop) -> None:
    plan, model = workshop.plans()[0], workshop.model()
    plan.trainable = {"encoder.b": "none"}
    before = {name: value.clone() for name, value in model.encoders["b"].state_dict().items()}
    workshop.train(plan, model, {"lora": LoRA(["encoder.b"])})
    assert all(torch.equal(value, before[name]) for name, value in model.encoders["b"].state_dict().items())
    for wrong, named in ((LoRA(["encoder.x"]), "encoder.x"), (LoRA(["encoder.a"], target_modules=["q"]), "q")):
        with pytest.raises(ValueError, match=named):
            workshop.train(workshop.plans()[0], workshop.model(), {"lora": wrong})


def test_a_causal_language_model_keeps_its_tied_head(workshop) -> None:
    """The tower that LoRA is for: a Llama with tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = workshop.model()
    model.encoders["b"].language_model = LlamaForCausalLM(config)
    llama = model.encoders["b"].language_model
    ids = torch.arange(10)[None]
    reference = llama(ids).logits.detach()
    shapes = _names(model)
    lora = LoRA(["encoder.b"], rank=2)
    lora.begin(workshop.plans()[0], model, {})
    torch.testing.assert_close(llama(ids).logits, reference)  # B starts at zero
    trained = [name for name, p in llama.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 7  # A and B of seven linear layers in each of two blocks; the head is not among them
    with torch.no_grad():
        for name, parameter in llama.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted = llama(ids).logits.detach()
    assert not torch.allclose(adapted, reference)
    lora.end(workshop.plans()[0], model, {})
    torch.testing.assert_close(llama(ids).logits, adapted)
    assert llama.lm_head.weight is llama.model.embed_tokens.weight
    assert _names(model) == shapes
