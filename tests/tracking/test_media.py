import csv

import numpy as np
import pytest
from PIL import Image

from trainkit.tracking import Media, Run


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 6, 1)])
def test_pictures_texts_and_tables_read_back(shape, tmp_path):
    picture = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    tracker = Media()
    tracker.start(Run(directory=tmp_path, name="run"))
    tracker.image(20, "samples/16x16", picture)
    tracker.text(20, "sentences", "the [cat]\nsät\n")
    tracker.table(20, "words", ["word", "share"], [["a,b", 0.5]])

    media = tmp_path / "media"
    with Image.open(media / "samples_16x16" / "00000020.png") as image:
        assert np.array_equal(np.asarray(image).reshape(shape), picture)
    assert (media / "sentences" / "00000020.txt").read_text(encoding="utf-8") == "the [cat]\nsät\n"
    with (media / "words" / "00000020.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["word", "share"], ["a,b", "0.5"]]


def test_a_resume_removes_only_what_will_be_logged_again(tmp_path):
    tracker = Media()
    tracker.start(Run(directory=tmp_path, name="run"))
    for step in (10, 20, 30):
        tracker.text(step, "sentences", "a")
    (tmp_path / "media" / "sentences" / "notes.txt").write_text("mine")

    Media().start(Run(directory=tmp_path, name="run", resumed_step=20))
    names = sorted(path.name for path in (tmp_path / "media" / "sentences").iterdir())
    assert names == ["00000010.txt", "00000020.txt", "notes.txt"]
