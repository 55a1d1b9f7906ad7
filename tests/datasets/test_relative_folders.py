"""`--base_path` may be relative, go up, and lead through links: the data are the same."""

from palimpsest.datasets.utils.vision import mini
from palimpsest.datasets.utils.vision.formats import Examples
from tests.models.helpers import experiment

ARGV = ["--vision_items", "digits", "--vision_size", "32", "--vision_subset", "10"]


def test_the_same_vision_data_by_any_name_of_their_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "work" / "deep")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(mini, "COUNTS", {"train": 20, "val": 10})
    names = [str(tmp_path / "data"), "../data", "../data/../data", "../link/../../data"]
    streams = [experiment("sgd", *ARGV, "--base_path", name, dataset="seq-vision-mini").dataset for name in names]
    assert len({stream.checksum for stream in streams}) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"data", "link", "work"}
    assert len({bytes(stream.task_data(0)[0][2].numpy()) for stream in streams}) == 1


def test_an_image_outside_the_data_folder_has_a_name(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "a.png").write_bytes(b"1")
    assert Examples(tmp_path / "data", [tmp_path / "a.png"], [0], ["a"]).facts()["files"] == ["../a.png"]
