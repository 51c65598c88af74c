import csv
import io
import json
import math
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from mmalign.evaluation.table import Row, write_rows
from mmalign.report.compare import compare
from mmalign.report.examples import Example, Item, Result, save_media, write_examples
from mmalign.report.forgetting_plots import heat_map
from mmalign.report.run import Run
from mmalign.training.logging import LoggerSettings, make_loggers
from mmalign.training.train_csv import TrainCsv


def lines(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_train_csv_is_exact_and_grows_columns(tmp_path: Path) -> None:
    log = TrainCsv(tmp_path / "train.csv")
    log.log_metrics({"stage": "one", "loss": 0.1 + 0.2}, step=1)
    log.log_metrics({"gradient_norm": np.float32(2.5)}, step=1)
    log.log_metrics({"stage": "two, with\na comma", "loss/new": math.nan}, step=2)
    log.log_metrics({"loss": 3}, step=2)
    first, second = lines(log.path)
    assert float(first["loss"]) == 0.1 + 0.2
    assert (first["step"], first["stage"], first["gradient_norm"], first["loss/new"]) == ("1", "one", "2.5", "")
    assert (second["stage"], second["loss/new"], second["loss"]) == ("two, with a comma", "nan", "3")


@pytest.mark.parametrize("resume_step", [0, 3, 7])
@pytest.mark.parametrize("torn", [b"", b"8,0.12", b'8,"0.1'])
def test_train_csv_resumed_equals_uninterrupted(tmp_path: Path, resume_step: int, torn: bytes) -> None:
    def train(log: TrainCsv, start: int, stop: int) -> None:
        for step in range(start + 1, stop + 1):
            log.log_metrics({"loss": 1 / step} | ({"loss/late": 2 / step} if step > 4 else {}), step=step)

    whole = TrainCsv(tmp_path / "whole.csv")
    train(whole, 0, 10)
    killed = tmp_path / "killed.csv"
    train(TrainCsv(killed), 0, 7)
    with open(killed, "ab") as file:
        file.write(torn)
    train(TrainCsv(killed, resume_step), resume_step, 10)
    assert lines(killed) == lines(whole.path)


def test_a_new_run_does_not_append_to_an_old_one(tmp_path: Path) -> None:
    TrainCsv(tmp_path / "train.csv").log_metrics({"loss": 1.0}, step=1)
    TrainCsv(tmp_path / "train.csv").log_metrics({"loss": 2.0}, step=1)
    assert [line["loss"] for line in lines(tmp_path / "train.csv")] == ["2.0"]


def offline_records(run_dir: Path) -> list:
    """The records of a finished offline run; W&B's own process may still be writing them when `finish` returns."""
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    for _ in range(200):
        records = parse_records(path.read_bytes())
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.05)
    raise AssertionError(f"{path} was never finished")


def parse_records(data: bytes) -> list:
    """The complete records of a .wandb file: a LevelDB log with a header of its own."""
    from wandb.proto import wandb_internal_pb2

    assert data[:4] == b":W&B"
    records, pending, position = [], b"", 7
    while position + 7 <= len(data):
        if (room := 32768 - position % 32768) < 7:
            position += room
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        if len(chunk) < length:
            break  # still being written
        assert zlib.crc32(bytes([kind]) + chunk) == checksum
        position += 7 + length
        pending += chunk
        if kind in (1, 4):  # a full record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            records.append(record)
            pending = b""
    return records


def history(records: list) -> dict[str, list]:
    found: dict[str, list] = {}
    for record in records:
        for item in record.history.item:
            found.setdefault(item.key or "/".join(item.nested_key), []).append(json.loads(item.value_json))
    return found


def example(run_dir: Path) -> Example:
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "png")
    soundfile.write(sound, np.zeros(800, dtype=np.float32), 16000, format="FLAC")
    image = save_media(run_dir, "data/../x", "png", picture.getvalue())
    audio = save_media(run_dir, "data/../x", "flac", sound.getvalue())
    item = Item("data/../x", "a red square", image, audio)
    return Example("scenes", "text->image", Item("q", "red"), 2, [Result(item, 0.5, False), Result(item, 0.4, True)])


