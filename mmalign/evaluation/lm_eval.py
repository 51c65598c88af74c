"""Language towers under EleutherAI's lm-evaluation-harness, on public tasks or on local task files.

Needs the extra `lm-eval`. Any tower with `score_text` can be measured, by exact likelihoods of whole texts:

    python -m mmalign.evaluation.lm_eval RUN_OR_CHECKPOINT --tasks blimp_anaphor_gender_agreement
    python -m mmalign.evaluation.lm_eval RUN_OR_CHECKPOINT --include my_tasks --tasks my_task --out results.json
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch


def harness_model(tower: Any) -> Any:
    """The tower as a model of the harness; its requests for generated text are refused with a clear error.

    A continuation's log-likelihood is that of context and continuation together minus that of the context: the same as
    conditioning on it wherever the tokenizer cuts at the border, as the byte-level one always does.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: the tower is no language model.
    """
    from lm_eval.api.model import LM

    if not hasattr(tower, "score_text"):
        raise ValueError(f"{type(tower).__name__} is no language model: it has no score_text")

    class TowerModel(LM):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = [request.args for request in requests]
            both = _nats(tower, [context + continuation for context, continuation in pairs])
            given = _nats(tower, [context for context, _ in pairs])
            # whether it would be generated greedily is not known; accuracies by likelihood do not ask
            return [(float(a - b), False) for a, b in zip(given, both, strict=True)]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [-float(value) for value in _nats(tower, [request.args[0] for request in requests])]

        def generate_until(self, requests: list[Any]) -> list[str]:
            raise ValueError("this task generates text; towers are measured by likelihood only")

    return TowerModel()


def _nats(tower: Any, texts: list[str]) -> torch.Tensor:
    unique = list(dict.fromkeys(texts))
    scored = dict(zip(unique, tower.score_text(unique)[0].tolist(), strict=True))
    return torch.tensor([scored[text] for text in texts], dtype=torch.float64)


def evaluate_with_harness(
    tower: Any, tasks: list[str], include: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """The harness's results by task.

    Args:
        include: a folder of the user's own task files (YAML).
        limit: only the first so many documents of a task.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=None if include is None else str(include))
    outcome = lm_eval.simple_evaluate(model=harness_model(tower), tasks=tasks, task_manager=manager, limit=limit)
    return outcome["results"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Evaluate a run's language tower with lm-evaluation-harness.")
    parser.add_argument("checkpoint", type=Path, metavar="RUN_OR_CHECKPOINT")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--include", type=Path, default=None, metavar="DIR", help="a folder of local task files")
    parser.add_argument("--limit", type=int, default=None, help="only the first so many documents")
    parser.add_argument("--modality", default="text")
    parser.add_argument("--out", type=Path, default=None, metavar="FILE")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps; default: %(default)s")
    options = parser.parse_args(arguments)
    from mmalign.training.device import named_device
    from mmalign.training.load import load_model

    device = named_device(options.device)
    model, _ = load_model(options.checkpoint)
    model.to(device)
    results = evaluate_with_harness(model.encoders[options.modality], options.tasks, options.include, options.limit)
    text = json.dumps(results, indent=2, default=str)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
