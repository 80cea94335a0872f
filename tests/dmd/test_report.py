"""Reports: the numbers of `dmd evaluate`, statistics against SciPy, a page that loads nothing, and what is rejected."""

import base64
import csv
import io
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from dmd.config.loading import all_keys
from dmd.evaluation.trained_run import training_data
from dmd.losses.distillation import make_prior
from dmd.metrics import Scoring, head_metrics
from dmd.model.graph import PAIRS
from dmd.report.curves import learning, loss_terms, smooth, train_beside_validation
from dmd.report.edges import edge_curves, edge_heatmaps, last_edges, prior_of
from dmd.report.groups import Group, Measured, identity, make_groups
from dmd.report.identity import BOOKKEEPING, BUDGET, concerns, flatten
from dmd.report.latex import OF_PAPERS, escaped, latex
from dmd.report.page import Picture, Section, render, write_page
from dmd.report.predictions import confusion, prediction_figure
from dmd.report.projection import project
from dmd.report.published_results import COUNTS, MMSA, PAPER, expected, published
from dmd.report.runs import read_run
from dmd.report.statistics import Difference, Pair, compare, summarise
from dmd.report.tables import (
    COMPARISON_HEADER,
    COMPUTED,
    Table,
    ablation_table,
    comparison_table,
    difference_cells,
    main_table,
    pairs_of,
    published_table,
    unimodal_table,
)
from tests.support.commands import command
from tests.support.trained import load_and_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "report"
    assert command("report", *runs, "--out", out, "--projection", "pca") == 0
    return out


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_is_one_file_that_asks_for_nothing(report):
    html = (report / "index.html").read_text()
    for address in re.findall(r'(?:src|href)="([^"]*)"', html):
        assert address.startswith(("data:", "#")), address[:80]
    assert not re.search(r"<script[^>]* src|<link[^>]*stylesheet|@import|url\(|https?://|fetch\(|import\(", html)
    pictures = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", html)
    assert len(pictures) == len(list(report.rglob("*.svg"))) == len(list(report.rglob("*.png"))) > 20
    for picture in pictures:
        ElementTree.fromstring(base64.b64decode(picture))


def test_the_page_has_all_samples_its_contents_and_folded_runs(report, runs):
    html = (report / "index.html").read_text()
    data = re.search(r'<script type="application/json" id="sample-data">(.*?)</script>', html, re.DOTALL)
    assert data is not None
    samples = json.loads(data[1])
    result = load_and_run(runs[0], training_data(runs[0]), "valid")
    assert samples["sets"][0]["columns"][0]["values"] == result.ids
    assert [(config["name"], config["seeds"]) for config in samples["configs"]] == [
        ("prior=published", "2 seeds"),
        ("prior=uniform", "1 seed"),
    ]
    heads = [column["title"] for column in samples["configs"][0]["columns"] if column["of"] == "heads"]
    edges = [column["title"] for column in samples["configs"][0]["columns"] if column["of"] == "edges"]
    assert (len(heads), len(edges)) == (len(result.predictions) - 1, 2 * len(PAIRS))
    links = re.findall(r'<a href="#([^"]+)"', html)
    assert {"overview", "learning", "samples", "errors", "calibration", "costs", "config", "one", "uniform"} <= {*links}
    assert all(f'id="{link}"' in html for link in links)
    folded = re.findall(r'<details class="section" id="([^"]+)"', html)
    assert folded == ["one", "two", "uniform"]
    assert html.count('loading="lazy" decoding="async"') == len(list(report.glob("*/losses.svg"))) * 8
    assert re.search(r"This page has \d+\.\d MiB, of which pictures \d+\.\d, samples \d+\.\d", html)
    costs = table(report / "costs" / "costs.csv")
    assert all(float(row["CPU hours"]) > 0 and float(row["step ms"]) > 0 for row in costs)
    assert all(int(row["trained"].replace(",", "")) <= int(row["parameters"].replace(",", "")) for row in costs)


