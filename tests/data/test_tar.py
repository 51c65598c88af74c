"""The strict tar reader agrees with tarfile on whole archives, and with nobody on damaged ones."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmalign.data.tar import BLOCK, Member, TarError, end_of_content, find_header, padded, split_name, walk


def archive(members: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return file.getvalue()


def members(data: bytes, closed: bool = True) -> list[Member]:
    return list(walk(lambda at, size: data[at : at + size], 0, len(data), closed))


def damage(data: bytes) -> TarError:
    with pytest.raises(TarError) as caught:
        members(data)
    return caught.value


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@given(
    st.dictionaries(
        st.from_regex(r"[a-zé]{1,40}(/[a-zé]{1,60}){0,2}\.[a-z]{1,8}", fullmatch=True),
        st.binary(max_size=1500),
        max_size=5,
    )
)
def test_agrees_with_tarfile(form: int, files: dict[str, bytes]) -> None:
    data = archive(files, form)
    found = members(data)
    assert {m.name: data[m.data : m.data + m.size] for m in found} == files
    # Each member's region can be read by itself, extension headers included.
    for member in found:
        (alone,) = members(data[member.start : member.end], closed=False)
        assert alone.name == member.name


def test_a_name_of_300_characters_and_a_size_of_11_digits() -> None:
    long = "d/" * 100 + "n" * 100 + ".txt"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert [m.name for m in members(archive({long: b"x"}, form))] == [long]
    header = tarfile.TarInfo("big.bin")
    header.size = 9 * 2**30
    block = header.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarError, match="truncated inside the data of"):
        members(block)
    (member,) = walk(lambda at, size: block[at : at + size], 0, len(block) + padded(header.size), closed=False)
    assert member.size == 9 * 2**30


@given(st.integers(0, 4000))
def test_every_truncation_is_noticed(cut: int) -> None:
    data = archive({"a.txt": b"a" * 700, "b.txt": b"b" * 512, "c.txt": b""})[: 512 * 9]
    content = 512 * (1 + 2 + 1 + 1 + 1)
    assert len(members(data[: content + 2 * BLOCK])) == 3
    cut = min(cut, content + 2 * BLOCK - 1)
    error = damage(data[:cut])
    assert "truncated" in str(error)
    assert error.offset <= cut


@given(st.integers(0, 511), st.integers(1, 255))
def test_every_changed_byte_of_a_header_is_noticed(at: int, change: int) -> None:
    data = bytearray(archive({"a.txt": b"a" * 10, "b.txt": b"b" * 10}))
    data[1024 + at] = (data[1024 + at] + change) % 256
    if at in (154, 155) and data[1024 + at] in b" \0":
        return  # the checksum field is padded with spaces or zeros
    assert damage(bytes(data)).offset == 1024


def test_data_after_the_end_are_not_passed_over() -> None:
    error = damage(archive({"a.txt": b"a"}) + archive({"b.txt": b"b"}))
    assert "after the archive's first closing zero block" in str(error)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"S"])
def test_only_regular_files(kind: bytes) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        header = tarfile.TarInfo("a.txt")
        header.type, header.linkname = kind, "/etc/passwd"
        tar.addfile(header)
    error = damage(file.getvalue())
    assert "no regular file" in str(error)
    assert (error.name, error.certain) == ("a.txt", True)


def test_directories_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a.txt").write_bytes(b"a")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "in", ".")
    assert [m.name for m in members((tmp_path / "x.tar").read_bytes())] == ["./deep/a.txt"]


@pytest.mark.parametrize(
    "record", [b"5 a=", b"99 path=x\n", b"-1 path=x\n", b"12 size=-77\n", b"path=x\n", b"22 GNU.sparse.major=1\n"]
)
def test_malformed_pax_headers(record: bytes) -> None:
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, len(record)
    data = header.tobuf() + record.ljust(BLOCK, b"\0") + archive({"a.txt": b"a"})
    assert "pax" in str(damage(data))


def test_an_extension_header_of_a_gigabyte_is_not_read() -> None:
    header = tarfile.TarInfo("L")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**30
    assert "extension header of" in str(damage(header.tobuf(tarfile.GNU_FORMAT)))


def test_the_next_header_is_found_after_damage() -> None:
    data = archive({"a.txt": b"a" * 2000, "b.txt": b"b"})

    def read(at: int, size: int) -> bytes:
        return data[at : at + size]

    assert find_header(read, BLOCK, len(data)) == BLOCK + padded(2000)
    assert end_of_content(read, len(data)) == BLOCK + padded(2000) + 2 * BLOCK


@given(st.text(min_size=1, max_size=30))
def test_names_are_split_as_webdataset_does(name: str) -> None:
    from webdataset.tariterators import base_plus_ext

    if "\n" in name or (name.startswith("__") and name.endswith("__")):
        return
    key, extension = base_plus_ext(name)
    base = name.rpartition("/")[2]
    # A name without an extension, or hidden, is no part of a sample; webdataset also takes empty extensions.
    expected = None if key is None or not extension or base.startswith(".") else (key, extension)
    assert split_name(name) == expected
