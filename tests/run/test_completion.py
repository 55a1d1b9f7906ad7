"""Completion by the shell: the script completes options, names and files, and starts no Python."""

import shutil
import subprocess
import sys

import pytest

import main as entry

TRY = """
source {script}
COMP_WORDS=(palimpsest {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=(); COMP_TYPE=9
_shtab_palimpsest
echo "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    pytest.importorskip("shtab", reason="needs shtab, the extra 'completion'")
    path = tmp_path_factory.mktemp("shell") / "palimpsest.bash"
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("builtins.print", lambda text: said.append(text))
        assert entry.main(["--print_completion", "bash"]) == 0
    path.write_text(said[0])
    return path


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_options_names_and_files(script, tmp_path):
    (tmp_path / "mine.yaml").touch()

    def completed(words):
        env = {"PATH": ""}  # nothing can be started
        program = TRY.format(script=script, words=words)
        return subprocess.run([shutil.which("bash"), "-c", program], cwd=tmp_path, env=env, capture_output=True,
                              text=True, check=True).stdout.split()  # fmt: skip

    assert completed("--lr_sch") == ["--lr_scheduler"]
    assert completed("--buffer_s") == ["--buffer_size"]  # of methods
    assert completed("--num_filt") == ["--num_filters"]  # of networks
    assert completed("--model er_") == ["er_ace"]
    assert completed("--model er --dataset seq-dig") == ["seq-digits"]
    assert completed("--config mi") == ["mine.yaml"]
    assert completed("--backbone timm:resnet18 --pretrained_p") == ["--pretrained_path"]


def test_another_shell_is_one_line(script, capsys):
    assert entry.main(["--print_completion", "ksh"]) == 2
    assert "--print_completion ksh: expected one of bash, zsh" in capsys.readouterr().err


def test_without_the_package_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert entry.main(["--print_completion", "bash"]) == 2
    err = capsys.readouterr().err
    assert "needs the package shtab: pip install 'palimpsest[completion]'" in err and err.count("\n") == 1
