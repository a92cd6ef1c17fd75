"""Files that somebody else wrote are one clear error where they are deep, huge, or name files outside their folder."""

import json
import zipfile

import pytest
from PIL import Image

from trainkit.data import Images, read_json, read_vocabulary
from trainkit.data.image_sources import find_source
from trainkit.data.readers import json_objects
from trainkit.data.text_files import arrow_files, splits_of
from trainkit.errors import DataError, TopologyError
from trainkit.topology.discover import parse_nccl_xml
from trainkit.topology.topology import Topology
from trainkit_recipes.bert.hugging_face.config import read_config

DEEP = "[" * 100_000


def _folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "a.png")
    return folder


def test_deep_json_is_an_error_as_any_other(tmp_path):
    for name in ("dataset_dict.json", "state.json", "config.json", "tokenizer.json", "lines.jsonl"):
        (tmp_path / name).write_text(DEEP)
    for read in (
        lambda: splits_of(tmp_path),
        lambda: arrow_files(tmp_path),
        lambda: read_config(tmp_path),
        lambda: read_vocabulary(tmp_path / "tokenizer.json"),
        lambda: list(json_objects(tmp_path / "lines.jsonl")),
    ):
        with pytest.raises(DataError, match="nested too deeply"):
            read()
    with pytest.raises(TopologyError, match="nested too deeply"):
        Topology.from_json(DEEP)
    folder = _folder(tmp_path)
    (folder / "dataset.json").write_text(DEEP)
    with pytest.raises(DataError, match="nested too deeply"):
        Images(path=folder, resolution=8, labels="json").load(progress=False)


def test_a_long_file_is_not_read(tmp_path):
    (tmp_path / "long.json").write_text(" " * 2000)
    with pytest.raises(ValueError, match="is larger than"):
        read_json(tmp_path / "long.json", 1000)


def test_a_member_of_a_zip_is_measured_before_it_is_read(tmp_path, monkeypatch):
    folder, path = _folder(tmp_path), tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.write(folder / "a.png", "x/a.png")
        file.writestr("dataset.json", json.dumps({"labels": []}) + " " * 100_000)
    monkeypatch.setattr("trainkit.data.image_sources.MAX_READ_BYTES", 50_000)
    assert path.stat().st_size < 50_000
    with pytest.raises(DataError, match=r"dataset\.json of data\.path has 100,014 bytes"):
        find_source(path).read("dataset.json")


@pytest.mark.parametrize("name", ["../other.arrow", "/etc/other.arrow", "sub/other.arrow"])
def test_a_data_set_names_only_files_beside_it(tmp_path, name):
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(DataError, match="which is not beside it"):
        arrow_files(tmp_path)


@pytest.mark.parametrize("state", ["{}", "[]", '{"_data_files": [3]}', "{"])
def test_a_damaged_data_set_is_no_traceback(tmp_path, state):
    (tmp_path / "state.json").write_text(state)
    (tmp_path / "dataset_dict.json").write_text(state)
    for read in (arrow_files, splits_of):
        with pytest.raises(DataError, match="is damaged"):
            read(tmp_path)


def test_xml_with_a_document_type_is_refused():
    """Three entities that expand to a few hundred bytes: harmless, and refused before they do."""
    entities = '<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;">'
    with pytest.raises(TopologyError, match="a document type is not read"):
        parse_nccl_xml(f'<!DOCTYPE system [{entities}]>\n<system version="1"><cpu numaid="&c;"/></system>')
