"""What a curriculum keeps when it is interrupted, or starts from another run; on a model of two small towers."""

import json
import os
import signal
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from mmalign.evaluation.table import read_rows, write_rows
from mmalign.export.folder import export_model
from mmalign.report.examples import read_examples
from mmalign.training.config import check_config
from mmalign.training.curriculum import Curriculum
from mmalign.training.load import load_model
from mmalign.training.module import AlignmentModule
from mmalign.training.run import train
from mmalign.training.yaml_config import read_config

ROOT = Path(__file__).parents[2]
SCENES = {"scenes": {"shards": "data/debug", "modalities": {"image": "png", "text": "captions[*]"}}}
LANGUAGE = {"shards": "data/docstrings", "split": "test", "modalities": {"text": "txt"}, "limit": 2}


def stage(steps=4, **more):
    optimization = {"learning_rate": 0.01, "warmup_steps": 0}
    plain = {"data": SCENES, "losses": {"image_text": 1.0}, "steps": steps, "batch_size": 8}
    return plain | {"optimization": optimization} | more


def small(*stages, **more):
    """configs/debug.yaml without sounds and fusion, and with these stages, "one", "two", …"""
    raw = read_config(ROOT / "configs" / "debug.yaml", {})
    model = raw["model"]["init_args"]
    del model["fusion"], model["encoders"]["audio"]
    model |= more.pop("model", {})
    docstrings = raw["sources"]["data/debug-docstrings"]
    raw |= {
        "sources": {"data/debug": raw["sources"]["data/debug"], "data/docstrings": docstrings},
        "losses": {name: raw["losses"][name] for name in ("image_text", "language")},
        "stages": dict(zip(("one", "two"), stages, strict=False)),
        "retention": {},
        "evaluation": {
            "language": {"class_path": "mmalign.evaluation.LanguageModeling", "init_args": {"data": LANGUAGE}}
        },
        "runtime": {"accelerator": "cpu", "workers": 0, "threads": 1, "progress_bar": False, "log_every_steps": 1},
        "logging": {"mode": "disabled"},
    }
    raw["sources"]["data/debug"]["init_args"] = {"train": 48, "val": 16, "test": 24, "test_compositional": 16}
    raw["runtime"] |= more.pop("runtime", {})
    return check_config(raw | more)


