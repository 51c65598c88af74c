"""What a step sees depends on seed, stage and step, and on nothing else."""

import dataclasses
import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmalign.batch import Batch, Tokens
from mmalign.data.bound import check_members
from mmalign.data.config import ShardData
from mmalign.data.faults import Limits
from mmalign.data.index import build_index
from mmalign.data.precompute import open_or_build
from mmalign.data.shardset import ShardSet
from mmalign.data.stream import Stream
from mmalign.data.variants import VariantLoader
from mmalign.encoders.base import Axis, Encoder, Preprocess, SeriesPreprocess

MEMBERS = {"image": "png", "audio": "flac", "text": "captions[*]"}


@pytest.fixture
def sources(shards: Path) -> dict[str, tuple[ShardData, float]]:
    data = ShardData(str(shards), modalities=dict(MEMBERS))
    return {"a": (data, 0.75), "b": (dataclasses.replace(data, modalities={"text": "txt"}, language=True), 0.25)}


def equal(left: Batch, right: Batch) -> bool:
    def flat(batch: Batch) -> dict[str, Any]:
        tensors = {"group": batch.group, "language": batch.language}
        for name, values in batch.modalities.items():
            tensors |= {f"{name}.{field}": getattr(values, field) for field in ("present", "values", "mask")}
        return tensors

    first, second = flat(left), flat(right)
    return (left.keys, left.faults) == (right.keys, right.faults) and all(
        (first[name] is None and second[name] is None) or torch.equal(first[name], second[name]) for name in first
    )


def test_a_pure_function_of_the_step(sources: Any, preprocess: dict[str, Preprocess]) -> None:
    def make(**changes: Any) -> Stream:
        return Stream(sources, preprocess, **({"batch_size": 8, "seed": 0, "stage": "s", "steps": 12} | changes))

    whole = [make()[step] for step in range(12)]
    backwards = make(steps=99)
    for step in (11, 3, 3, 0):
        assert equal(backwards[step], whole[step])
    for change in ({"seed": 1}, {"stage": "t"}):
        other = make(**change)[0]
        assert other.keys != whole[0].keys
    with pytest.raises(IndexError):
        make()[12]


@pytest.mark.parametrize("world", [2, 4, 8])
def test_ranks_share_the_global_batch(sources: Any, preprocess: dict[str, Preprocess], world: int) -> None:
    def make(rank: int, world: int) -> Stream:
        return Stream(sources, preprocess, 8, seed=0, stage="s", steps=4, rank=rank, world=world)

    for step in range(4):
        whole = make(0, 1)[step]
        parts = [make(rank, world)[step] for rank in range(world)]
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([part.group for part in parts]), whole.group)
        assert whole.language is not None
        for name, values in whole.modalities.items():
            present = torch.cat([part.modalities[name].present for part in parts])
            assert torch.equal(present, values.present)
            rows = [row for part in parts for row in part.modalities[name].values]  # type: ignore[union-attr]
            for row, expected in zip(rows, values.values, strict=True):  # type: ignore[arg-type]
                # Padding differs, since each rank pads to its own longest row.
                assert torch.equal(row, expected[: len(row)])
                assert not expected[len(row) :].any()


def test_an_epoch_holds_every_sample_once(sources: Any, preprocess: dict[str, Preprocess]) -> None:
    stream = Stream({"a": sources["a"]}, preprocess, 8, seed=0, stage="s", steps=10)
    keys = [key for step in range(10) for key in stream[step].keys]  # 80 draws of 20 samples
    orders = [tuple(keys[start : start + 20]) for start in range(0, 80, 20)]
    assert all(len(set(order)) == 20 for order in orders)
    assert len(set(orders)) == 4
    both = Stream(sources, preprocess, 8, seed=0, stage="s", steps=20)
    counts = Counter(key for step in range(20) for key in both[step].keys)
    assert {counts[key] for key in counts if key.startswith("a/")} == {6}
    assert {counts[key] for key in counts if key.startswith("b/")} == {2}


def test_rows_hold_what_the_shards_hold(sources: Any, preprocess: dict[str, Preprocess], shards: Path) -> None:
    batch = Stream(sources, preprocess, 16, seed=0, stage="s", steps=1)[0]
    text = batch.modalities["text"]
    assert text.values is not None
    assert text.mask is not None
    assert batch.language is not None
    for i, key in enumerate(batch.keys):
        number = int(key[2:])
        decoded = bytes(text.values[i][text.mask[i]].tolist()[1:-1]).decode()
        own = {f"text number {number}"} if key[0] == "b" else {f"one {number}", f"two {number}", f"un {number}"}
        assert decoded in own
        assert bool(batch.language[i]) == (key[0] == "b")
        assert bool(batch.modalities["image"].present[i]) == (key[0] == "a")
    image = batch.modalities["image"]
    assert image.values is not None
    assert not image.values[~image.present].any()
    assert image.values[image.present].flatten(1).any(1).all()
    assert batch.replayed is None
    assert len(set(batch.group.tolist())) == len(set(batch.keys))


