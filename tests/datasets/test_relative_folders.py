"""`--base_path` may be relative, go up, and lead through links: the data are the same."""

import main as entry
from palimpsest.datasets.utils.vision.formats import Examples
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build

ARGV = ["--model", "sgd", "--dataset", "seq-vision-mini", "--vision_items", "digits", "--vision_size", "32"]
ARGV += ["--vision_subset", "10", "--n_epochs", "1", "--disable_log", "--non_verbose", "--device", "cpu"]


def test_the_same_vision_data_by_any_name_of_their_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "work" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "work" / "deep")
    monkeypatch.chdir(tmp_path / "work")
    names = [str(tmp_path / "data"), "../data", "../data/../data", "../link/../../data"]
    sums = {build(resolve([*ARGV, "--base_path", name])).dataset.checksum for name in names}
    assert len(sums) == 1 and {path.name for path in tmp_path.iterdir()} == {"data", "link", "work"}
    assert entry.main([*ARGV, "--base_path", "../data"]) == 0


def test_an_image_outside_the_data_folder_has_a_name(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "a.png").write_bytes(b"1")
    assert Examples(tmp_path / "data", [tmp_path / "a.png"], [0], ["a"]).facts()["files"] == ["../a.png"]