@pytest.fixture(scope="module", autouse=True)
def workplace(tmp_path_factory):
    """A folder where the data are built once."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("curriculum"))
    yield
    os.chdir(before)


def checkpoint(run, name="stage-01"):
    return torch.load(Path(run) / "checkpoints" / f"{name}.ckpt", weights_only=True)


def train_until_the_end_of(index, config, out):
    """As if the process were killed before it saves the end of a stage."""
    plain = Curriculum._save_end

    def killed(self, ended):
        if ended == index:
            raise KeyboardInterrupt
        plain(self, ended)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curriculum, "_save_end", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, Path(out))


def test_a_resumed_stage_begins_with_the_fitted_head():
    wise = {"class_path": "mmalign.retention.WiSE", "init_args": {"components": ["projection.*"]}}
    config = small(
        stage(least_squares=["scenes"]),
        model={"projection_heads": 2, "dim": 96, "least_squares": ["image", "text"]},
        retention={"wise": wise},
        runtime={"checkpoint_every_steps": 2},
    )
    train(config, Path("whole"))
    train_until_the_end_of(1, config, "killed")
    assert Path("killed/checkpoints/stage-01-step-00000002.ckpt").exists()
    train(config, Path("killed"), resume=True)
    whole, killed = (checkpoint(run)["state_dict"] for run in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    assert [name for name in whole if not torch.equal(whole[name], killed[name])] == []


def test_lost_figures_are_measured_again_on_the_weights_of_their_stage():
    config = small(stage(steps=2), stage(steps=2))
    train(config, Path("lost"))
    metrics = Path("lost/metrics.jsonl")
    before = read_rows(metrics)
    values = {row.stage: row.value for row in before if row.main}
    assert len(set(values.values())) == len(values) == 3
    write_rows(metrics, [row for row in before if row.stage == "two"])
    train(config, Path("lost"), resume=True)
    assert read_rows(metrics) == before
    metrics.unlink()
    Path("lost/checkpoints/stage-01.ckpt").unlink()
    with pytest.warns(UserWarning, match=r"has no figures of 'one' for language, and .*stage-01\.ckpt is gone"):
        train(config, Path("lost"), resume=True)
    assert read_rows(metrics) == [row for row in before if row.stage != "one"]


def test_columns_that_come_later_are_measured_on_all_stages():
    language = {"class_path": "mmalign.evaluation.LanguageModeling", "init_args": {"data": LANGUAGE}}
    shorter = {**language, "init_args": {"data": {**LANGUAGE, "limit": 5}}}
    drift = {"class_path": "mmalign.evaluation.TowerDrift"}
    stages = [stage(steps=2), stage(steps=2)]
    train(small(*stages, evaluation={"drift": drift, "language": shorter}), Path("from_the_start"))
    wanted = read_rows(Path("from_the_start/metrics.jsonl"))
    assert {(row.stage, row.column) for row in wanted} == set(product(("start", "one", "two"), ("drift", "language")))
    train(small(*stages, evaluation={"language": language}), Path("later"))
    other = {row.stage: row.value for row in read_rows(Path("later/metrics.jsonl")) if row.main}
    assert other != {row.stage: row.value for row in wanted if row.main and row.column == "language"}
    weights = checkpoint("later", "stage-02")["state_dict"]

    train(small(*stages, evaluation={"drift": drift, "language": shorter}), Path("later"), resume=True)
    assert read_rows(Path("later/metrics.jsonl")) == wanted
    end = checkpoint("later", "stage-02")
    assert end["mmalign"]["evaluators"]["drift"].keys() == {"reference", "text_hash"}
    assert all(torch.equal(weights[name], end["state_dict"][name]) for name in weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curriculum, "_evaluate_missing", None)  # nothing is left to do
        train(small(*stages, evaluation={"drift": drift, "language": shorter}), Path("later"), resume=True)


def test_a_column_that_comes_later_leaves_the_examples_of_the_others():
    column = {
        "class_path": "mmalign.evaluation.Retrieval",
        "init_args": {"data": {**SCENES["scenes"], "split": "test"}},
    }
    train(small(stage(steps=2), evaluation={"first": column}), Path("examples"))
    before, gap = read_examples(Path("examples")), Path("examples/diagnostics.json").read_text()
    train(small(stage(steps=2), evaluation={"first": column, "second": column}), Path("examples"), resume=True)
    after = read_examples(Path("examples"))
    assert before
    assert [example for example in after if example.column == "first"] == before
    assert [replace(example, column="first") for example in after if example.column == "second"] == before
    assert Path("examples/diagnostics.json").read_text() == gap


def test_a_new_column_of_a_run_that_was_killed_within_a_stage():
    drift = {"class_path": "mmalign.evaluation.TowerDrift"}
    config = small(stage(steps=4), evaluation={"drift": drift}, runtime={"checkpoint_every_steps": 2})
    train(config, Path("whole_drift"))
    train_until_the_end_of(
        1, small(stage(steps=4), evaluation={}, runtime={"checkpoint_every_steps": 2}), "killed_drift"
    )
    train(config, Path("killed_drift"), resume=True)
    assert read_rows(Path("killed_drift/metrics.jsonl")) == read_rows(Path("whole_drift/metrics.jsonl"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [0, 1])
def test_a_signal_ends_the_process_also_in_the_last_step_of_a_stage(step, number, monkeypatch, capsys):
    plain = AlignmentModule.training_step

    def terminated(self, batch, batch_index):
        if self.plan.name == "one" and self.global_step == step:
            os.kill(os.getpid(), number)
        return plain(self, batch, batch_index)

    out = Path(f"terminated-{step}-{number}")
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    monkeypatch.setattr(AlignmentModule, "training_step", terminated)
    with pytest.raises(SystemExit) as exit:
        train(small(stage(steps=2), stage(steps=2)), out)
    assert exit.value.code == 128 + number
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    assert f"mmalign: {word}; go on with --resume\n" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    saved = "stage-01-step-00000001.ckpt" if step == 0 else "stage-01.ckpt"
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["stage-00.ckpt", saved]


def test_lightning_does_not_swallow_an_interruption_before_the_first_step(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(AlignmentModule, "configure_optimizers", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(small(stage(steps=2)), Path("interrupted"))
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on


def test_the_share_of_faults_is_that_of_the_samples_that_a_stage_may_draw():
    config = small(stage(data={"scenes": SCENES["scenes"] | {"limit": 16}}), max_fault_share=0.13)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Curriculum, "_trainer", lambda self, plan, stage, allowed, *_: seen.append(allowed) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(config, Path("share"))
    assert seen == [pytest.approx(0.13 * 16)]


def test_what_the_initial_checkpoint_was_trained_on_is_known():
    train(small(stage(steps=1)), Path("first"))
    docstrings = {"docstrings": {"shards": "data/docstrings", "modalities": {"text": "txt"}, "language": True}}
    config = small(
        stage(steps=2, data=docstrings, losses={"language": 1.0}),
        retention={"lwf": {"class_path": "mmalign.retention.LwF"}},
        initial_checkpoint="first/checkpoints/stage-01.ckpt",
        runtime={"checkpoint_every_steps": 1},
    )
    train_until_the_end_of(1, config, "second")
    assert checkpoint("second", "stage-00")["mmalign"]["trained_pairs"] == [["image", "text"]]
    train(config, Path("second"), resume=True)
    assert checkpoint("second")["mmalign"]["trained_pairs"] == [["image", "text"], ["text"]]
    assert "loss/lwf.vectors" in Path("second/train.csv").read_text().splitlines()[0]


def two_steps():
    return small(stage(steps=1), stage(steps=2), runtime={"checkpoint_every_steps": 1, "price_per_hour": 3600.0})


def test_a_checkpoint_within_a_stage_says_where_it_stands_and_loads():
    train_until_the_end_of(2, two_steps(), "within")
    _, facts = load_model(Path("within"))
    assert [facts[key] for key in ("stage_index", "stage_step", "total_step")] == [2, 1, 2]
    assert facts["trained_pairs"] == [["image", "text"]]


def test_a_resumed_stage_costs_the_time_of_all_its_processes():
    if not Path("within").exists():
        train_until_the_end_of(2, two_steps(), "within")
    saved = Path("within/checkpoints/stage-02-step-00000001.ckpt")
    content = torch.load(saved, weights_only=True)
    content["callbacks"]["CostMeter"]["loop_seconds"] += 1000.0
    torch.save(content, saved)
    train(two_steps(), Path("within"), resume=True)
    _, cost = json.loads(Path("within/cost.json").read_text())
    assert cost["seconds"] > 1000
    assert cost["price"] == pytest.approx(cost["seconds"])


def test_a_run_interrupted_with_lora_gives_the_model_of_the_stage_before():
    lora = {"class_path": "mmalign.retention.LoRA", "init_args": {"components": ["encoder.text"], "rank": 2}}
    config = small(stage(steps=2), retention={"lora": lora}, runtime={"checkpoint_every_steps": 1})
    train_until_the_end_of(1, config, "adapted")
    with pytest.warns(UserWarning, match=r"stage-01-step-00000001\.ckpt is within a stage of LoRA; .*stage-00\.ckpt"):
        model, facts = load_model(Path("adapted"))
    assert facts["stage_index"] == 0
    saved = checkpoint("adapted", "stage-00")["state_dict"]
    assert all(torch.equal(weight, saved[f"model.{name}"]) for name, weight in model.state_dict().items())
    with pytest.raises(ValueError, match=r"stage-01-step-00000001\.ckpt: within a stage of LoRA"):
        load_model(Path("adapted/checkpoints/stage-01-step-00000001.ckpt"))


def three():
    """`small` with a third modality, another tower for the texts, and a loss for it."""
    image, text = (small(stage())["model"]["init_args"]["encoders"][name] for name in ("image", "text"))
    return small(
        stage(steps=1, losses={"image_notes": 1.0}, data={"scenes": scenes("notes")}),
        model={"encoders": {"image": image, "text": text, "notes": text}},
        retention={"lwf": {"class_path": "mmalign.retention.LwF"}},
        losses={
            name: {"class_path": "mmalign.losses.InfoNCE", "init_args": {"a": "image", "b": other}}
            for name, other in (("image_text", "text"), ("image_notes", "notes"))
        },
    )


def scenes(text):
    return SCENES["scenes"] | {"modalities": {"image": "png", text: "captions[*]"}}


@pytest.fixture(scope="module")
def two_modalities():
    """A run whose losses are image_text and language."""
    train(small(stage(steps=1)), Path("two"))
    export_model(Path("two"), Path("two-exported"))
    return checkpoint("two")["state_dict"]


@pytest.mark.parametrize("origin", ["two", "two/checkpoints/stage-01.ckpt", "two-exported"])
def test_a_modality_is_added_to_a_model_that_exists(two_modalities, origin, capsys):
    out = Path(f"three-of-{Path(origin).name}")
    train(three() | {"initial_checkpoint": origin}, out)
    exported = origin == "two-exported"
    losses = "loss.image_text, loss.image_notes" if exported else "loss.image_notes"
    said = f"initial_checkpoint: {origin}: starts anew: encoder.notes, projection.notes, {losses}\n"
    assert said in capsys.readouterr().out  # the loss of language has no weights that could be left out
    start = checkpoint(out, "stage-00")
    assert start["mmalign"]["initial_pairs"] == [["image", "text"]]
    taken = [name for name in two_modalities if not exported or name.startswith("model.")]
    assert [name for name in taken if not torch.equal(two_modalities[name], start["state_dict"][name])] == []
    assert any(name.startswith("model.encoders.notes.") for name in start["state_dict"])


def test_a_run_without_columns_has_a_report():
    report = train(small(stage(steps=1), evaluation={}), Path("no-columns"))
    assert report.exists()