def test_every_picture_has_content(report):
    for path in report.rglob("*.png"):
        shades = np.asarray(Image.open(path).convert("L"))
        assert min(shades.shape) > 200
        assert 0.003 < (shades < 128).mean() < 0.6, path


def test_tables_repeat_what_evaluate_says(report, runs, tmp_path):
    maes = []
    for run, row in zip(runs, table(report / "overview" / "runs.csv"), strict=True):
        assert command("evaluate", run, "--json", tmp_path / "test.json") == 0
        evaluated = json.loads((tmp_path / "test.json").read_text())
        metrics = evaluated["metrics"]["fused"]
        maes.append(metrics["mae"])
        assert row["MAE"] == f"{metrics['mae']:.3f}"
        assert row["Acc2 Non0 %"] == f"{100 * metrics['acc2_non0']:.1f}"
        assert (row["split"], row["training"], int(row["best step"])) == ("valid", "finished", evaluated["step"])
    summary = [row for row in table(report / "overview" / "summary.csv") if row["metric"] == "MAE"]
    assert [(row["config"], row["of"]) for row in summary] == [
        ("prior=published", "single, 2 seeds"),
        ("prior=published", "ensemble of 2"),
        ("prior=uniform", "single, 1 seed"),
        ("mean", COMPUTED),
        ("ridge regression", COMPUTED),
    ]
    assert summary[0]["mean"] == f"{np.mean(maes[:2]):.3f} ± {np.std(maes[:2], ddof=1):.3f}"
    assert summary[0]["95 % interval"].startswith("[")
    assert summary[2]["mean"] == f"{maes[2]:.3f}"
    assert [row["MAE"] for row in table(report / "overview" / "main.csv")] == [row["mean"] for row in summary]
    assert {row["config"] for row in table(report / "overview" / "bootstrap.csv")} == {"prior=uniform"}
    heads = table(report / "one" / "heads.csv")
    assert len(heads) == 8
    config = {row["key"]: row for row in table(report / "config" / "config.csv")}
    assert config["objective.prior"]["prior=uniform"] == "uniform"


def grouped(runs: list[Path], split: str = "valid") -> list[Group]:
    records = [read_run(run) for run in runs]
    return make_groups(
        [Measured(run=one, result=load_and_run(one.path, Path(one.info["data"]), split)) for one in records]
    )


def test_published_figures_stand_beside_ours_on_their_data_and_split_alone(runs, report):
    assert not (report / "overview" / "published.csv").exists()
    assert not (report / "overview" / "ablation.csv").exists()
    assert {row["source"] for row in table(report / "overview" / "unimodal.csv")} == {"here"}
    for data, counts in COUNTS.items():
        assert {row.data for row in published(counts, "test")} == {data}
        assert published(counts, "valid") == []
        assert published(counts | {"test": counts["test"] - 1}, "test") == []
        assert ("MAE 0.72-0.74" in expected(counts, "test")) == (data == "MOSI")
        assert expected(counts, "valid") == ""
    groups = grouped(runs, "test")
    beside = published_table(groups, "test", published(COUNTS["MOSI"], "test"))
    assert beside is not None
    assert beside.header == [
        "method",
        "setting",
        "source",
        *("MAE", "Corr", "Acc7 %", "Acc2 Has0 %", "Acc2 Non0 %", "F1 Has0 %", "F1 Non0 %"),
    ]
    assert ["DMD", "aligned, BERT", PAPER, "–", "–", "45.6", "–", "86.0", "–", "86.0"] in beside.rows
    assert ["Self-MM", "unaligned, BERT", MMSA, "0.708", "0.796", "46.7", "83.4", "85.5", "83.4", "85.4"] in beside.rows
    assert [row[0] for row in beside.rows if row[2] == "this report"] == [
        *2 * ["here: prior=published"],
        "here: prior=uniform",
    ]
    ablation = ablation_table(groups, "MOSEI")
    assert ablation is not None
    assert [row[0] for row in ablation.rows].count("here") == 2
    assert [row[-2] for row in ablation.rows if row[0] == "paper" and row[3] == "✗"] == ["50.0"]
    assert ablation_table(groups, None) is None
    unimodal = unimodal_table(groups, "MOSEI")
    assert unimodal is not None
    assert unimodal.rows[-1][-2:] == ["70.1 / 68.3", "10.9 / 12.3"]


