"""Plain text beside the pairs, so that a text tower keeps its language."""

from dataclasses import replace

from torch import Tensor

from mmalign.batch import Batch, Embeddings
from mmalign.data.config import ShardData
from mmalign.encoders.text_causal import CausalLanguageModel
from mmalign.losses.next_token import NextToken
from mmalign.model import Aligner
from mmalign.retention.base import Retention, StagePlan


class TextReplay(Retention):
    """Mixes plain text into every stage, the first one too, and goes on training next-token prediction on it.

    Loss: weight · Σ nll / Σ tokens over the language rows of the global batch, for every causal text tower. A tower
    without a language-model head gets no loss here: combine this with TowerDistillation, which holds such towers to
    what they were, on these rows. Contrastive losses pass over the rows, because they have one modality only.

    Stored: nothing; the text is a shard directory that the user names. It must be disjoint from the text that
    evaluation reads.

    Cost: `share` of each batch is text in place of new samples. A causal tower's head is computed for these rows.

    Paper: Robins 1995, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal", Connection Science 7(2); that a small
    share of the old text is enough for language models: Scialom et al. 2022, "Fine-tuned Language Models are Continual
    Learners", EMNLP.

    Example:
        retention:
          language:
            class_path: mmalign.retention.TextReplay
            init_args:
              text: {shards: shards/docstrings, modalities: {text: txt}}
              share: 0.25
    """

    def __init__(self, text: ShardData, share: float = 0.25, weight: float = 1.0) -> None:
        """
        Args:
            text: its rows are taken for plain language, whatever its `language` says.
            share: of the global batch.
            weight: of the next-token loss.

        Raises:
            ValueError: the share is not between 0 and 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"TextReplay: share is {share}, must be between 0 and 1")
        self.text = replace(text, language=True)
        self.share = share
        self.weight = weight
        self._losses: dict[str, NextToken] = {}

    def prepare(self, plan: StagePlan, model: Aligner) -> None:
        plan.replay[f"{self.name or 'text'}.text"] = (self.text, self.share)
        self._losses = {
            name: NextToken(name)
            for name, encoder in model.encoders.items()
            if isinstance(encoder, CausalLanguageModel)
        }

    def reaches(self, plan: StagePlan, model: Aligner) -> set[str]:
        return {glob for loss in self._losses.values() for glob in loss.reaches()}

    def penalty(self, model: Aligner, batch: Batch, embeddings: Embeddings) -> dict[str, Tensor]:
        name = self.name or "text"
        return {f"{name}.next_token.{m}": self.weight * loss(embeddings) for m, loss in self._losses.items()}
