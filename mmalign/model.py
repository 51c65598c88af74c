"""The model: encoders, one projection per modality, and an optional fusion. No losses, no Lightning."""

from typing import Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmalign.batch import Batch, Embeddings, Tokens, Values
from mmalign.checks import at_least
from mmalign.data.config import Reading
from mmalign.encoders.base import Encoder
from mmalign.encoders.text_causal import CausalLanguageModel
from mmalign.fusion.base import Fusion

FUSED = "fused"


def components_behind(modality: str) -> set[str]:
    """Globs of the components that a modality's vectors come out of; a fused one comes out of all."""
    return {"*"} if modality == FUSED else {f"encoder.{modality}", f"projection.{modality}"}


class Projection(nn.Module):
    """A tower's pooled output -> the shared space: linear, plus a residual two-layer perceptron when `hidden` > 0.

    A projection belongs to one modality: when towers share one, training a new modality through it moves the old ones
    even if their towers are frozen.
    """

    def __init__(self, width: int, dim: int, hidden: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, dim)
        self.residual: nn.Module | None = None
        if hidden:
            self.residual = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, dim),
            )

    def forward(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        pooled = pooled.to(self.linear.weight.dtype)
        projected = self.linear(pooled)
        return projected if self.residual is None else projected + self.residual(pooled)


class LeastSquares(nn.Module):
    """A head that is computed from training pairs, not trained: one side of a ridge regression between two towers.

    The source is mapped onto what the target is at unit length; both are centred by their training means. Until `set`
    it is random. What it holds are buffers: no optimizer moves it, and checkpoints and exports carry it.
    """

    weight: Tensor
    mean: Tensor

    def __init__(self, width: int, dim: int, side: Literal["source", "target"]) -> None:
        super().__init__()
        self.side = side
        self.register_buffer("weight", torch.randn(width, dim) / width**0.5)
        self.register_buffer("mean", torch.zeros(width))

    def set(self, mean: Float[Tensor, " width"], weight: Float[Tensor, "width dim"]) -> None:
        with torch.no_grad():
            self.mean.copy_(mean)
            self.weight.copy_(weight)

    def forward(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        pooled = pooled.to(self.weight.dtype)
        return ((pooled if self.side == "source" else F.normalize(pooled, dim=-1)) - self.mean) @ self.weight


class Heads(nn.ModuleList):
    """Several projections side by side, each into its own equal part of the shared space, each part at unit length.

    With `InfoNCE(heads=...)` each is trained as if it were alone, and the cosine of whole vectors is the mean of the
    heads' cosines: an ensemble (Lakshminarayanan et al. 2017, "Simple and Scalable Predictive Uncertainty Estimation
    using Deep Ensembles", NeurIPS) that costs a few small layers, since the tower is shared.

    Args:
        computed: which side of a least-squares map the last head is; None: it is trained like the others.

    Raises:
        ValueError: `dim` is no multiple of `heads`.
    """

    def __init__(
        self,
        heads: int,
        width: int,
        dim: int,
        hidden: int = 0,
        dropout: float = 0.0,
        computed: Literal["source", "target"] | None = None,
    ) -> None:
        if heads < 1 or dim % heads:
            raise ValueError(f"model: dim {dim} cannot be shared by {heads} projection_heads")
        trained = heads if computed is None else heads - 1
        super().__init__(Projection(width, dim // heads, hidden, dropout) for _ in range(trained))
        if computed is not None:
            self.append(LeastSquares(width, dim // heads, computed))

    def forward(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        return torch.cat([F.normalize(head(pooled), dim=-1) for head in self], dim=-1)


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The parts that make, in training mode, a row's output depend on the whole batch."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def mixes_rows(module: nn.Module) -> bool:
    """Whether a row's output depends on the whole batch, as it stands now."""
    return any(norm.training for norm in batch_norms(module))


def bucketed(
    tower: Encoder, values: Tensor, mask: Bool[Tensor, "batch length"] | None, buckets: int, fewest_rows: int = 8
) -> Tokens:
    """A tower's output, computed in groups of rows of similar length, each without the padding that it does not need.

    An encoder's output for a row does not depend on its neighbours, so this equals one call, and is only faster. Where
    it does depend on them, by batch normalisation in training mode, all rows go through in one call.

    Args:
        buckets: how many groups there may be.
        fewest_rows: of a group; smaller ones are not worth a call.
    """
    groups = 0 if mask is None else min(buckets, len(values) // fewest_rows)
    if mask is None or groups < 2 or mixes_rows(tower):
        return tower(values, mask)
    lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
    order = lengths.argsort(stable=True)
    parts = []
    for rows in order.chunk(groups):
        longest = max(1, int(lengths[rows].max()))
        parts.append(tower(values[rows, :longest], mask[rows, :longest]))
    length = max(part.sequence.shape[1] for part in parts)
    sequences = [F.pad(part.sequence, (0, 0, 0, length - part.sequence.shape[1])) for part in parts]
    masks = [F.pad(part.mask, (0, length - part.mask.shape[1])) for part in parts]
    back = order.argsort()
    joined = (torch.cat(sequences), torch.cat(masks), torch.cat([part.pooled for part in parts]))
    return Tokens(*(tensor[back] for tensor in joined))


class Aligner(nn.Module):
    """Batch -> Tokens per modality -> vectors in one space -> (fused vector).

    Args:
        encoders: one tower per modality; the names are the modality names used everywhere else.
        dim: channels of the shared space.
        projection_hidden: width of the projections' residual perceptron; 0 means linear projections.
        projection_dropout: in that perceptron.
        projection_heads: projections per modality that share `dim` between them, see Heads; 1 is one Projection.
        least_squares: (source, target): the last of the heads of these two modalities is the linear map from the one
            tower to the other, see LeastSquares. A stage's `least_squares` says on what it is fitted.
        length_buckets: rows of similar length go through a tower together, in this many groups, so that little is
            computed for padding; the result is the same.
        fusion: joins the projected vectors into "fused"; None for none.

    Raises:
        ValueError: a size makes no sense; a modality is called "fused", or has a dot in its name; `dim` is no multiple
            of `projection_heads`; `least_squares` names no two modalities, is the only head, or a head's part of `dim`
            is not the width of the target's tower.
    """

    def __init__(
        self,
        encoders: dict[str, Encoder],
        dim: int = 128,
        projection_hidden: int = 0,
        projection_dropout: float = 0.0,
        projection_heads: int = 1,
        least_squares: tuple[str, str] | None = None,
        length_buckets: int = 4,
        fusion: Fusion | None = None,
    ) -> None:
        super().__init__()
        at_least(1, dim=dim, projection_heads=projection_heads)
        at_least(0, projection_hidden=projection_hidden, length_buckets=length_buckets)
        for name in encoders:
            if name == FUSED or "." in name:
                raise ValueError(f"model.encoders: {name!r} cannot be a modality's name")
        self.dim = dim
        self.length_buckets = length_buckets
        self.reading = Reading()
        """How evaluators read data for this model; a run sets it."""
        self.encoders = nn.ModuleDict(encoders)
        self.least_squares = least_squares
        sides: dict[str, Literal["source", "target"]] = {}
        if least_squares is not None:
            source, target = least_squares
            if source == target or not {source, target} <= set(encoders) or projection_heads < 2:
                raise ValueError(
                    f"model.least_squares: {list(least_squares)} must be two of the modalities {list(encoders)}, and "
                    f"projection_heads, {projection_heads}, at least 2"
                )
            if encoders[target].width * projection_heads != dim:
                raise ValueError(
                    f"model.least_squares: dim {dim} must be projection_heads, {projection_heads}, times the width of "
                    f"the {target} tower, {encoders[target].width}"
                )
            sides = {source: "source", target: "target"}
        rest = (dim, projection_hidden, projection_dropout)
        self.projections = nn.ModuleDict(
            {
                name: Projection(tower.width, *rest)
                if projection_heads == 1
                else Heads(projection_heads, tower.width, *rest, computed=sides.get(name))
                for name, tower in encoders.items()
            }
        )
        self.fusion = fusion
        if fusion is not None:
            fusion.build(sorted(encoders), dim)
        self.fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        """Parameters that their own constructors have frozen (sine positions, say): no stage trains them."""

    @property
    def modalities(self) -> list[str]:
        return list(self.encoders)

    def tower(self, name: str) -> Encoder:
        """The encoder of a modality, with its type: a ModuleDict knows only modules."""
        return cast(Encoder, self.encoders[name])

    def computed_head(self, name: str) -> LeastSquares:
        """The head of this modality that `least_squares` asked for."""
        return cast(LeastSquares, cast(Heads, self.projections[name])[-1])

    def components(self) -> dict[str, nn.Module]:
        """The parts that stages name: "encoder.image", "projection.image", …, "fusion"."""
        parts: dict[str, nn.Module] = {f"encoder.{name}": tower for name, tower in self.encoders.items()}
        parts |= {f"projection.{name}": projection for name, projection in self.projections.items()}
        if self.fusion is not None:
            parts["fusion"] = self.fusion
        return parts

    def encode(self, name: str, values: Values) -> Tokens:
        """One modality's values (not cached features) through its tower. A frozen tower builds no graph."""
        tower = self.tower(name)
        trained = any(parameter.requires_grad for parameter in tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            if values.values is None:
                raise ValueError(f"{name}: cached features have been through the tower already")
            return bucketed(tower, tower.in_its_precision(values.values), values.mask, self.length_buckets)

    def project(self, name: str, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch dim"]:
        """Pooled tower outputs -> the shared space, not yet normalised."""
        return self.projections[name](pooled)

    def embed(self, name: str, values: Values) -> Float[Tensor, "batch dim"]:
        """One modality's unit vectors, from values or from cached features; absent rows are zero."""
        pooled = values.features if values.features is not None else self.encode(name, values).pooled
        return self._unit(self.project(name, pooled), values.present)

    def fuse(
        self, vectors: dict[str, Float[Tensor, "batch dim"]], present: dict[str, Tensor]
    ) -> Float[Tensor, "batch dim"]:
        """Unit vectors of any non-empty subset of modalities -> unit fused vectors.

        Raises:
            ValueError: the model has no fusion.
        """
        if self.fusion is None:
            raise ValueError("the model has no fusion: set model.init_args.fusion")
        dtype = next(self.fusion.parameters()).dtype
        vectors = {name: rows.to(dtype) for name, rows in vectors.items()}
        return self._unit(self.fusion(vectors, present), torch.stack(list(present.values())).any(0))

    def forward(self, batch: Batch) -> Embeddings:
        vectors: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        likelihoods: dict[str, Tensor] = {}
        present = {name: values.present for name, values in batch.modalities.items()}
        for name, values in batch.modalities.items():
            pooled[name], likelihood = self._pooled(name, values, batch.language)
            vectors[name] = self._unit(self.project(name, pooled[name]), values.present)
            if likelihood is not None:
                likelihoods[name] = likelihood
        if self.fusion is not None:
            fusible = present
            if batch.language is not None:  # plain text has no counterpart: a contrast would be with itself
                fusible = {name: rows & ~batch.language for name, rows in present.items()}
            vectors[FUSED] = self.fuse(vectors, fusible)
            present = {**present, FUSED: torch.stack(list(fusible.values())).any(0)}
        return Embeddings(vectors, present, batch.group, likelihoods, pooled, replayed=batch.replayed)

    def _pooled(self, name: str, values: Values, language: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Pooled outputs [batch, width] and likelihoods [batch, 2] of language rows; only present rows are computed."""
        if values.features is not None:
            return values.features, None
        rows = values.present.nonzero().squeeze(1)
        some = values if len(rows) == len(values.present) else values.map_tensors(lambda tensor: tensor[rows])
        if len(rows) == 0:
            zeros = torch.zeros(len(values.present), self.tower(name).width, device=values.present.device)
            return zeros, None
        tokens = self.encode(name, some)
        likelihood = None
        tower = self.tower(name)
        if language is not None and isinstance(tower, CausalLanguageModel):
            likelihood = self._likelihood(tower, tokens, some, language, rows)
        if len(rows) == len(values.present):
            return tokens.pooled, likelihood
        return tokens.pooled.new_zeros(len(values.present), tokens.pooled.shape[1]).index_copy(
            0, rows, tokens.pooled
        ), likelihood

    @staticmethod
    def _likelihood(
        tower: CausalLanguageModel, tokens: Tokens, values: Values, language: Tensor, rows: Tensor
    ) -> Tensor:
        wanted = language[rows].nonzero().squeeze(1)
        result = torch.zeros(len(language), 2, device=language.device)
        part = values.map_tensors(lambda tensor: tensor[wanted])
        if len(wanted) == 0 or part.values is None or part.mask is None:
            return result
        scored = tower.likelihood(tokens.map_tensors(lambda t: t[wanted]), part.values, part.mask)
        return result.to(scored.dtype).index_copy(0, rows[wanted], scored)

    @staticmethod
    def _unit(vectors: Tensor, present: Tensor) -> Tensor:
        # float32 also under autocast: logits of bf16 unit vectors are too coarse for a scale of 100
        unit = F.normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)
        return torch.where(present.unsqueeze(-1), unit, torch.zeros_like(unit))