def test_an_ensemble_is_a_row_and_compared_with_ensembles(runs, report):
    groups = grouped(runs)
    answers = np.mean([member.result.answers for member in groups[0].members], 0)
    labels = groups[0].members[0].result.labels
    expected_row = head_metrics(torch.from_numpy(answers), torch.from_numpy(labels))
    row = next(row for row in main_table(groups, "valid").rows if row[1] == "ensemble of 2")
    assert row[2] == f"{expected_row['mae']:.3f}"
    compared = table(report / "overview" / "bootstrap.csv")
    assert {row["of"] for row in compared} == {"single, 2 and 1 seeds"}, "one config has no ensemble"
    assert {row["seeds for 0.01"] for row in compared} == {"–"}
    results = [member.result for member in groups[0].members]
    pairs = pairs_of({"a": results, "b": results[::-1]})
    assert [pair.members for pair in pairs] == [None, (2, 2)]
    cells = difference_cells(compare(pairs, labels, metrics=["mae"], resamples=100)[1])
    assert cells[:4] == ["b", "ensembles of 2", "MAE", "+0.000"]
    assert cells[4:6] == 2 * ["[+0.000, +0.000]"]
    assert cells[-3:] == ["no difference shown", "–", "–"], "nothing varied"
    assert len(cells) == len(COMPARISON_HEADER)


def test_edges_are_drawn_with_their_prior(runs):
    run = read_run(runs[0])
    assert np.allclose(prior_of(run, "hetero"), make_prior("published", "hetero").numpy())
    curves = edge_curves(run)
    assert curves is not None
    panels = curves.get_axes()
    assert len(panels) == 2 * len(PAIRS)
    for axes, prior in zip(panels, [*prior_of(run, "homo"), *prior_of(run, "hetero")], strict=True):
        heights = {line.get_label(): float(np.asarray(line.get_ydata()).ravel()[-1]) for line in axes.get_lines()}
        assert heights["prior"] == pytest.approx(prior)
        assert set(heights) == {"prior", "edge", "1/6, where edges start"}
    none = read_run(runs[0])
    none.config["objective"]["prior"] = "none"
    figure = edge_curves(none)
    assert figure is not None
    assert all(line.get_label() != "prior" for axes in figure.get_axes() for line in axes.get_lines())


def test_edge_matrices_put_teacher_and_student_in_their_place(runs):
    edges = {"homo": np.arange(6) / 15}
    panel = edge_heatmaps(edges, {"homo": make_prior("published", "homo").numpy()}).get_axes()[0]
    shown = {(t.get_position()[0], t.get_position()[1]): t.get_text() for t in panel.texts}
    assert shown[(0, 2)] == "0.000", "text <- vision: student text is column 0, teacher vision is row 2"
    assert shown[(1, 0)] == f"{4 / 15:.3f}", "audio <- text"
    last = last_edges(read_run(runs[0]), "homo")
    assert last is not None
    assert last.sum() == pytest.approx(1, abs=1e-4)


def test_axes_have_no_markup_and_names_of_configs_are_whole(runs):
    run = read_run(runs[0])
    figure = loss_terms(run)
    figure.draw_without_rendering()
    norm = next(axes for axes in figure.get_axes() if axes.get_title() == "gradient norm")
    labels = [tick.get_text() for tick in (*norm.get_yticklabels(), *norm.get_yticklabels(minor=True))]
    assert any(labels)
    assert all(not label or label.replace(".", "").isdecimal() for label in labels), "no spelling of powers"
    name = "hetero_distillation=false, homo_distillation=false, learning_rate=0.001"
    groups = [Group(name=title, members=(Measured(run=run, result=None),)) for title in (name, "reference")]
    panel = train_beside_validation(groups).get_axes()[0]
    assert panel.get_title().replace("\n", " ") == name
    assert max(map(len, panel.get_title().splitlines())) <= 42