def test_offline_wandb_holds_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    write_examples(tmp_path, [example(tmp_path)])
    (tmp_path / "report.html").write_text("<html></html>")
    row = Row("r", "one", 1, 7, "scenes", "scenes", "test", "image->text", "R@1", 0.5, main=True)
    hole = Row("r", "one", 1, 7, "speech", "scenes", "test", "audio->text", "R@1", math.nan)
    log = make_loggers(tmp_path, {"model": {"dim": 64}, "seed": 3}, LoggerSettings(project="p"), name="r")
    log.log({"loss": 0.25, "stage": "one"}, 7)
    log.log_rows([row, hole])
    log.log_examples(tmp_path, 7)
    log.log_figure("forgetting", heat_map([[0.5]], ["one"], ["scenes"], [True]), 7)
    log.log_matrix([row, hole], 7)
    log.log_table("comparison", ["arm", "mean"], [["naive", 0.5]], 7)
    log.log_report(tmp_path / "report.html")
    log.close()

    records = offline_records(tmp_path)
    configs = [record.run.config.update for record in records if record.HasField("run")]
    config = {item.key: json.loads(item.value_json) for update in configs for item in update}
    assert config["model"] == {"dim": 64}
    assert config["seed"] == 3
    values = history(records)
    assert values["loss"] == [0.25]
    assert values["stage"] == ["one"]
    assert values["eval/scenes/image->text/R@1"] == [0.5]
    assert set(values["trainer/global_step"]) == {7}
    assert not any("speech" in name for name in values)
    assert values["comparison/ncols"] == [2]
    artifacts = [record.artifact for record in records if record.HasField("artifact")]
    assert [a.type for a in artifacts if a.type == "report"] == ["report"]
    (media,) = tmp_path.glob("wandb/offline-run-*/files/media")
    (table,) = (media / "table").glob("examples*.json")
    written = json.loads(table.read_text())
    assert written["data"][0][:4] == ["scenes", "text->image", 2, "red"]
    assert len(list((media / "images").glob("forgetting_*.png"))) == 2  # the figure, and the matrix of the rows
    members = [entry.path for a in artifacts if a.type == "run_table" for entry in a.manifest.contents]
    assert any(member.endswith(".png") for member in members)
    assert any(member.endswith(".flac") for member in members)
    assert lines(tmp_path / "train.csv")[0]["loss"] == "0.25"


def test_a_comparison_goes_to_wandb(tmp_path: Path) -> None:
    for seed in (0, 1):
        rows = [
            Row(
                "r",
                stage,
                index,
                index,
                column,
                "d",
                "test",
                "image->text",
                "R@1",
                value,
                main=True,
                emergent=new,
                seed=seed,
            )
            for index, stage in enumerate(("start", "one", "two"))
            for column, value, new in (("a", 0.5, index < 1), ("b", 0.2 * index, index < 2))
        ]
        (tmp_path / str(seed)).mkdir()
        write_rows(tmp_path / str(seed) / "metrics.jsonl", rows)
        (tmp_path / str(seed) / "run.json").write_text('{"arm": "naive"}')
    log = make_loggers(tmp_path, {}, LoggerSettings(mode="offline"))
    log.log_comparison(compare([Run(tmp_path / "0"), Run(tmp_path / "1")]))
    log.close()
    values = history(offline_records(tmp_path))
    assert values["comparison/ncols"] == [5]
    assert values["forgetting_matrix/naive/_type"] == ["image-file"]
    assert values["stability_plasticity/_type"] == ["image-file"]


def test_resuming_keeps_the_run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    versions = []
    for resume_step in (None, 4, None):
        log = make_loggers(tmp_path, {}, LoggerSettings(), resume_step=resume_step)
        assert log.wandb is not None
        versions.append(log.wandb.version)
        log.close()
    assert versions[0] == versions[1] != versions[2]


def test_two_runs_of_one_process_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    logs = [make_loggers(tmp_path / name, {"arm": name}, LoggerSettings()) for name in ("a", "b")]
    for value, log in enumerate(logs):
        log.log({"loss": float(value)}, 1)
    for log in logs:
        log.close()
    assert [history(offline_records(tmp_path / name))["loss"] for name in ("a", "b")] == [[0.0], [1.0]]


def test_unreachable_server_means_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("mmalign.training.wandb_connection._logged_in", lambda: True)
    monkeypatch.setattr("mmalign.training.wandb_connection._base_url", lambda: "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="offline"):
        log = make_loggers(tmp_path, {}, LoggerSettings())
    log.log({"loss": 1.0}, 1)
    log.close()
    assert history(offline_records(tmp_path))["loss"] == [1.0]


def test_a_server_that_hangs_up_means_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, and then W&B raises, as it does after its time-out."""
    import wandb

    real = wandb.init

    def init(**kwargs: object) -> object:
        if kwargs["mode"] == "online":
            raise wandb.errors.CommError("timed out")
        return real(**kwargs)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("mmalign.training.wandb_connection._server_answers", lambda seconds: True)
    with pytest.warns(UserWarning, match="timed out"):
        log = make_loggers(tmp_path, {}, LoggerSettings(mode="online"))
    log.log({"loss": 1.0}, 1)
    log.close()
    assert history(offline_records(tmp_path))["loss"] == [1.0]


def test_a_broken_wandb_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def init(**kwargs: object) -> object:
        raise RuntimeError("no disk for it")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.warns(UserWarning, match="no disk for it"):
        log = make_loggers(tmp_path, {}, LoggerSettings(mode="offline"))
    log.log({"loss": 1.0}, 1)
    log.close()
    assert lines(tmp_path / "train.csv")[0]["loss"] == "1.0"


@pytest.mark.parametrize(
    ("mode", "variable", "logged_in", "expected"),
    [
        ("auto", "", False, "offline"),
        ("auto", "", True, "online"),
        ("auto", "online", False, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),
        ("auto", "disabled", True, "disabled"),
        ("disabled", "online", True, "disabled"),
        ("offline", "online", True, "offline"),
        ("online", "offline", False, "online"),
    ],
)
def test_mode(mode: str, variable: str, logged_in: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmalign.training import wandb_connection

    monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(wandb_connection, "_logged_in", lambda: logged_in)
    monkeypatch.setattr(wandb_connection, "_server_answers", lambda seconds: True)
    assert wandb_connection._wandb_mode(LoggerSettings(mode=mode)) == expected
