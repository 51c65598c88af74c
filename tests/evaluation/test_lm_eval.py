"""The harness's numbers on a local task file are those of the tower's own likelihoods."""

import json
from pathlib import Path

import pytest
import torch

from mmalign.encoders.text_bytes import TextBytes
from mmalign.evaluation.lm_eval import evaluate_with_harness, harness_model

TASK = """
task: borders
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_accuracy_on_a_local_task(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    documents = [{"question": f"number {i} is", "choices": [chr(97 + i), chr(109 + i)]} for i in range(12)]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "borders.yaml").write_text(TASK.format(file=file))
    tower = TextBytes(width=16, depth=1, heads=2).eval()
    with torch.no_grad():
        tower.embedding.weight.mul_(20)  # opinions
    right = 0
    for document in documents:
        texts = [f"{document['question']} {choice}" for choice in document["choices"]]
        nats, _, _ = tower.score_text(texts)
        right += bool(nats[0] < nats[1])
    assert 0 < right < 12
    results = evaluate_with_harness(tower, ["borders"], include=tmp_path)
    assert results["borders"]["acc,none"] == pytest.approx(right / 12)


def test_a_tower_without_likelihoods_is_refused() -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    with pytest.raises(ValueError, match="Linear is no language model"):
        harness_model(torch.nn.Linear(1, 1))
