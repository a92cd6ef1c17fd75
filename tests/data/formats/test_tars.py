"""Tars are read as webdataset reads them, by the index of DALI where there is one, and links are refused."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.data.formats import samples
from trainkit.data import Tars, open_dataset
from trainkit.data.formats.tar_shard import scan
from trainkit.errors import DataError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINKIT_CACHE", str(tmp_path / "cache"))


def png(number: int) -> bytes:
    file = io.BytesIO()
    samples.picture(number).save(file, "PNG")
    return file.getvalue()


def write(path: Path, files: dict[str, bytes], **settings: Any) -> None:
    with tarfile.open(path, "w", **settings) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_shards(folder: Path, num: int = 25, each: int = 10) -> list[dict[str, Any]]:
    """Writes tars with webdataset, and returns what its own reading finds."""
    webdataset = pytest.importorskip("webdataset", reason="webdataset writes what is read")
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/a-%03d.tar", maxcount=each, verbose=0) as writer:
        for number in range(num):
            seg = {"Seg.Txt": "é" * number} if number % 2 else {}
            writer.write({"__key__": f"in/{number:05d}", "png": png(number), "cls": number % 3, **seg})
    paths = [str(path) for path in sorted(folder.glob("*.tar"))]
    found = webdataset.WebDataset(paths, shardshuffle=False)
    return [{name: value for name, value in sample.items() if not name.startswith("__url")} for sample in found]


def without_path(sample: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name != "__local_path__"}


def test_samples_are_those_of_webdataset(tmp_path):
    expected = [without_path(sample) for sample in write_shards(tmp_path / "tars")]
    dataset = open_dataset(tmp_path / "tars")
    assert [*dataset] == expected and len(expected) == 25
    assert dataset.block_sizes.tolist() == [10, 10, 5]
    order = [24, 0, 13, -1, 9]
    assert dataset.__getitems__(order) == [expected[index] for index in order]
    assert [*open_dataset(tmp_path / "tars" / "a-001.tar")] == expected[10:20]
    assert open_dataset(tmp_path / "tars", columns=["cls"])[4] == {"__key__": "in/00004", "cls": b"1"}
    with pytest.raises(DataError, match=r"a-000\.tar: sample in/00004 has no file in/00004\.seg\.txt; add it"):
        open_dataset(tmp_path / "tars", columns=["cls", "seg.txt"])[4]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_every_form_of_tar_is_grouped_as_webdataset_does(tmp_path, form):
    webdataset = pytest.importorskip("webdataset", reason="the reader to compare with")
    path = tmp_path / "a.tar"
    names = [
        "x/a.b.c.JPG",
        "x/a.txt",
        "x/a.B.c",
        "no_suffix",
        ".hidden.txt",
        "b.txt",
        "a.txt",
        "__meta__/b.txt",
        "__x__",
    ]
    names += ["x.y/c.txt", "d" * 90 + ".txt", "é/ü.txt", "b.cls"]
    if form != tarfile.USTAR_FORMAT:
        names.append("l" * 300 + ".txt")
    write(path, {name: name.encode() for name in names}, format=form)
    expected = [
        {name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")}
        for sample in webdataset.WebDataset([str(path)], shardshuffle=False)
    ]
    assert [*open_dataset(path)] == expected and len(expected) > 6


def test_the_index_of_a_tar_is_made_once_for_each_state(tmp_path, monkeypatch):
    write_shards(tmp_path / "tars")
    opened: list[str] = []

    def counted(shard: Any, shown: str) -> Any:
        opened.append(shown)
        return scan(shard, shown)

    monkeypatch.setattr("trainkit.data.formats.tars.scan", counted)
    assert len(open_dataset(tmp_path / "tars")) == len(open_dataset(tmp_path / "tars")) == 25
    assert len(opened) == 3
    write(tmp_path / "tars" / "a-001.tar", {"z.txt": b"new"})
    assert len(open_dataset(tmp_path / "tars")) == 16 and len(opened) == 6


def idx(path: Path, version: str) -> list[list[list[Any]]]:
    """Writes the index that DALI's wds2idx writes: suffix, offset, size and, from 1.2 on, name of each file."""
    with tarfile.open(path) as tar:
        members = [member for member in tar if member.isfile()]
    grouped: list[list[list[Any]]] = []
    last = None
    for member in members:
        folder, _, name = member.name.rpartition("/")
        key, _, suffix = name.partition(".")
        words = [suffix, member.offset_data, member.size] + ([member.name] if version == "v1.2" else [])
        if (folder, key) != last:
            grouped.append([])
        last = (folder, key)
        grouped[-1].append(words)
    lines = [" ".join(str(word) for words in sample for word in words) for sample in grouped]
    text = "\n".join([f"{version} {len(lines)}", *lines]) + "\n"
    path.with_suffix(".idx").write_text(text)
    return grouped


