"""The documents: every command in them runs, every message they explain exists, the reference is up to date."""

import contextlib
import pickle
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import dmd
from benchmarks.install_times import table as install_table
from benchmarks.preset_tables import tables as preset_tables
from cluster.jobs.job_commands import JOB_COMMANDS
from dmd.cli import main
from dmd.config.loading import all_keys, config_to_dict, load_config, preset_names
from dmd.config.reference import field_documents, reference
from dmd.inference.export import example
from tests.support.trained import SMALL, train

ROOT = Path(__file__).parents[2]
CODE = ("data_shards", "dmd", "launch", "cluster", "benchmarks", "tests")
TUTORIAL = "docs/tutorial.md"
RUN_PAGES = ("docs/results.md",)
"""Pages whose every command is run as it stands; the others' are parsed."""
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/api.md",
    "docs/architecture.md",
    "docs/commands.md",
    "docs/data.md",
    "docs/ensembles.md",
    "docs/expected-times.md",
    "docs/extraction.md",
    "docs/gallery.md",
    "docs/gpu.md",
    "docs/index.md",
    "docs/install.md",
    "docs/kernels.md",
    "docs/lab-notes.md",
    "docs/multi-node.md",
    "docs/names.md",
    "docs/performance.md",
    "docs/promises.md",
    "docs/published-code.md",
    "docs/ray.md",
    "docs/reproducing.md",
    "docs/results.md",
    "docs/scaling.md",
    "docs/sharing.md",
    "docs/text-encoders.md",
    "docs/troubleshooting.md",
    "docs/tutorial.md",
)


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Every `dmd ...` line of a page: in blocks, and between backticks where it names its arguments."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("dmd ")]


def test_the_configuration_reference_is_up_to_date():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference(), "run: python -m dmd.config.reference > docs/configuration.md"
    for key in all_keys():
        assert f"| `{key}` |" in page
    for name in preset_names():
        assert f"| `{name}` |" in page


def test_every_config_value_is_documented():
    for section in config_to_dict(load_config()):
        kind = type(getattr(load_config(), section))
        documents = field_documents(kind)
        assert set(documents) == set(kind.__dataclass_fields__)
        assert all(text.endswith(".") for text in documents.values())