def test_a_small_page_has_the_same_pictures_of_fewer_bytes(runs, tmp_path):
    run = read_run(runs[0])
    pages = {}
    for small in (False, True):
        picture = Picture(name="learning", figure=learning(run), caption="learning")
        table = Table(name="t", title="t", header=["name"], rows=[["homo_distillation=<b>"]])
        section = Section(anchor="one", title="one", tables=[table], pictures=[picture])
        pages[small] = write_page(tmp_path / str(small), "title", "summary", [section], small=small)
    for name in ("one/learning.png", "one/learning.svg"):
        assert (tmp_path / "True" / name).read_bytes() == (tmp_path / "False" / name).read_bytes()
    html = pages[True].read_text()
    assert "homo_<wbr>distillation=<wbr>&lt;b&gt;" in html
    embedded = re.search(r'data:image/png;base64,([^"]+)" width="(\d+)"', html)
    assert embedded is not None
    with Image.open(io.BytesIO(base64.b64decode(embedded[1]))) as image:
        assert image.width >= int(embedded[2]), "no dot is drawn larger than it is"
    vector = re.search(r'data:image/svg\+xml;base64,([^"]+)"', pages[False].read_text())
    assert vector is not None
    assert len(embedded[1]) < len(vector[1]) / 2


def test_the_gallery_is_one_small_page():
    page = Path(__file__).parents[2] / "docs" / "gallery" / "report.html"
    assert page.stat().st_size < 1_000_000
    html = page.read_text()
    assert 'download="main.tex"' in html
    assert "Li et al." not in html, "published figures are of other data"
    addresses = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)


def test_figures_are_reproducible(runs):
    run = read_run(runs[0])
    first, again = (edge_curves(run) for _ in range(2))
    assert first is not None
    assert again is not None
    for kind in ("svg", "png"):
        assert render(first, kind) == render(again, kind)
    assert render(first, "svg") == render(again, "svg"), "parts keep their places"


