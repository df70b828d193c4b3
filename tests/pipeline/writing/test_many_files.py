"""Any number of files are written in turns, and what waits for them lies on the local disk."""

import object_store

from pipeline.writing import many_files
from pipeline.writing.many_files import ManyFiles


def test_parts_for_a_remote_folder_are_on_the_local_disk_until_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "OBJECTS", {})
    monkeypatch.setattr(many_files.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(many_files, "_MAX_OPEN", 2)
    folder = "store://bucket/folder"
    with ManyFiles(folder) as files:
        opened = [files.open(f"{folder}/{number}") for number in range(5)]
        for part in (b"a", b"b"):
            for number, file in enumerate(opened):
                file.write(part * number)
        assert object_store.OBJECTS == {}
        assert len(list(tmp_path.iterdir())) == 1
        files.finish()
    assert object_store.OBJECTS == {f"{folder}/{n}": b"a" * n + b"b" * n for n in range(5)}
    assert list(tmp_path.iterdir()) == []
