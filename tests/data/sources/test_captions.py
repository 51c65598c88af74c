"""Converters of pictures with captions, on local files in the layouts of the wild."""

import importlib.util
import io
import json

import numpy as np
import pytest
from PIL import Image

from mmalign.data.card import read_card
from mmalign.data.commands import build
from mmalign.data.sources.captions import Folder, HubDataset, Table


def picture(width: int = 20, height: int = 10, kind: str = "PNG", value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def drawn(source) -> dict[str, dict]:
    return {
        s.metadata["name"]: {"split": split, "sample": s} for split in source.splits() for s in source.samples(split)
    }


def test_folder_with_its_own_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "sub").mkdir(parents=True)
        (tmp_path / split / "sub" / "a.b.png").write_bytes(picture())
        (tmp_path / split / "sub" / "a.b.txt").write_text("Ein  Bär\n\na bear\n", encoding="utf-8")
    (tmp_path / "train" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "train" / "broken.txt").write_text("what")
    (tmp_path / "train" / "mute.png").write_bytes(picture())
    source = Folder(tmp_path)
    found = drawn(source)
    assert source.splits() == ["train", "test"]
    assert set(found) == {"train/sub/a.b.png", "test/sub/a.b.png"}
    sample = found["train/sub/a.b.png"]["sample"]
    assert sample.members["png"] == picture()
    assert sample.members["txt"].decode() == "Ein Bär"
    assert sample.metadata["captions"] == {"en": ["Ein Bär", "a bear"]}
    report = source.report()
    assert report["without a caption"]["items"] == ["train/mute.png"]
    assert report["broken picture, or no format that is read"]["items"] == ["train/broken.jpg"]


def test_captions_of_another_encoding_are_left_out_and_told_of(tmp_path):
    for name, caption in (("good", "a bear"), ("bad", "un côté")):
        (tmp_path / f"{name}.png").write_bytes(picture())
        (tmp_path / f"{name}.txt").write_bytes(caption.encode("latin-1"))
    source = Folder(tmp_path)
    assert set(drawn(source)) == {"good.png"}
    assert source.report()["captions that are not UTF-8"]["items"] == ["bad.png"]


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"holds no pictures \(\.bmp, "):
        Folder(tmp_path).splits()


def test_folder_without_splits_keeps_a_caption_on_one_side(tmp_path):
    for i in range(60):
        (tmp_path / f"{i}.jpg").write_bytes(picture(kind="JPEG", value=i))
        (tmp_path / f"{i}.txt").write_text(f"A thing number {i % 20}.")
    found = drawn(Folder(tmp_path, val_share=0.3, test_share=0.3))
    assert len(found) == 60
    for i in range(20):
        assert len({found[f"{j}.jpg"]["split"] for j in range(i, 60, 20)}) == 1
    assert {entry["split"] for entry in found.values()} == {"train", "val", "test"}


def test_large_turned_and_exotic_pictures_are_stored_bounded(tmp_path):
    turned = Image.new("RGB", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "large.png").write_bytes(picture(300, 100))
    (tmp_path / "exotic.bmp").write_bytes(picture(kind="BMP"))
    for name in ("turned", "large", "exotic"):
        (tmp_path / f"{name}.txt").write_text(name)
    found = drawn(Folder(tmp_path, side=60))
    sizes = {name: Image.open(io.BytesIO(entry["sample"].members["jpg"])).size for name, entry in found.items()}
    assert sizes == {"turned.jpg": (20, 40), "large.png": (60, 20), "exotic.bmp": (20, 10)}


@pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
def test_table_groups_rows_of_a_picture_and_stays_in_its_folder(tmp_path, suffix, separator):
    root = tmp_path / "inside"
    root.mkdir()
    for path in (root / "a.png", root / "b.png", tmp_path / "secret.png"):
        path.write_bytes(picture())
    rows = [
        ("file", "text", "part"),
        ("a.png", '"a, first"', "train"),
        ("a.png", "a second", "train"),
        ("b.png", "b", "test"),
        ("../secret.png", "secret", "train"),
        ("gone.png", "gone", "train"),
    ]
    table = root / f"captions{suffix}"
    table.write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8")
    out = build(
        "table", tmp_path / "out", path=table, picture_column="file", caption_column="text", split_column="part"
    )
    card = read_card(out)
    assert {split: part["samples"] for split, part in card["splits"].items()} == {"train": 1, "test": 1}
    assert card["splits"]["train"]["members"]["captions"]["count"] == 2
    assert card["report"]["no path inside the picture root"]["items"] == ["../secret.png"]
    assert card["report"]["file missing"]["items"] == ["gone.png"]
    assert len(card["provenance"]["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(card)


def test_table_errors_name_the_column_and_the_picture(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("image,caption,split\na.png,x,train\na.png,y,test\n")
    with pytest.raises(ValueError, match="no column 'text'; it has image, caption, split"):
        Table(table, caption_column="text").splits()
    with pytest.raises(ValueError, match=r"'a\.png' is in split 'train' and in 'test'"):
        Table(table, split_column="split").splits()
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        Table(tmp_path / "none.csv")


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_parquet_says_which_package_it_needs(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ModuleNotFoundError, match="pip install pyarrow"):
        Table(tmp_path / "t.parquet").splits()


def test_parquet_with_paths_and_with_bytes(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    (tmp_path / "a.png").write_bytes(picture())
    rows = [
        {"image": {"path": "a.png", "bytes": None}, "caption": ["one", "two"]},
        {"image": {"path": "b.png", "bytes": picture(value=9)}, "caption": ["three"]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = drawn(Table(tmp_path / "t.parquet"))
    assert found["a.png"]["sample"].metadata["captions"]["en"] == ["one", "two"]
    assert found["b.png"]["sample"].members["png"] == picture(value=9)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is not None, reason="datasets is installed")
def test_hub_says_which_package_it_needs(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="pip install datasets"):
        HubDataset(tmp_path)


def test_hub_data_sets_with_and_without_splits(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    rows = {
        "image": [{"bytes": picture(value=i), "path": None} for i in range(4)],
        "caption": [f"thing {i}" for i in range(4)],
    }
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(str(tmp_path / "whole"))
    datasets.DatasetDict({"train": whole, "validation": whole.select([0])}).save_to_disk(str(tmp_path / "parts"))
    assert len(drawn(HubDataset(tmp_path / "whole"))) == 4
    found = drawn(HubDataset(tmp_path / "parts"))
    assert [name for name, entry in found.items() if entry["split"] == "validation"] == ["validation-00000000"]
    sample = found["train-00000002"]["sample"]
    assert (sample.members["png"], sample.members["txt"]) == (picture(value=2), b"thing 2")
    with pytest.raises(ValueError, match="no column 'text'; it has image, caption"):
        HubDataset(tmp_path / "parts", caption_column="text").splits()