def test_summaries_are_scipys():
    values = [0.7, 0.75, 0.74, 0.71]
    summary = summarise(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (summary.mean - summary.half_width, summary.mean + summary.half_width) == pytest.approx((low, high))
    assert summary.std == pytest.approx(stats.tstd(values))
    assert math.isnan(summarise([1.0]).half_width)
    undefined = summarise([1.0, math.nan])
    assert math.isnan(undefined.mean)
    assert math.isnan(undefined.std)


def test_the_bootstrap_finds_a_difference_and_only_where_there_is_one():
    generator = np.random.default_rng(1)
    labels = generator.uniform(-3, 3, 300)
    good, same = (labels + generator.normal(scale=0.5, size=(3, 300)) for _ in range(2))
    worse = labels + generator.normal(scale=0.8, size=(4, 300))
    compared = ["mae", "acc7", "corr"]

    def differences(other: np.ndarray) -> dict[str, Difference]:
        pairs = [Pair(name="other", first=good, second=other)]
        return {found.metric: found for found in compare(pairs, labels, metrics=compared, resamples=1000)}

    found = differences(worse)
    assert found["mae"].low > 0
    assert found["mae"].p_of_all < 0.01
    assert found["mae"].is_shown
    assert found["corr"].high_of_all < 0
    assert found["mae"].mean == pytest.approx(np.abs(worse - labels).mean() - np.abs(good - labels).mean())
    alike = differences(same)
    assert alike["mae"].low < 0 < alike["mae"].high


def test_grouping_ignores_the_seed_and_names_what_differs(runs):
    measured = [
        Measured(run=read_run(run), result=load_and_run(run, Path(read_run(run).info["data"]), "valid")) for run in runs
    ]
    groups = make_groups(measured)
    assert [(group.name, len(group.members)) for group in groups] == [("prior=published", 2), ("prior=uniform", 1)]
    assert [group.name for group in make_groups(measured[:2])] == ["synthetic"]
    changed = measured[2].run.config
    changed["objective"]["gamma"], changed["model"]["dim"] = 0.2, 16
    names = [group.name for group in make_groups(measured)]
    assert names == ["reference", "dim=16, gamma=0.2, prior=uniform"]


def test_seeds_of_one_config_differ_in_bookkeeping_alone(runs):
    """Every key of the config: two runs that differ in it are one config only if it is on the list, or if their model
    does not read it."""
    run = read_run(runs[0])
    tokens = replace(run, info=run.info | {"dims": run.info["dims"] | {"text": 0}})
    assert set(all_keys()) >= BOOKKEEPING | BUDGET
    for record in (run, tokens):
        for key, value in flatten(record.config).items():
            section, _, name = key.partition(".")
            changed = {**record.config, section: {**record.config[section], name: f"not {value}"}}
            info = {k: v for k, v in record.info.items() if k != "precision"}
            before, after = replace(record, info=info), replace(record, info=info, config=changed)
            is_read = concerns(key, flatten(record.config)) and (section != "text" or record is tokens)
            same = key in BOOKKEEPING or not is_read
            assert (identity(before) == identity(after)) == same, key


def test_seeds_of_one_config_had_one_budget_and_one_precision(runs):
    run = read_run(runs[0])
    assert run.stands is not None
    session = run.sessions[-1]
    killed = replace(run, sessions=[{**session, "finished": False}])
    earlier = replace(killed, stands=replace(run.stands, epoch=1))
    bf16 = replace(run, info=run.info | {"precision": "bf16"})
    longer = replace(run, config={**run.config, "train": {**run.config["train"], "epochs": 3}})
    switched, moved = (
        replace(run, sessions=[session, {**session, "resume_step": 1, "changed": {key: [1, 2]}}])
        for key in ("train.precision", "data.workers")
    )
    other = replace(run, path=Path("elsewhere"), info=run.info | {"device": "cuda", "ranks": 8, "data": "/elsewhere"})
    assert identity(run) == identity(moved) == identity(other)
    apart = [run, killed, earlier, bf16, longer, switched]
    assert len({identity(one) for one in apart}) == len(apart)
    result = load_and_run(runs[0], Path(run.info["data"]), "valid")
    names = [group.name for group in make_groups([Measured(run=one, result=result) for one in (run, killed, earlier)])]
    assert names == ["reference", "unfinished=2 epochs", "unfinished=1 epochs"]
    names = [group.name for group in make_groups([Measured(run=one, result=result) for one in (run, longer)])]
    assert names == ["epochs=2", "epochs=3"]
    copied = replace(run, info=run.info | {"generation": "0123456789"})
    names = [group.name for group in make_groups([Measured(run=one, result=result) for one in (run, copied)])]
    assert names == [f"synthetic {run.info['generation'][:8]}", "synthetic 01234567"]


def test_configs_on_other_samples_are_not_compared_in_silence(runs):
    first, second = (read_run(run) for run in (runs[0], runs[2]))
    result = load_and_run(runs[0], Path(first.info["data"]), "valid")
    groups = make_groups(
        [Measured(run=first, result=result), Measured(run=second, result=replace(result, labels=result.labels + 1))]
    )
    compared = comparison_table(groups)
    assert compared is not None
    assert not compared.rows
    assert "Not compared, since their samples or labels are others: prior=uniform." in compared.note


def cells_of(text: str) -> list[list[str]]:
    """The header and the rows of a LaTeX table."""
    body = re.search(r"\\toprule\n(.*)\\bottomrule", text, re.DOTALL)
    assert body is not None
    return [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in body[1].splitlines() if line != r"\midrule"]


def test_every_table_is_latex_too(report, tmp_path):
    """Whole environments, as many cells in each row, no character that is a command by mistake; compiled where there is
    a LaTeX."""
    paths = sorted(report.rglob("*.tex"))
    assert {path.stem for path in paths} == {"main", "summary", "bootstrap", "unimodal", "heads"} < OF_PAPERS
    for path in paths:
        text = path.read_text()
        columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)
        assert columns is not None
        for name in ("table", "tabular"):
            assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
        assert text.count(f"\\label{{tab:{path.parent.name}-{path.stem}}}") == 1
        assert {len(row) for row in cells_of(text)} == {len(columns[1])}, path
        rows = table(path.with_suffix(".csv"))
        assert len(cells_of(text)) == 1 + len(rows)
        bare = re.sub(r"\\[&%$#_{}]", "", text)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search(r"[#~^%]|[^\x00-\x7f]", bare), path
        assert "_" not in re.sub(r"\\label\{.*\}", "", bare)
    compiler = shutil.which("pdflatex") or shutil.which("tectonic")
    if compiler is not None:
        parts = "".join(path.read_text() for path in paths)
        document = rf"\documentclass{{article}}\usepackage{{booktabs,amssymb}}\begin{{document}}{parts}\end{{document}}"
        (tmp_path / "tables.tex").write_text(document)
        subprocess.run([compiler, "tables.tex"], cwd=tmp_path, check=True, stdin=subprocess.DEVNULL)