def test_picks_and_augmentation_change_with_the_epoch(sources: Any, preprocess: dict[str, Preprocess]) -> None:
    stream = Stream({"a": sources["a"]}, preprocess, 20, seed=0, stage="s", steps=12)
    texts: dict[str, set[str]] = {}
    pictures: dict[str, set[bytes]] = {}
    for step in range(12):
        batch = stream[step]
        for i, key in enumerate(batch.keys):
            pictures.setdefault(key, set()).add(batch.modalities["image"].values[i].numpy().tobytes())  # type: ignore
            texts.setdefault(key, set()).add(str(batch.modalities["text"].values[i].tolist()))  # type: ignore
    assert min(map(len, pictures.values())) > 6
    assert np.mean([len(found) for found in texts.values()]) > 2.5


def test_a_bound_modality_that_no_row_has(preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any) -> None:
    make_tar(tmp_path / "train-000000.tar", [(str(i), {"txt": b"text"}) for i in range(4)])
    build_index(tmp_path)
    everything = preprocess | {"imu": SeriesPreprocess(channels=3, hertz=50.0)}
    stream = Stream({"a": (ShardData(str(tmp_path)), 1.0)}, everything, 4, seed=0, stage="s", steps=1)
    batch = stream[0]
    assert list(batch.modalities) == ["image", "audio", "text", "imu"]
    for name in ("image", "audio", "imu"):
        values = batch.modalities[name]
        assert values.values is not None
        assert not values.present.any()
        assert not values.values.any()
        assert values.mask is None or not values.mask.any()
    assert batch.modalities["image"].values.shape == (4, 3, 8, 8)  # type: ignore[union-attr]
    bound = ShardData(str(tmp_path), modalities={"text": "txt"})
    assert list(Stream({"a": (bound, 1.0)}, everything, 4, 0, "s", 1)[0].modalities) == ["text"]


def test_groups_are_positives(preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any) -> None:
    groups = ["x", "y", "x", None]
    rows = [
        (str(i), {"txt": b"t", "json": json.dumps({} if group is None else {"group": group}).encode()})
        for i, group in enumerate(groups)
    ]
    make_tar(tmp_path / "train-000000.tar", rows)
    build_index(tmp_path)
    data = ShardData(str(tmp_path), modalities={"text": "txt"})
    batch = Stream({"a": (data, 1.0), "b": (data, 1.0)}, preprocess, 8, 0, "s", 1)[0]
    number = dict(zip(batch.keys, batch.group.tolist(), strict=True))
    assert number["a/0"] == number["a/2"]
    assert len(set(number.values())) == 6
    assert all(0 <= group < 2**63 for group in number.values())
    loader = VariantLoader(data, "text", preprocess["text"], name="a")
    assert {info.key: info.group for _, infos in loader for info in infos} == {
        key: group for key, group in number.items() if key[0] == "a"
    }


