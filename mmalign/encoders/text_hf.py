"""Any Hugging Face text model, from a name or a local folder: encoders and causal language models."""

import inspect
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmalign.batch import Tokens
from mmalign.encoders.base import Axis, Encoder
from mmalign.encoders.frozen_prefix import FrozenPrefix
from mmalign.encoders.text_causal import CausalLanguageModel, CausalTextPreprocess, TextPreprocess, pool_last
from mmalign.encoders.transformer import attendable

_DOCUMENT_SEPARATOR = "<|endoftext|>"


def locate_model(name: str) -> str:
    """A local folder, the folder of an asset, or (as it stands) a name on the hub."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    from mmalign import assets

    return str(assets.path(name)) if name in assets.ASSETS else name


@cache
def load_tokenizer(name: str) -> Any:
    """Once per process: preprocessing stays plain data, and workers build their own."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate_model(name), trust_remote_code=False)


@cache
def _start_id(model: str, start: str | None) -> int:
    """Once per process: asking a tokenizer for its vocabulary takes it tens of milliseconds."""
    tokenizer = load_tokenizer(model)
    wanted = _DOCUMENT_SEPARATOR if start is None else start
    if wanted in tokenizer.get_vocab():
        return int(tokenizer.convert_tokens_to_ids(wanted))
    if start is not None:
        raise ValueError(f"{model}: the tokenizer has no token {start!r}")
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise ValueError(f"{model}: the tokenizer has neither BOS nor EOS; name a start token by `start`")
    return int(found)


@dataclass(frozen=True)
class HFPreprocess(TextPreprocess):
    """The model's own tokenizer with its special tokens, as its authors made it.

    Attributes:
        model: name or folder of the tokenizer.
    """

    model: str

    def encode(self, text: str) -> list[int]:
        tokenizer = load_tokenizer(self.model)
        ids = tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        return list(ids) or [tokenizer.eos_token_id or 0]