@pytest.mark.parametrize("version", ["v1.1", "v1.2"])
def test_the_index_of_dali_takes_the_place_of_a_scan(tmp_path, version, monkeypatch):
    write_shards(tmp_path / "tars")
    plain = [*open_dataset(tmp_path / "tars")]
    for path in sorted((tmp_path / "tars").glob("*.tar")):
        idx(path, version)
    monkeypatch.setattr("trainkit.data.formats.tars.scan", lambda *_: pytest.fail("the tar was scanned"))
    found = [*open_dataset(tmp_path / "tars")]
    if version == "v1.1":  # which has no names
        plain, found = ([{**sample, "__key__": ""} for sample in each] for each in (plain, found))
    assert found == plain


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: it must be"),
        ("v1.3 1\npng 512 10 a.png\n", "line 1: it must be"),
        ("v1.2 2\npng 512 10 a.png\n", "line 1: it must be"),
        ("v1.2 1\npng 512 10\n", "line 2: its words must be groups of 4"),
        ("v1.2 1\npng -512 10 a.png\n", "line 2: '-512' and '10' must be numbers"),
        ("v1.2 1\npng 512 9999999999 a.png\n", r"line 2 lies at bytes 512 to .* cut short or damaged"),
        ("v1.2 1\npng 9999999999 1 a.png\n", r"line 2 lies at bytes .* cut short or damaged"),
        ("v1.2 1\npng 512 10 a.png png 1024 4 a.png\n", r"a\.idx holds a\.png twice"),
    ],
)
def test_a_damaged_index_of_dali_is_one_line(tmp_path, text, says):
    write(tmp_path / "a.tar", {"a.png": b"0123456789"})
    (tmp_path / "a.idx").write_text(text)
    with pytest.raises(DataError, match=rf"a\.idx.*{says}|{says}"):
        open_dataset(tmp_path)


def test_an_index_of_another_tar_is_noticed(tmp_path):
    write(tmp_path / "a.tar", {"a.txt": b"0123456789", "b.txt": b"0"})
    (tmp_path / "a.idx").write_text("v1.2 1\ntxt 512 9 a.txt\n")
    with pytest.raises(DataError, match=r"a\.tar is not the tar that its index is of"):
        open_dataset(tmp_path)[0]


def test_a_list_of_shards_gives_their_order_and_counts(tmp_path):
    folder = tmp_path / "tars"
    expected = [without_path(sample) for sample in write_shards(folder)]
    listed = [{"url": "a-002.tar", "nsamples": 5}, {"url": "a-000.tar", "nsamples": 10}]
    (folder / "few.json").write_text(json.dumps({"__kind__": "wids-shard-index-v1", "shardlist": listed}))
    assert [*open_dataset(folder / "few.json")] == expected[20:] + expected[:10]
    for change, says in (
        ({"url": "a-000.tar", "nsamples": 9}, r"a-000\.tar holds 10 samples, and .*few\.json says 9"),
        ({"url": "../a.tar"}, "names the file '../a.tar', which does not lie beside it"),
        ({"url": "/etc/passwd"}, "does not lie beside it"),
        ({"url": "s3://other/a.tar"}, "does not lie beside it"),
        ({"url": "gone.tar"}, r"gone\.tar (is not there|cannot be read)"),
        ({"nsamples": 3}, "names the file None"),
    ):
        content = {"__kind__": "wids-shard-index-v1", "shardlist": [change]}
        (folder / "few.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=says):
            open_dataset(folder / "few.json")
    (folder / "few.json").write_text("{}")
    with pytest.raises(DataError, match="is no list of shards of kind wids-shard-index-v1"):
        open_dataset(folder / "few.json")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_tar_is_named(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(DataError, match=r"a\.tar: a\.txt is a link, whose content is elsewhere"):
        open_dataset(tmp_path)


def test_a_tar_that_is_cut_or_compressed_is_named(tmp_path):
    path = tmp_path / "a.tar"
    write(path, {"a.txt": b"a" * 700, "b.txt": b"b" * 700})
    whole = path.read_bytes()
    for length in (0, 100, 700, 1536, 1600, 2600, 3072):  # in a header, in a file, and between files
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.tar"):
            open_dataset(path)
    path.write_bytes(whole[:1536] + b"\xff" * 512 + whole[2048:])
    with pytest.raises(DataError, match=r"a\.tar has no end mark of a tar at byte 1,536: it is cut short or damaged"):
        open_dataset(path)
    import gzip

    path.write_bytes(gzip.compress(whole))
    with pytest.raises(DataError, match=r"a\.tar .*it is compressed.*decompress it"):
        open_dataset(path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_member_of_terabytes_is_not_read(tmp_path, kind):
    """A sparse file of 64 GiB, which takes no space and would not fit into memory."""
    member = tarfile.TarInfo("a.txt")
    member.type, member.size = kind, 1 << 36
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    with path.open("r+b") as file:
        file.truncate((1 << 36) + 2048)
    with pytest.raises(DataError, match=r"a\.tar"):
        open_dataset(path)


def test_headers_without_end_are_one_line(tmp_path):
    longname = tarfile.TarInfo("././@LongLink")
    longname.type, longname.size = tarfile.GNUTYPE_LONGNAME, 1
    (tmp_path / "a.tar").write_bytes((longname.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000 + bytes(1024))
    with pytest.raises(DataError, match=r"a\.tar"):
        open_dataset(tmp_path)


def test_tars_without_a_sample_are_an_error(tmp_path):
    write(tmp_path / "a.tar", {"name": b"x"})
    with pytest.raises(DataError, match="holds no sample: files in tars must have names such as"):
        open_dataset(tmp_path)
    write(tmp_path / "b.tar", {"a.txt": b"x"})
    dataset = open_dataset(tmp_path)
    assert isinstance(dataset, Tars) and dataset.block_sizes.tolist() == [1]
