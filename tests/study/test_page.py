"""The page over all runs: what it is told, who is let in, and the same as static files."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import main as entry
from palimpsest.utils.errors import UserError
from palimpsest.utils.study import serve
from palimpsest.utils.study.catalogue import POINTS, Catalogue, name_entries, seen_means, thin
from palimpsest.utils.study.export_site import MARK, export_site
from palimpsest.utils.study.records import read_runs
from tests.study.runs import write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
         "--virtual-time-budget=4000"]  # fmt: skip


@pytest.fixture
def results(tmp_path) -> Path:
    """Two seeds of er, one of sgd that failed, and the files of a whole run in the first."""
    folder = tmp_path / "results"
    first = write_run(folder, seed=0)
    write_run(folder, seed=1, metrics={"class-il": {"acc": 74.0, "forgetting": 20.0}}, costs={"seconds": 200.0})
    write_run(folder, "sgd", finished=False, reason="loss is nan at step 3 <b>", metrics={}, matrices={})
    (first / "report.html").write_text("<title>the report</title>")
    (first / "losses.csv").write_text("step,term,value\n50,loss,2.0\n100,loss,1.0\n100,pen")
    return folder


def catalogue_of(folder: Path) -> Catalogue:
    catalogue = Catalogue(folder)
    catalogue.refresh()
    return catalogue


@contextmanager
def served(folder: Path, host: str = "127.0.0.1"):
    """A running server; yields a function that asks it: (status, headers, text)."""
    with serve.make_page_server(catalogue_of(folder), host, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()

        def ask(path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
            connection = http.client.HTTPConnection(host, server.server_port, timeout=10)
            connection.putrequest(method, path, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            connection.endheaders()
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            return answer.status, answer.headers, text

        ask.port = server.server_port
        try:
            yield ask
        finally:
            server.shutdown()
            thread.join()


# ---- what is told


def test_a_run_as_the_page_is_told(results):
    listing = json.loads(catalogue_of(results).listing()[0])
    assert [(run["model"], run["seed"], run["state"]) for run in listing["runs"]] == [
        *(("er", 0, "finished"), ("er", 1, "finished"), ("sgd", 0, "failed")),
    ]
    first, second, failed = listing["runs"]
    assert first["curves"] == {"class-il": [90.0, 70.0]} and first["done"] == first["tasks"] == 2
    assert first["report"] and not second["report"] and first["entry"] == second["entry"] != failed["entry"]
    assert failed["reason"].startswith("loss is nan") and failed["done"] == 0
    assert listing["metrics"]["forgetting"][2] == "lower" and listing["live"] and listing["folder"] == "results"


def test_a_run_in_full(results):
    write_run(results, seed=2, origins={"seed": "command line"}, notes={"pah": "batch statistics"})
    catalogue = catalogue_of(results)
    first, last = (catalogue.detail(name) for name in catalogue.names() if "_seed1" not in name and "/er/" in name)
    assert first["losses"] == {"loss": [[50, 100], [2.0, 1.0]]}  # the row that is just being written is left out
    assert first["matrices"]["class-il"] == [[90.0, None], [60.0, 80.0]] and not first["chosen"]
    assert last["chosen"] == [["seed", "2", "command line"]] and last["notes"] == {"pah": "batch statistics"}
    assert catalogue.detail("../results") is None


@pytest.mark.parametrize("facts", [
    {"matrices": {"class-il": 3}}, {"matrices": {"class-il": [3]}}, {"matrices": {"class-il": [["x"]]}},
    {"matrices": {"class-il": [[float("nan")]]}}, {"metrics": {"class-il": 3}}, {"metrics": {"class-il": {"acc": []}}},
    {"n_tasks": "2"}, {"marks": "x"}, {"leaks": {"a": 1}}, {"chosen_on": 3}, {"tasks": [1]}, {"origins": "x"},
    {"metrics": {"class-il": {"acc": float("inf")}}},
])  # fmt: skip
def test_what_is_not_as_a_run_writes_it_is_left_out(results, facts):
    write_run(results, seed=7, **facts)
    assert len(catalogue_of(results).names()) == 3


def test_what_json_has_no_form_for_is_left_out(results):
    folder = write_run(results, seed=7, costs={"seconds": float("nan"), "flops_training": None, "parameters": 3})
    (folder / "losses.csv").write_text("step,term,value\n50,loss,nan\n100,loss,1.5\n")
    catalogue = catalogue_of(results)
    (name,) = [name for name in catalogue.names() if "_seed7" in name]
    detail = json.loads(json.dumps(catalogue.detail(name), allow_nan=False))
    assert detail["costs"] == {"parameters": 3} and detail["losses"] == {"loss": [[100], [1.5]]}
    assert "NaN" not in catalogue.listing()[0]


def test_a_folder_that_takes_long_is_not_looked_through_all_the_time(results, monkeypatch):
    now = iter([0.0, 2.0, 5.0, 30.0, 30.0])
    catalogue = Catalogue(results)
    monkeypatch.setattr("palimpsest.utils.study.catalogue.time.monotonic", lambda: next(now))
    counts = []
    for _ in range(3):
        catalogue.refresh()
        counts.append(len(catalogue.names()))
        write_run(results, seed=10 + len(counts))
    assert counts == [3, 3, 5]


def test_marks_are_told(results):
    config = {"debug_mode": True, "validation": 10.0, "stop_after": 1}
    facts = {"marks": ["batch statistics at test"], "leaks": ["reads test data"], "chosen_on": "test"}
    write_run(results, "pah", config=config, **facts)
    run = json.loads(catalogue_of(results).listing()[0])["runs"][2]
    assert run["other"] == ["debug run", "not all tasks", "validation score"]
    assert {name: run[name] for name in facts} == facts


def test_entries_are_named_by_what_differs(tmp_path):
    def run(seed, origin="command line", **options):
        write_run(tmp_path, seed=seed, config=options, origins=dict.fromkeys(options, origin), digest=str(options))

    run(0, lr=0.1, buffer_size=50)
    run(1, lr=0.1, buffer_size=50, results_path="elsewhere")
    run(0, lr=0.1, buffer_size=200)
    run(0, "dataset", lr=0.3, buffer_size=None)
    entries, of_run = name_entries({str(r.folder): r for r in read_runs(tmp_path)})
    assert sorted(entry["label"] for entry in entries) == [
        *("er", "er, lr 0.1, buffer_size 200", "er, lr 0.1, buffer_size 50"),
    ]
    assert len(of_run) == 4 and len(set(of_run.values())) == 3
    run(0, "dataset", lr=0.2, buffer_size=None)  # two at their defaults: now both must be told apart
    labels = [entry["label"] for entry in name_entries({str(r.folder): r for r in read_runs(tmp_path)})[0]]
    assert {"er, lr 0.3", "er, lr 0.2"} < set(labels) and len(set(labels)) == 4


def test_other_files_are_another_entry(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, environment={"code": "beefbeefbeef", "data": "da7a", "commit": "other"})
    entries, _ = name_entries({str(r.folder): r for r in read_runs(tmp_path)})
    assert {entry["label"] for entry in entries} == {"er, code c0de", "er, code beefbe"}


def test_curves_are_means_over_what_was_seen():
    assert seen_means([[90.0, 20.0, None], [60.0, 80.0, None], [None] * 3]) == [90.0, 70.0, None]
    steps, values = thin([(i, float(i)) for i in range(1, 1001)])
    assert len(steps) <= POINTS and steps[-1] == 1000 and values[:2] == [2.5, 6.5]


def test_only_what_changed_is_read_again(results, monkeypatch):
    catalogue, read = catalogue_of(results), []
    monkeypatch.setattr("palimpsest.utils.study.catalogue.read_run", lambda path, files: read.append(path))
    text, version = catalogue.listing()
    catalogue.refresh()
    assert not read and catalogue.listing() == (text, version)
    monkeypatch.undo()
    folder = write_run(results, seed=5, finished=False)
    catalogue.refresh()
    assert catalogue.listing()[1] == version + 1 and len(catalogue.names()) == 4
    (folder / "result.yaml").write_text("")
    catalogue.refresh()
    assert '"seed": 5, "state": "finished"' in catalogue.listing()[0]
    shutil.rmtree(folder)
    catalogue.refresh()
    assert len(catalogue.names()) == 3


def test_a_thousand_runs_are_listed_in_a_second(tmp_path):
    for seed in range(1000):
        write_run(tmp_path, f"m{seed % 7}", seed=seed)
    begin = time.process_time()
    with served(tmp_path) as ask:
        status, _, text = ask("/data/runs.json")
    assert status == 200 and len(json.loads(text)["runs"]) == 1000
    assert time.process_time() - begin < 1.0


# ---- who is let in, and to what


def test_the_page_and_its_files(results):
    with served(results) as ask:
        status, headers, page = ask("/")
        assert status == 200 and "script-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-cache"
        named = re.findall(r'(?:src|href)="(static/[^"]+)"', page)
        assert len(named) == 5 and all(ask(f"/{name}")[0] == 200 for name in named)
        for script in (serve.STATIC).glob("*.js"):
            for other in re.findall(r'from "\./([a-z.]+)"', script.read_text()):
                assert ask(f"/static/{other}")[1]["Content-Type"].startswith("text/javascript")
        assert not re.search(r"https?://(?!www\.w3\.org|github\.com/leeoniya)", page + "".join(
            path.read_text() for path in serve.static_files().values() if path.suffix != ".LICENSE"))  # fmt: skip


def test_runs_and_reports(results):
    with served(results) as ask:
        status, headers, text = ask("/data/runs.json")
        assert status == 200 and ask("/data/runs.json", If_None_Match=headers["ETag"])[0] == 304
        name = json.loads(text)["runs"][0]["name"]
        assert json.loads(ask(f"/data/run/{name}.json")[2])["name"] == name
        status, headers, text = ask(f"/runs/{name}/report.html")
        assert (status, text) == (200, "<title>the report</title>")
        assert "script-src" not in headers["Content-Security-Policy"]
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        write_run(results, seed=9)
        assert ask("/data/runs.json", If_None_Match=headers.get("ETag", ""))[0] == 200
        assert ask("/", "HEAD")[::2] == (200, "")


def test_the_report_of_a_set_of_seeds(results):
    folder = write_run(results, seed=3, group="seeds_first").parent / "seeds_first"
    folder.mkdir()
    (folder / "report.html").write_text("all seeds")
    with served(results) as ask:
        assert ask("/runs/class-il/seq-digits/er/seeds_first/report.html")[2] == "all seeds"


@pytest.mark.parametrize("path", [
    "/runs/../secret/report.html", "/runs/%2e%2e/secret/report.html", "/runs/..%2fsecret/report.html", "//etc/passwd",
    "/static/../serve.py", "/static/%2e%2e%2fserve.py", "/static/..\\serve.py", "/data/run/../../secret/run.json",
    "/data/run/%2e%2e/%2e%2e/secret.json", "/runs//etc/report.html", "/run.json", "/runs/class-il/report.html",
    "/runs/class-il/seq-digits/er/linked/report.html", "/data/run/class-il/seq-digits/er/linked.json", "/index.html",
    "/static/", "/static/index.html", "/%00", "/data/run/%ff%fe.json", "/runs/%7f/report.html",
])  # fmt: skip
def test_nothing_else_is_given(results, path):
    outside = results.parent / "secret"
    write_run(outside.parent / "other")
    outside.mkdir()
    for name in ("report.html", "run.json"):
        (outside / name).write_text((next((outside.parent / "other").rglob("run.json"))).read_text())
    (results / "class-il/seq-digits/er/linked").symlink_to(outside)
    with served(results) as ask:
        status, _, text = ask(path)
        assert status == 404 and "er" not in text and "root:" not in text
        assert "linked" not in ask("/data/runs.json")[2]


def test_links_out_of_the_folder_are_not_followed(results):
    first, second = sorted((results / "class-il/seq-digits/er").iterdir())
    secret = results.parent / "secret.txt"
    secret.write_text("secret")
    for name in ("report.html", "losses.csv"):
        (second / name).symlink_to(secret)
    facts = results.parent / "run.json"
    shutil.copy(first / "run.json", facts)
    (first / "run.json").unlink()
    (first / "run.json").symlink_to(facts)
    with served(results) as ask:
        listing = json.loads(ask("/data/runs.json")[2])
        assert [run["model"] for run in listing["runs"]] == ["er", "sgd"] and not listing["runs"][0]["report"]
        name = listing["runs"][0]["name"]
        assert (
            ask(f"/runs/{name}/report.html")[0] == 404 and json.loads(ask(f"/data/run/{name}.json")[2])["losses"] == {}
        )
        (second / "report.html").unlink()
        (second / "report.html").symlink_to(second / "run.json")  # within the folder
        assert ask(f"/runs/{name}/report.html")[0] == 200


def test_only_reading_and_only_by_its_own_names(results):
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with served(results) as ask:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert ask("/data/runs.json", method)[0] == 405
        for host in ("evil.example", "evil.example:8642", "localhost.evil.example", "", "127.0.0.1.evil.example"):
            assert ask("/data/runs.json", Host=host)[0] == 403
        for host in (f"127.0.0.1:{ask.port}", "localhost:9999", "[::1]:80", "LOCALHOST"):
            assert ask("/data/runs.json", Host=host)[0] == 200
        assert "Access-Control-Allow-Origin" not in ask("/", Origin="http://evil.example")[1]
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_a_silent_connection_holds_nobody_up(results):
    with served(results) as ask, socket.create_connection(("127.0.0.1", ask.port)):
        assert ask("/")[0] == 200


# ---- the commands


def test_a_taken_port_is_one_line(results, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert entry.main(["--serve", str(results), "--port", port]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"port {port}" in error and "give another --port" in error


@pytest.mark.parametrize("argv, said", [
    (["--serve", "absent"], "absent: no such folder"),
    (["--serve", ".", "--port", "70000"], "expected an integer >= 0 and <= 65535"),
    (["--serve", ".", "--host", "203.0.113.7"], "give another --host"),
    (["--serve", ".", "--hots", "x"], "unrecognized arguments"),
    (["--export_site", "absent", "site"], "absent: no such folder"),
    (["--export_site", "."], "takes two folders"),
    (["--export_site", ".", "."], "holds something else than a site"),
])  # fmt: skip
def test_bad_input_is_one_line(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    assert entry.main(argv) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and os.listdir(tmp_path) == ["mine.txt"]


def test_the_address_is_said_and_ctrl_c_ends_it(results, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(serve._Server, "serve_forever", interrupted)
    assert entry.main(["--serve", str(results), "--port", "0"]) == 0
    told = capsys.readouterr().out
    assert re.match(rf"3 runs of {re.escape(str(results))}: http://127\.0\.0\.1:\d+/\n", told)
    assert "everybody" not in told
    assert entry.main(["--serve", str(results), "--port", "0", "--host", "0.0.0.0"]) == 0
    assert "everybody who reaches this address can read them" in capsys.readouterr().out
    assert serve.address("::1", 80) == "http://[::1]:80/"


def test_a_site_is_the_same_as_files(results, tmp_path, capsys):
    site = tmp_path / "site"
    assert entry.main(["--export-site", str(results), str(site)]) == 0
    assert "http.server" in capsys.readouterr().out
    listing = json.loads((site / "data/runs.json").read_text())
    told = json.loads(catalogue_of(results).listing()[0])
    assert listing == told | {"live": False}
    name = told["runs"][0]["name"]
    assert json.loads((site / f"data/run/{name}.json").read_text()) == catalogue_of(results).detail(name)
    assert (site / f"runs/{name}/report.html").read_text() == "<title>the report</title>"
    with served(results) as ask:
        for path in ("index.html", "static/page.js", "static/uplot.LICENSE"):
            assert (site / path).read_text() == ask("/" + path.replace("index.html", ""))[2]
    files = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert files - {MARK} == set(json.loads((site / MARK).read_text()))


def test_a_site_is_written_again_without_what_is_gone(results, tmp_path):
    site = tmp_path / "site"
    export_site(catalogue_of(results), site)
    (site / "CNAME").write_text("runs.example.org")
    gone = next((results / "class-il/seq-digits").glob("sgd/*"))
    shutil.rmtree(gone)
    export_site(catalogue_of(results), site)
    assert len(list(site.rglob(f"{gone.name}*"))) == 2 and not (site / "data/run/class-il/seq-digits/sgd").exists()
    assert (site / "CNAME").read_text() == "runs.example.org"
    (site / MARK).write_text('["../../results"]')
    with pytest.raises(UserError, match="something else than a site"):
        export_site(catalogue_of(results), site)


# ---- in a browser


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_it_is_drawn_in_a_browser(results, tmp_path):
    name = catalogue_of(results).names()[0]
    with served(results) as ask:

        def look(address: str) -> str:
            command = [CHROMIUM, *QUIET, f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom"]
            command.append(f"http://127.0.0.1:{ask.port}/{address}")
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            assert "Uncaught" not in done.stderr and "Refused" not in done.stderr, done.stderr
            return done.stdout

        page = look("")
        assert "3 runs · 2 finished · 1 failed" in page and page.count("<canvas") == 2
        assert "72.00 ± 2.83" in page and ">report</a>" in page  # mean over the two seeds of er
        assert "loss is nan at step 3 &lt;b&gt;" in page  # text of a run is never read as markup
        detail = look(f"#run={name}&state=finished&text=er")
        assert page.count("<dialog") == 1 and "Accuracy matrix" in detail and detail.count("<canvas") == 4
        assert "Runs: 2 of 3" in detail and ">60.0</td>" in detail
        assert "Forgetting against parameters" in look("#metric=forgetting&cost=5")
