"""What the shell completes, asked of a real bash that has read the script."""

import subprocess

import pytest

from data_shards.command_line import parser_of
from dmd.cli import commands
from dmd.completion import SHELLS, script

ASK = """
ask() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  _dmd dmd "${@: -1}"
  echo "${COMPREPLY[*]}"
}
complete -p dmd
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    """Answers of a bash without a configuration to command lines whose last word is to be completed."""
    path = tmp_path_factory.mktemp("completion") / "dmd.bash"
    path.write_text(script("bash"))

    def answers(*lines: str) -> list[str]:
        asked = "\n".join(f"ask {line}" for line in lines)
        text = f"source {path}\n{ASK}{asked}\n"
        done = subprocess.run(
            ["bash", "--norc", "--noprofile"], input=text, capture_output=True, text=True, cwd=path.parent
        )
        assert done.stderr == ""
        assert done.returncode == 0
        registered, *found = done.stdout.splitlines()
        assert registered == "complete -o bashdefault -F _dmd dmd"
        return found

    return answers


def test_bash_completes_commands_options_presets_keys_and_paths(bash):
    (bash_path,) = bash("dmd evaluate dm")
    found = bash(
        "dmd trai",
        "dmd train --print",
        "dmd train --preset mosi-un",
        "dmd train --preset mosi-aligned --data x train.lea",
        "dmd train train.seed=3 --run x objective.gam",
        "dmd tune --sched",
        "dmd tune --scheduler as",
        "dmd config train.clip_",
        "dmd presets simsv",
        "dmd submit exp",
        "dmd completion f",
        "dmd train model.normalise = tr",
    )
    assert bash_path == "dmd.bash"
    assert found == [
        "train",
        "--print-config",
        "mosi-unaligned",
        "train.learning_rate=",
        "objective.gamma=",
        "--scheduler",
        "asha",
        "train.clip_at",
        "simsv2",
        "experiment",
        "fish",
        "",
    ]


def test_bash_lists_all_commands(bash):
    (found,) = bash("dmd ''")
    assert set(found.split()) == set(commands())


def test_every_command_gives_its_parser():
    """So that it is completed; a command parses with `data_shards.command_line.Parser` before it does anything."""
    for name, point in commands().items():
        assert parser_of(point.load()).prog == f"dmd {name}"


@pytest.mark.parametrize("shell", SHELLS)
def test_other_shells_get_a_script(shell):
    text = script(shell)
    assert "print-config" in text
    assert "train.learning_rate=" in text