def test_settings_that_do_not_fit(sources: Any, preprocess: dict[str, Preprocess], shards: Path) -> None:
    with pytest.raises(ValueError, match="8 does not divide by the 3 processes"):
        Stream(sources, preprocess, 8, 0, "s", 1, world=3)
    with pytest.raises(ValueError, match="no encoder 'imagery'; did you mean 'image'"):
        Stream({"a": (ShardData(str(shards), modalities={"imagery": "png"}), 1.0)}, preprocess, 8, 0, "s", 1)
    with pytest.raises(ValueError, match="no split 'tran'; did you mean 'train'"):
        Stream({"a": (ShardData(str(shards), split="tran"), 1.0)}, preprocess, 8, 0, "s", 1)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check_members(ShardData(str(shards / "nowhere")))
    with pytest.raises(ValueError, match=r"modalities.image: 'gif' is in none of 20 samples .*000000 holds flac"):
        check_members(ShardData(str(shards), modalities={"text": "txt", "image": "gif"}))
    check_members(ShardData(str(shards), modalities={"image": "gif|png", "text": "captions[*]"}))
    for settings in ({"weight": -1.0}, {"limit": 0}, {"modalities": {}}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ShardData(str(shards), **settings)
    limited = Stream({"a": (ShardData(str(shards), limit=3), 1.0)}, preprocess, 6, 0, "s", 1)
    assert sorted(limited[0].keys) == [f"a/00000{i}" for i in (0, 0, 1, 1, 2, 2)]


def test_variants_are_read_in_order(sources: Any, preprocess: dict[str, Preprocess]) -> None:
    data = sources["a"][0]
    expected = [
        (number, f"val/{number:06d}", language, name)
        for number in range(20)
        for language, name in (("en", "captions[en]#0"), ("en", "captions[en]#1"), ("fr", "captions[fr]#0"))
    ]
    for workers, batch_size in ((0, 7), (0, 64), (2, 4)):
        loader = VariantLoader(data, "text", preprocess["text"], batch_size, workers, name="val")
        for _ in range(2):
            batches = list(loader)
            infos = [info for _, infos in batches for info in infos]
            assert [(i.sample, i.key, i.language, i.name) for i in infos] == expected
            assert all(len(values.present) == len(infos) <= batch_size for values, infos in batches)
            assert (loader.missing, loader.samples, loader.faults) == (0, 20, [])
    parts = [VariantLoader(data, "text", preprocess["text"], 3, name="val", rank=r, world=2) for r in range(2)]
    read = [info.sample for part in parts for _, infos in part for info in infos]
    assert sorted(read) == [sample for sample, *_ in expected]


def test_missing_and_faulty_variants(
    preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any, make_recording: Any
) -> None:
    good = make_recording(0, frames=160)
    rows = [("a", {"fr.flac": good, "de.flac": good[:-50]}), ("b", {"txt": b"t"}), ("c", {"fr.flac": b"", "txt": b"t"})]
    make_tar(tmp_path / "test-000000.tar", rows)
    build_index(tmp_path)
    data = ShardData(str(tmp_path), split="test", modalities={"audio": "*.flac"})
    loader = VariantLoader(data, "audio", preprocess["audio"], 2)
    assert [(info.key, info.language) for _, infos in loader for info in infos] == [("test/a", "fr")]
    assert loader.missing == 1
    assert [(fault.key, fault.stage) for fault in loader.faults] == [("a", "decode"), ("c", "decode")]


class Tower(Encoder):
    """Means and counts its calls."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__(preprocess, 5, Axis("patches", 1, 1))
        self.weight = torch.nn.Parameter(torch.randn(192, 5))
        self.calls = 0

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tokens:
        self.calls += 1
        assert not self.training
        return Tokens.mean_pooled((values.flatten(1) @ self.weight)[:, None])


def test_cached_features_are_those_of_the_tower(
    preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any, make_sample: Any, make_picture: Any
) -> None:
    samples = [make_sample(i) for i in range(30)]
    for number, (_, members) in enumerate(samples):
        if number % 3:
            members["second.png"] = make_picture(100 + number)
        if number in (6, 7):
            members["png"] = members["png"][:-40]
    make_tar(tmp_path / "train-000000.tar", samples)
    build_index(tmp_path)
    data = ShardData(str(tmp_path), modalities={"image": "png|*.png", "text": "txt"})
    still = {"image": dataclasses.replace(preprocess["image"], scale_min=1.0, flip=False), "text": preprocess["text"]}
    tower = Tower(still["image"])
    cache = open_or_build(data, "image", tower, batch_size=16, progress=False)
    assert tower.training
    calls = tower.calls
    again = open_or_build(data, "image", tower, batch_size=16, num_workers=1, progress=False)
    assert (tower.calls, again.digest) == (calls + 4, cache.digest)  # four samples are compared
    arrays = [f"{name}.npy" for name in ("features", "offsets", "samples", "variants")]
    assert sorted(p.name for p in cache.directory.iterdir()) == ["cache.json", *arrays]

    plain = Stream({"a": (data, 1.0)}, still, 10, 0, "s", 9)
    cached = Stream({"a": (data, 1.0)}, still, 10, 0, "s", 9, features={"a": {"image": cache}})
    tower.eval()
    faulty = 0
    for step in range(9):
        left, right = plain[step], cached[step]
        assert left.keys == right.keys
        assert [(f["key"], f["stage"]) for f in left.faults] == [(f["key"], f["stage"]) for f in right.faults]
        faulty += len(left.faults)
        values = left.modalities["image"]
        assert torch.equal(values.present, right.modalities["image"].present)
        torch.testing.assert_close(right.modalities["image"].features, tower(values.values).pooled.detach())
    assert faulty
    left_rows = [
        row for values, _ in VariantLoader(data, "image", still["image"]) for row in tower(values.values).pooled
    ]
    loader = VariantLoader(data, "image", still["image"], features=cache)
    right_rows = [row for values, _ in loader for row in values.features]
    torch.testing.assert_close(torch.stack(right_rows), torch.stack(left_rows).detach())
    assert [fault.key for fault in loader.faults] == ["000006", "000007"]

    with torch.no_grad():
        tower.weight[0, 0] += 1
    other = open_or_build(data, "image", tower, batch_size=16, progress=False)
    assert other.digest != cache.digest
    both = {"a": (data, 1.0), "b": (data, 1.0)}
    with pytest.raises(ValueError, match="none for"):
        Stream(both, still, 10, 0, "s", 9, features={"a": {"image": cache}})


def test_an_interrupted_feature_build_goes_on(
    preprocess: dict[str, Preprocess], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmalign.data.precompute._PART_SAMPLES", 8)
    data, tower = ShardData(str(shards), modalities={"image": "png"}), Tower(preprocess["image"])
    whole = open_or_build(data, "image", tower, directory=tmp_path / "whole", batch_size=4, progress=False)
    forward, tower.calls = tower.forward, 0

    def interrupted(values: Tensor, mask: Tensor | None = None) -> Tokens:
        if tower.calls == 3:
            raise KeyboardInterrupt
        return forward(values, mask)

    tower.forward = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        open_or_build(data, "image", tower, directory=tmp_path / "parts", batch_size=4, progress=False)
    tower.forward, tower.calls = forward, 0  # type: ignore[method-assign]
    resumed = open_or_build(data, "image", tower, directory=tmp_path / "parts", batch_size=4, progress=False)
    assert tower.calls == 3  # of 5 batches, 2 were in a part that was complete
    for name in ("features.npy", "offsets.npy", "samples.npy", "variants.npy"):
        assert (resumed.directory / name).read_bytes() == (whole.directory / name).read_bytes()


class Length(Encoder):
    """A text tower: the sum of the ids, and their number."""

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__(preprocess, 2, Axis("tokens"))

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tokens:
        assert mask is not None
        pooled = torch.stack([(values * mask).sum(1), mask.sum(1)], 1).float()
        return Tokens(pooled[:, None], mask[:, :1], pooled)


def test_what_is_cached_is_not_read(
    preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any, make_sample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [make_sample(i) for i in range(24)]
    for number, (_, members) in enumerate(samples):
        captions = {"en": [f"one {number}"], "fr": ["un"] * (number % 3), "\ud800": ["odd"]}
        group = {"group": f"g{number // 2}"} if number % 4 else {}
        members["json"] = json.dumps({"captions": captions} | group).encode()
    good, bad = [sample for i, sample in enumerate(samples) if i % 6], [samples[i] for i in (0, 6, 12, 18)]
    bad[0][1]["json"] = b"[]"
    bad[1][1]["png"] = bad[1][1]["png"][:-40]
    del bad[2][1]["png"], bad[2][1]["json"]  # it has neither of the two modalities
    bad[3][1]["txt"] = b"this will be damaged"
    data = {}
    for name, rows in (("good", good), ("bad", bad + good)):
        (tmp_path / name).mkdir()
        path = make_tar(tmp_path / name / "train-000000.tar", rows)
        build_index(tmp_path / name)
        path.write_bytes(path.read_bytes().replace(b"will be", b"has bee"))
        data[name] = ShardData(str(tmp_path / name), modalities={"image": "png", "text": "captions[*]"})
    still = {"image": dataclasses.replace(preprocess["image"], scale_min=1.0, flip=False), "text": preprocess["text"]}
    towers = {"image": Tower(still["image"]).eval(), "text": Length(still["text"]).eval()}
    caches = {
        name: {kind: open_or_build(some, kind, tower, progress=False) for kind, tower in towers.items()}
        for name, some in data.items()
    }
    reads: list[int] = []
    read = ShardSet.read
    monkeypatch.setattr(ShardSet, "read", lambda self, index: reads.append(index) or read(self, index))
    pread = os.pread
    monkeypatch.setattr("os.pread", lambda *arguments: reads.append(-1) or pread(*arguments))

    for name, sources in (("good", {"good": (data["good"], 1.0)}), ("bad", {n: (d, 1.0) for n, d in data.items()})):
        plain = Stream(sources, still, 8, 0, "s", 12)
        cached = Stream(sources, still, 8, 0, "s", 12, features={n: caches[n] for n in sources})
        left = [plain[step] for step in range(12)]
        reads.clear()
        right = [cached[step] for step in range(12)]
        if name == "good":
            assert reads == []
        else:
            assert set(reads) <= {-1, 0, 1, 2, 3}  # what has a fault is read for what it says
        faults = 0
        for one, other in zip(left, right, strict=True):
            assert one.keys == other.keys
            assert torch.equal(one.group, other.group)
            assert [(f["key"], f["stage"]) for f in one.faults] == [(f["key"], f["stage"]) for f in other.faults]
            faults += len(one.faults)
            for kind, tower in towers.items():
                values, features = one.modalities[kind], other.modalities[kind]
                assert torch.equal(values.present, features.present)
                wanted = tower(values.values, values.mask).pooled.detach() * values.present[:, None]
                torch.testing.assert_close(features.features * values.present[:, None], wanted)
        assert bool(faults) == (name == "bad")

    for name, some in data.items():
        for kind in towers:
            loaders = [VariantLoader(some, kind, still[kind], 5, features=f) for f in (None, caches[name][kind])]
            infos = []
            for loader in loaders:
                reads.clear()
                infos.append([info for _, found in loader for info in found])
            assert (reads == []) == (name == "good")
            assert infos[0] == infos[1]
            assert loaders[0].missing == loaders[1].missing
            assert [(f.key, f.stage) for f in loaders[0].faults] == [(f.key, f.stage) for f in loaders[1].faults]


def test_one_modality_in_the_cache_leaves_the_other_to_be_read(preprocess: dict[str, Preprocess], shards: Path) -> None:
    data = ShardData(str(shards), modalities={"image": "png", "text": "captions[*]"})
    still = {"image": dataclasses.replace(preprocess["image"], scale_min=1.0, flip=False), "text": preprocess["text"]}
    cache = open_or_build(data, "image", Tower(still["image"]), progress=False)
    plain = Stream({"a": (data, 1.0)}, still, 8, 0, "s", 3)
    cached = Stream({"a": (data, 1.0)}, still, 8, 0, "s", 3, features={"a": {"image": cache}})
    for step in range(3):
        left, right = plain[step], cached[step]
        assert left.keys == right.keys
        assert torch.equal(left.modalities["text"].values, right.modalities["text"].values)  # type: ignore[arg-type]


def test_a_modality_that_no_sample_has_is_cached(
    preprocess: dict[str, Preprocess], shards: Path, tmp_path: Path
) -> None:
    data = ShardData(str(shards), modalities={"image": "webp"})
    cache = open_or_build(data, "image", Tower(preprocess["image"]), directory=tmp_path, progress=False)
    loader = VariantLoader(data, "image", preprocess["image"], features=cache)
    assert (list(loader), loader.missing, len(cache)) == ([], 20, 0)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_any_batch_size_computes_features(
    preprocess: dict[str, Preprocess], shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr("mmalign.data.precompute._PART_SAMPLES", 8)
    data, tower = ShardData(str(shards), modalities={"image": "png"}), Tower(preprocess["image"])
    plain = open_or_build(data, "image", tower, directory=tmp_path / "4", batch_size=4, progress=False)
    other = open_or_build(data, "image", tower, directory=tmp_path / "n", batch_size=batch_size, progress=False)
    assert other.digest == plain.digest
    assert len(other) == 20
    for i in range(20):
        torch.testing.assert_close(other.row(i, 0), plain.row(i, 0))


def test_two_runs_at_once_build_a_cache_once(preprocess: dict[str, Preprocess], shards: Path, tmp_path: Path) -> None:
    data = ShardData(str(shards), modalities={"image": "png"})
    towers = [Tower(preprocess["image"]) for _ in range(2)]
    towers[1].load_state_dict(towers[0].state_dict())

    def build(tower: Tower) -> str:
        return open_or_build(data, "image", tower, None, None, tmp_path / "features", 2, progress=False).digest

    with ThreadPoolExecutor(2) as pool:
        digests = list(pool.map(build, towers))
    assert digests[0] == digests[1]
    assert max(tower.calls for tower in towers) == 10
    assert min(tower.calls for tower in towers) <= 4  # at most, it compared some samples


def test_limits_apply_to_what_is_drawn(
    preprocess: dict[str, Preprocess], tmp_path: Path, make_tar: Any, make_picture: Any
) -> None:
    rows = [(f"{i}", {"png": make_picture(i, side=40 if i == 3 else 20)}) for i in range(6)]
    make_tar(tmp_path / "train-000000.tar", rows)
    build_index(tmp_path)
    data = ShardData(str(tmp_path), modalities={"image": "png"})
    stream = Stream({"a": (data, 1.0)}, preprocess, 6, 0, "s", 1, limits=Limits(max_pixels=20 * 20))
    (fault,) = stream[0].faults
    assert (fault["key"], fault["stage"]) == ("3", "decode")
    assert "40 × 40 pixels, the limit is 400" in fault["error"]
