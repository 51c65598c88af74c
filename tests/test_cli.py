"""The command: quick to start, and clear about mistakes."""

import subprocess
import sys

import pytest

from mmalign.cli import build_parser, main


def test_help_imports_nothing_heavy():
    code = (
        "import sys, mmalign.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'lightning', 'jsonargparse', 'transformers', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "search", "export", "report", "compare"])
def test_every_subcommand_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert len(capsys.readouterr().out) > 200


def test_a_missing_configuration_is_one_line(capsys):
    assert main(["train", "--config", "nowhere.yaml"]) == 2
    error = capsys.readouterr().err
    assert error == "mmalign: nowhere.yaml: no such configuration\n"


def test_stray_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["assets", "list", "--verbose"])
    assert "--verbose" in capsys.readouterr().err


@pytest.mark.parametrize("stray", [["--otu=x"], ["--jobs", "2"], ["--arms", "naive"]])
def test_compare_of_runs_refuses_what_only_training_takes(stray, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "run", *stray])
    assert f"unrecognized arguments: {stray[0]}\n" in capsys.readouterr().err


def test_compare_does_not_take_the_value_of_an_override_for_a_run(capsys):
    assert main(["compare", "--config", "configs/demo.yaml", "--seeds", "[0]"]) == 2
    assert (
        capsys.readouterr().err == "mmalign: [0]: beside --config no run is named; overrides are written --KEY=VALUE\n"
    )


def test_classes_of_the_current_folder_are_found(tmp_path):
    """By the installed command, whose own folder is what Python puts in front of sys.path."""
    (tmp_path / "my_package.py").write_text(
        "from mmalign.data.sources.scenes import Scenes\nclass Mine(Scenes): pass\n"
    )
    (tmp_path / "json.py").write_text("raise ImportError('hides the one of Python')\n")
    settings = ["--train", "2", "--val", "1", "--test", "1", "--test_compositional", "1"]
    arguments = ["data", "build", "my_package.Mine", "--out", "built", *settings]
    code = f"import sys\nsys.path[0] = '/nowhere'\nfrom mmalign.cli import main\nsys.exit(main({arguments}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "built" / "card.json").exists()