def test_every_message_that_is_explained_exists():
    sources = "".join(
        path.read_text()
        for floor in ("data_shards", "dmd", "launch", "cluster")
        for path in (ROOT / floor).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", sources)
    explained = re.findall(r"^- (`[^:]*`):", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(explained) > 15
    for entry in explained:
        for message in re.findall(r"`([^`]+)`", entry):
            assert message in joined, f"no error says {message!r}"


def test_the_site_has_every_page():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) == sorted(
        p.name for p in (ROOT / "docs").glob("*.md")
    )


def test_what_the_page_about_python_shows_exists():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert names
    for name in names:
        assert pkgutil.resolve_name(name) is not None


def test_links_between_documents_lead_somewhere():
    for page in (*PAGES, "docs/configuration.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
            if "://" not in target:
                assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def anchors(page: str) -> set[str]:
    """What a link to a heading of a page may end with."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_headings_that_are_cited_exist():
    sources = [
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("*.md"),
        *(path for top in CODE for path in (ROOT / top).rglob("*.py")),
    ]
    cited = 0
    for source in sources:
        for page, anchor in re.findall(r"([\w-]+\.md)#([\w-]+)", source.read_text()):
            place = page if page in ("README.md", "CONTRIBUTING.md") else f"docs/{page}"
            assert anchor in anchors(place), f"{source}: {page} has no heading {anchor!r}"
            cited += 1
    assert cited > 5


@pytest.mark.parametrize("page", PAGES)
def test_named_files_of_the_code_exist(page):
    for name in re.findall(r"`(\w+/[\w/.-]+\.\w+)`", (ROOT / page).read_text()):
        if name.split("/")[0] in (*CODE, "docs"):
            assert (ROOT / name).exists(), f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_named_commands_and_keys_exist(page, capsys):
    known = [line.split()[0] for line in _help(capsys, "--help").splitlines() if line.startswith("  ")]
    text = (ROOT / page).read_text()
    for name in re.findall(r"`dmd ([a-z]+)[ `]", text) + [command[0] for command in commands(page)]:
        assert name in known, f"{page}: dmd {name}"
    for key in re.findall(r"\b((?:model|objective|text|data|train)\.[a-z_]+)=", text):
        assert key in all_keys(), f"{page}: {key}"
    for preset in re.findall(r"--preset ([a-z][\w-]+)", text):
        assert preset in preset_names()


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_named_options_exist(page, capsys):
    for command in commands(page):
        name, submitted = command[0], [part for part in command[1:] if part in JOB_COMMANDS]
        said = _help(capsys, name, "--help")
        if name == "submit" and submitted:  # what follows is an option of the command that is submitted
            said += _help(capsys, submitted[0], "--help")
        elif name == "submit" and "logs" in command:
            said += _help(capsys, name, "logs", "--help")
        for option in (part.partition("=")[0] for part in command if part.startswith("--")):
            assert f"{option} " in said or f"{option}," in said or f"{option}]" in said, f"{page}: dmd {name} {option}"


def _help(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        main(list(argv))
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN_PAGES)
def test_every_command_of_a_page_runs(page, shards, tmp_path, monkeypatch):
    """In order, in an empty directory; trainings are shortened, all in one other process.

    Of several reports the last one, of most runs; `tests/dmd/test_report.py` makes others.
    """
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "mosi").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    asked = commands(page)
    assert len(asked) > 6
    trainings = {}
    for command in asked:
        if command[0] == "train":
            assert command[:5] == ["train", "--preset", "mosi-aligned", "--data", "shards/mosi"]
            trainings[tmp_path / command[command.index("--run") + 1]] = [part for part in command if "=" in part]
    train(tmp_path / "shards" / "mosi", trainings)
    first = dmd.load(next(iter(trainings)))
    samples = {m: array.numpy() for m, array in example(first.card, 3).items()}
    Path("new_videos.pkl").write_bytes(pickle.dumps(samples))
    report = [command for command in asked if command[0] == "report"][-1:]
    for command in asked:
        if command[0] != "train" and (command[0] != "report" or command in report):
            assert main(command) == 0, command
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), dict(samples))


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch):
    """In order, in an empty directory, with fewer samples and a smaller network, in this process and one for trainings.

    Of the six trainings those that a later command reads alone; reports, whose figures take long, are tested elsewhere.
    """
    monkeypatch.chdir(tmp_path)
    trained = {command[command.index("--run") + 1]: command for command in commands(TUTORIAL) if command[0] == "train"}
    read = [part for command in commands(TUTORIAL) for part in command[1:] if part.startswith("runs/")]
    assert set(read) == set(trained)
    alone = {
        command[1] for command in commands(TUTORIAL) if command[0] in ("checkpoints", "evaluate", "predict", "export")
    }
    for language, block in re.findall(r"```(sh|python)\n(.*?)```", (ROOT / TUTORIAL).read_text(), re.DOTALL):
        if language == "python":
            exec(compile(block.replace("samples=1500", "samples=60"), TUTORIAL, "exec"), {})
            continue
        for line in block.splitlines():
            name, *arguments = shlex.split(line, comments=True)
            if name != "dmd":
                assert name in ("python3", "source", "pip", "python", "tensorboard")
            elif arguments[0] == "train" and not Path("runs").exists():
                kept = {Path(run): [part for part in trained[run] if "=" in part] for run in sorted(alone)}
                train(arguments[arguments.index("--data") + 1], kept)
            elif arguments[0] not in ("train", "report"):
                assert main(arguments) == 0, line


def test_tests_that_are_named_exist():
    """Those that docs/promises.md counts on."""
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(named) > 40
    for file, name in named:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{name}"


@pytest.mark.parametrize(("page", "table"), [("expected-times", preset_tables), ("install", install_table)])
def test_pages_have_the_figures_that_were_measured(page, table):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for part in table().split("\n\n"):
        assert part.strip() in text


def test_the_trainings_of_the_documents_have_valid_configs():
    for page in PAGES:
        for command in commands(page):
            if command[0] == "train":
                load_config(command[command.index("--preset") + 1], [part for part in command if "=" in part])
    assert load_config(None, SMALL).model.dim == 8