def test_the_best_is_bold_by_its_direction_and_the_second_underlined():
    metrics = Table(
        name="main",
        title="Results_on 100 %",
        header=["model", "MAE", "Acc2 %"],
        rows=[
            ["lr=1e-3, a & b", "0.640 ± 0.020", "81.2"],
            ["c_d", "0.650", "81.4 ± 1.0"],
            ["mean", "–", "81.4"],
            ["last", "0.700", "80.0"],
        ],
        directions={1: False, 2: True},
    )
    text = latex(metrics, "50 %")
    header, *rows = [[cell.strip() for cell in row] for row in cells_of(text)]
    assert header == ["model", r"MAE $\downarrow$", r"Acc2 \% $\uparrow$"]
    assert rows == [
        [r"lr=1e-3, a \& b", r"\textbf{0.640 $\pm$ 0.020}", r"\underline{81.2}"],
        [r"c\_d", r"\underline{0.650}", r"\textbf{81.4 $\pm$ 1.0}"],
        ["mean", "--", r"\textbf{81.4}"],
        ["last", "0.700", "80.0"],
    ]
    assert r"\caption{Results\_on 100 \%.}" in text
    assert r"\label{tab:50---main}" in text
    assert escaped("-0.1 [-.2, -∞] lr=1e-3 83.4-84.5 mosi-2") == (
        r"$-$0.1 {[}$-$.2, $-$$\infty$] lr=1e-3 83.4-84.5 mosi-2"
    )
    assert metrics.ranks(1) == [1, 2, 0, 3]


def test_every_table_says_split_protocol_and_unit(report):
    for path in report.rglob("*.csv"):
        header = path.read_text().splitlines()[0].split(",")
        for cell in header:
            assert not re.search(r"Acc|F1", cell) or cell.endswith(" %"), (path, cell)
            assert not re.match(r"(Acc2|F1)(?! Has0| Non0)", cell), (path, cell)
        assert "split" in header or path.stem in ("config", "costs", "commands", "names"), path
    assert {row["metric"] for row in table(report / "overview" / "summary.csv")} == {
        "MAE",
        "Corr",
        "Acc7 %",
        "Acc5 %",
        "Acc3 %",
        "Acc2 Has0 %",
        "F1 Has0 %",
        "Acc2 Non0 %",
        "F1 Non0 %",
    }
    html = (report / "index.html").read_text()
    assert "valid split, " in html
    assert "Has0: all samples" in html


def test_the_terminal_says_split_protocol_and_unit(runs, capsys, tmp_path):
    assert command("evaluate", runs[0], "--json", tmp_path / "valid.json") == 0
    text = capsys.readouterr().out
    evaluated = json.loads((tmp_path / "valid.json").read_text())
    assert evaluated["split"] == "valid"
    fused = evaluated["metrics"]["fused"]
    assert 0 <= fused["acc7"] <= 1
    heading, first = (re.split(r"  +", line.strip()) for line in text.splitlines()[:2])
    assert first[heading.index("Acc7 %")] == f"{100 * fused['acc7']:.2f}"
    assert first[heading.index("MAE")] == f"{fused['mae']:.4f}"
    assert re.search(r"Acc and F1 in per cent, .* Has0: .* Non0: ", text)
    assert re.search(r"^valid split, \d+ samples, checkpoint of step \d+$", text, re.MULTILINE)