@dataclass(frozen=True)
class CausalHFPreprocess(CausalTextPreprocess):
    """The model's own tokenizer; a start token before the text, and, where wanted, an end token behind it.

    Attributes:
        model: name or folder of the tokenizer.
        start: the start token, so that the first token of a text is predicted, too; None for "<|endoftext|>" (the
            separator of documents in the training of many models, whose BOS opens a chat turn instead) or, where
            the tokenizer has no such token, for its BOS or EOS.
        append_end: whether the tokenizer's EOS follows the text and is what gets pooled.
    """

    model: str
    start: str | None = None
    append_end: bool = False

    @property
    def start_id(self) -> int:
        return _start_id(self.model, self.start)

    def encode_whole(self, text: str) -> list[int]:
        ids = load_tokenizer(self.model)(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [self.start_id, *ids]

    def encode(self, text: str) -> list[int]:
        if not self.append_end:
            return self.encode_whole(text)[: self.max_length]
        return [*self.encode_whole(text)[: self.max_length - 1], load_tokenizer(self.model).eos_token_id]


def _load(kind: Any, model: str, pretrained: bool) -> Any:
    from transformers import AutoConfig

    folder = locate_model(model)
    if pretrained:
        return kind.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return kind.from_config(config, trust_remote_code=False).float()


def _check_length(model: str, config: Any, max_length: int) -> None:
    longest = getattr(config, "max_position_embeddings", None) or max_length
    if max_length > longest:
        raise ValueError(f"{model}: max_length {max_length} is more than the {longest} positions that the model has")


def _is_causal(config: Any) -> bool:
    names = config.architectures or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _layers(base: nn.Module, depth: int, head: nn.Module | None = None) -> list[nn.Module]:
    """Embeddings, the blocks in order; what follows the blocks belongs to the last one."""
    before: list[nn.Module] = []
    blocks: list[nn.Module] = []
    after: list[nn.Module] = []
    for child in base.children():
        lists = [m for m in child.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        if lists and not blocks:
            blocks = list(lists[0])
        elif any(True for _ in child.parameters()):
            (after if blocks else before).append(child)
    after += [] if head is None else [head]
    return [nn.ModuleList(before), *blocks[:-1], nn.ModuleList([blocks[-1], *after])]


def save_tokenizer_and_config(model: str, folder: Path) -> None:
    """Both in Hugging Face's layout, so that `model` can be built again from `folder` without the hub."""
    from transformers import AutoConfig

    load_tokenizer(model).save_pretrained(folder)
    AutoConfig.from_pretrained(locate_model(model), trust_remote_code=False).save_pretrained(folder)


class TextHF(Encoder):
    """A Hugging Face text *encoder* (BERT and its kin); `pooled` is the mean over real tokens.

    Args:
        model: a name on the hub, a local folder, or the name of an asset ("minilm").
        pretrained: False builds the same architecture with random weights.
        max_length: tokens; longer texts are cut.
        prefix_cache_bytes: memory for the outputs of leading layers that a stage doesn't train, see FrozenPrefix; 0
            computes them anew each time.

    Raises:
        ValueError: the model is a causal language model, or has fewer positions than `max_length`.
    """

    def __init__(self, model: str, pretrained: bool = True, max_length: int = 128, prefix_cache_bytes: int = 0) -> None:
        from transformers import AutoModel

        tower = _load(AutoModel, model, pretrained)
        if _is_causal(tower.config):
            raise ValueError(f"{model} is a causal language model: use TextCausalHF")
        _check_length(model, tower.config, max_length)
        if tower.config.is_encoder_decoder:
            tower = tower.get_encoder()
        if getattr(tower, "pooler", None) is not None:
            tower.pooler = None  # unused here, and a parameter without a gradient stops distributed training
        preprocess = HFPreprocess(max_length, model)
        super().__init__(preprocess=preprocess, width=tower.config.hidden_size, axis=Axis("tokens"))
        self.tower = tower
        self.model = model
        self.prefix = FrozenPrefix(prefix_cache_bytes)

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        if mask is None:
            mask = torch.ones_like(values, dtype=torch.bool)
        output = self.prefix.run(self._run, self, self.tower, values, attendable(mask))
        return Tokens.mean_pooled(output.last_hidden_state, mask)

    def _run(self, ids: Tensor, attended: Tensor) -> Any:
        return self.tower(input_ids=ids, attention_mask=attended.long())

    def layers(self) -> list[nn.Module]:
        return _layers(self.tower, self.tower.config.num_hidden_layers)

    def save_layout(self, folder: Path) -> None:
        """Configuration and tokenizer, without weights."""
        save_tokenizer_and_config(self.model, folder)


class TextCausalHF(CausalLanguageModel):
    """A Hugging Face *causal* language model that keeps its head; `pooled` is the vector at the last real token.

    Args:
        model: a name on the hub, a local folder, or the name of an asset ("smollm2-135m").
        pretrained: False builds the same architecture with random weights.
        max_length: tokens; longer texts are cut (but scored whole, see `score_text`).
        start, append_end: see `CausalHFPreprocess`.
        prefix_cache_bytes: as in TextHF.

    Raises:
        ValueError: the model is no causal language model, its logits are more than its head's output, or it has fewer
            positions than `max_length`.
    """

    def __init__(
        self,
        model: str,
        pretrained: bool = True,
        max_length: int = 128,
        start: str | None = None,
        append_end: bool = False,
        prefix_cache_bytes: int = 0,
    ) -> None:
        from transformers import AutoModelForCausalLM

        lm = _load(AutoModelForCausalLM, model, pretrained)
        if not _is_causal(lm.config):
            raise ValueError(f"{model} is not a causal language model: use TextHF")
        _check_length(model, lm.config, max_length)
        preprocess = CausalHFPreprocess(max_length, model, start, append_end)
        super().__init__(preprocess=preprocess, width=lm.config.hidden_size, axis=Axis("tokens"))
        self.lm = lm
        self.model = model
        self.end_id = load_tokenizer(model).eos_token_id if append_end else None
        self.prefix = FrozenPrefix(prefix_cache_bytes)
        self._takes_positions = "position_ids" in inspect.signature(lm.base_model.forward).parameters
        self._check_head(model)
        self.train()

    @torch.no_grad()
    def _check_head(self, model: str) -> None:
        """Some models scale or cap what their head gives; a likelihood from the bare head would be wrong."""
        self.eval()
        ids = torch.arange(3).unsqueeze(0)
        if not torch.allclose(self.lm(input_ids=ids).logits, self.logits(self(ids).sequence), atol=1e-3, rtol=1e-3):
            raise ValueError(f"{model}: its logits are not its head's output alone; such models are not supported")

    def forward(self, values: Tensor, mask: Bool[Tensor, "batch length"] | None = None) -> Tokens:
        if mask is None:
            mask = torch.ones_like(values, dtype=torch.bool)
        sequence = self.prefix.run(self._run, self, self.lm.base_model, values, attendable(mask)).last_hidden_state
        return Tokens(sequence, mask, pool_last(sequence, mask))

    def _run(self, ids: Tensor, attended: Tensor) -> Any:
        mask = attended.long()
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if self._takes_positions else {}
        return self.lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False, **positions)

    def logits(self, sequence: Float[Tensor, "*positions width"]) -> Float[Tensor, "*positions vocabulary"]:
        return self.lm.get_output_embeddings()(sequence)

    def layers(self) -> list[nn.Module]:
        head = self.lm.get_output_embeddings()
        tied = head.weight is self.lm.get_input_embeddings().weight
        return _layers(self.lm.base_model, self.lm.config.num_hidden_layers, None if tied else head)

    def save_layout(self, folder: Path) -> None:
        """The language model as Hugging Face's libraries load it: configuration, tokenizer, weights."""
        save_tokenizer_and_config(self.model, folder)
        self.lm.save_pretrained(folder)