def test_confusion_counts_every_sample(runs, shards):
    result = load_and_run(runs[0], shards, "test")
    counts = confusion(result)
    assert counts.sum() == len(result.labels)
    assert np.trace(counts) / counts.sum() == pytest.approx(result.metrics["fused"]["acc7"])


def test_classes_of_sentiments_are_called_in_the_units_of_the_labels(runs, shards):
    """Labels from 1 to 5: the stored -3 is 1, 0 is 3 and 3 is 5."""
    result = load_and_run(runs[0], shards, "valid")
    scale, offset = 1.5, 3.0
    in_units = replace(
        result,
        scoring=Scoring(scale=scale, offset=offset),
        labels=result.labels / scale + offset,
        answers=result.answers / scale + offset,
        predictions={head: values / scale + offset for head, values in result.predictions.items()},
    )
    assert (confusion(in_units) == confusion(result)).all()
    table, cloud, residuals = prediction_figure(in_units).get_axes()
    titles = ["1", "1.67", "2.33", "3", "3.67", "4.33", "5"]
    assert [tick.get_text() for tick in table.get_xticklabels()] == titles
    assert [tick.get_text() for tick in table.get_yticklabels()] == titles
    assert cloud.get_xlim() == pytest.approx((0.8, 5.2))
    assert {tick.get_text() for tick in residuals.get_xticklabels()} <= set(titles)
    assert Scoring(kind="classes", outputs=5, classes_by="mosi", scale=1.5, offset=3).titles[0] == "1.67"
    assert Scoring(kind="classes", outputs=3, classes_by="mosi", scale=1.5, offset=3).titles[0] == "negative"


def test_projection_and_smoothing():
    generator = np.random.default_rng(0)
    points = np.concatenate([generator.normal(size=(40, 5)), generator.normal(size=(40, 5)) + 20])
    for method in ("pca", "tsne"):
        plane = project(points, method)
        gap = np.linalg.norm(plane[:40].mean(0) - plane[40:].mean(0))
        assert gap > 2 * plane[:40].std()
    assert smooth(np.array([1.0, math.nan, 3.0]), 3).tolist() == [1, 2, 3]


def test_report_rejects(runs, tmp_path, capsys):
    def rejected(*arguments: object) -> str:
        capsys.readouterr()
        assert command("report", *arguments, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "out").exists()
        return error

    assert "there is no run directory" in rejected(tmp_path / "gone")
    assert "is not the directory of a training" in rejected(tmp_path)
    assert "named twice" in rejected(runs[0], runs[0])
    again = tmp_path / "again"
    shutil.copytree(runs[0], again)
    both = rejected(runs[0], runs[1], again)
    assert f"{runs[0]} and {again} are both seed 1 of one config" in both
    assert "holds no index" in rejected(runs[0], "--data", tmp_path)
    killed = tmp_path / "killed"
    shutil.copytree(runs[0], killed)
    document = json.loads((killed / "run.json").read_text())
    document["sessions"][-1].pop("finished")
    (killed / "run.json").write_text(json.dumps(document))
    assert "is not finished" in rejected(killed)
    text = (killed / "metrics.jsonl").read_text()
    (killed / "metrics.jsonl").write_text(text + '{"step": 3, "tra')
    assert command("report", killed, "--out", tmp_path / "killed_report", "--unfinished") == 0
    assert "NOT FINISHED at step" in (tmp_path / "killed_report" / "index.html").read_text()
    (killed / "metrics.jsonl").write_text(text.replace("valid/loss", "valid/lost"))
    assert "has no validation yet" in rejected(killed)
