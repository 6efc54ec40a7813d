"""The page of a run: its numbers are the run's, and no text of a run can break it."""

import base64
import gzip
import hashlib
import html.parser
import json
import re
from importlib import resources

import numpy as np
import pytest
from zoo.report_runs import HOSTILE, make_run

from ldjax.data.tokenizers import load_tokenizer, train_bpe
from ldjax.report.__main__ import Config, main
from ldjax.report.browser import token_texts
from ldjax.report.content import MOST_POINTS, run_content
from ldjax.report.measures import accumulated_curves
from ldjax.report.numbers.lines import mean_lines
from ldjax.report.packing import unpacked
from ldjax.report.page import page
from ldjax.runs.folder import create_run, open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "hostile", HOSTILE)


@pytest.fixture(scope="module")
def written(run):
    return page([run])


class Scripts(html.parser.HTMLParser):
    """The script elements of a page, as a browser cuts them out."""

    def __init__(self, text):
        super().__init__(convert_charrefs=False)
        self.found, self.others = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "script":
            self.found.append([dict(attrs), ""])
        else:
            self.others.append(tag)

    def handle_data(self, data):
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.found[-1][1] += data


def embedded(text):
    """What stands compressed in a page, by the id of its element."""
    return {
        attrs["id"]: gzip.decompress(base64.b64decode(body)).decode()
        for attrs, body in Scripts(text).found
        if "id" in attrs
    }


def content_of(text):
    return json.loads(embedded(text)["data"])


# What is on the page


def test_texts_come_back_as_they_were(written):
    (run,) = content_of(written)["runs"]
    texts = {response["text"] for response in run["probes"]["responses"]}
    assert texts == set(HOSTILE.values())
    assert {prompt["text"] for prompt in run["probes"]["prompts"]} == texts


def test_curves_are_those_of_the_figures(run, written):
    (content,) = content_of(written)["runs"]
    metrics = run.metrics()
    for curves, found in (
        (mean_lines(metrics, "train"), content["curves"]["train"]),
        (accumulated_curves(metrics, "measured"), content["tracked"]["measured"]),
        (accumulated_curves(metrics, "remainder"), content["parts"]["remainder"]),
    ):
        assert curves.keys() == found.keys()
        for name, curve in curves.items():
            assert unpacked(found[name]["x"]).tolist() == curve.x.tolist()
            np.testing.assert_allclose(
                unpacked(found[name]["y"]), curve.y, rtol=1e-6, atol=1e-6
            )


def test_every_response_has_its_own_curve(run, written):
    (content,) = content_of(written)["runs"]
    probes = content["probes"]
    table = unpacked(probes["observed"]["tables"]["log_prob"])
    values = {
        (probe, type_, step): value
        for step, _, probe, type_, quantity, value in run.metrics().rows()
        if quantity == "log_prob"
    }
    assert table.size == len(values)
    for column, response in enumerate(probes["responses"]):
        name = probes["prompts"][response["prompt"]]["name"]
        for row, step in enumerate(probes["observed"]["steps"]):
            expected = np.float32(values[name, response["type"], step])
            assert table[row, column] == expected


def test_tokens_have_their_numbers(run, written):
    (content,) = content_of(written)["runs"]
    with np.load(run.path / "tokens.npz") as file:
        arrays = dict(file)
    tokenizer = load_tokenizer(run.path)
    details = content["probes"]["tokens"]["responses"]
    for number, place in enumerate(sorted(details, key=int)):
        detail = details[place]
        mask = arrays["mask_0"][number]
        text = content["probes"]["responses"][int(place)]["text"]
        assert "".join(detail["texts"]) == text + tokenizer.special_tokens.end
        for name in ("predicted", "measured"):
            expected = arrays[f"{name}_0"][number][mask].astype(np.float32)
            assert unpacked(detail[name]).tolist() == expected.tolist()
        expected = arrays["log_prob_0"][:, number][:, mask].astype(np.float32)
        assert unpacked(detail["log_prob"]).tolist() == expected.tolist()


def test_shares_and_their_rest_are_the_whole_map(run, written):
    (content,) = content_of(written)["runs"]
    with np.load(run.path / "token_maps" / "000000.npz") as file:
        arrays = dict(file)
    with np.load(run.path / "tokens.npz") as file:
        mask = file["mask_0"]
    chosen, rejected = (
        (arrays[f"map_0_{side}"] * arrays[f"mask_{side}"]).sum((2, 3))
        for side in ("chosen", "rejected")
    )
    total = chosen + rejected
    details = content["probes"]["tokens"]["responses"]
    for number, place in enumerate(sorted(details, key=int)):
        (shares,) = details[place]["maps"]
        found = unpacked(shares["shares"]).sum(1) * unpacked(shares["unit"])
        found = found + unpacked(shares["rest"])
        np.testing.assert_allclose(found, total[number][mask[number]], atol=1e-4)


@pytest.mark.parametrize("text", ["", "plain", "é👩‍👧 x", "\u202e\x00\ufffd", " \n "])
def test_tokens_joined_are_the_text(text):
    tokenizer = train_bpe(["plain"], vocab_size=260)
    ids = tokenizer.encode(text)
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_a_run_of_another_kind_has_a_page(tmp_path):
    run = create_run(tmp_path / "digits", {"seed": 0})
    rows = [(7, 7, str(i), str(j), "norm", i - j) for i in range(3) for j in range(2)]
    run.write_metrics(rows)
    content = run_content(run)
    assert content["probes"] is None
    (table,) = content["tables"]
    assert unpacked(table["values"]).tolist() == [[[0, -1], [1, 0], [2, 1]]]


def test_pictures_are_shown_where_there_are_no_curves(tmp_path):
    picture = b"\x89PNG and so on"
    for name, rows, shown in (
        ("kernel", [(0, 0, "0", "0", "norm", 1.0)], 1),
        ("sft", [(0, 0, "train/0", "chosen", "log_prob", -9.0)], 0),
    ):
        run = create_run(tmp_path / name, {})
        run.write_metrics(rows)
        run.figure_path("all_norms").write_bytes(picture)
        figures = run_content(run)["figures"]
        assert len(figures) == shown
    run_figures = run_content(open_run(tmp_path / "kernel"))["figures"]
    assert run_figures[0]["name"] == "all norms"
    assert base64.b64decode(run_figures[0]["source"].partition(",")[2]) == picture


def test_the_folder_of_a_pipeline_stands_for_its_stages(tmp_path, capsys):
    create_run(tmp_path / "pipeline", {})
    for name in ("sft", "a_dpo"):  # in this order
        stage = create_run(tmp_path / "pipeline" / name, {})
        stage.write_metrics([(0, 0, "train/0", "chosen", "log_prob", -9.0)])
    assert main(Config((tmp_path / "pipeline",))) == 0
    text = (tmp_path / "pipeline" / "report.html").read_text(encoding="utf-8")
    assert [run["name"] for run in content_of(text)["runs"]] == ["sft", "a_dpo"]
    capsys.readouterr()


def test_types_of_ones_own_have_curves(tmp_path):
    run = create_run(tmp_path / "mine", {})
    rows = [(s, s, "train/0", name, "log_prob", s) for s in (0, 1) for name in "ab"]
    run.write_metrics(rows)
    content = run_content(run)
    assert list(content["curves"]["train"]) == ["a", "b"]
    assert any("ends highest" in sentence for sentence in content["sentences"])


def test_long_curves_are_thinned_and_end_where_they_end(tmp_path):
    run = make_run(tmp_path / "long", {"a": "b"}, types=("chosen",), steps=range(3000))
    found = run_content(run)["tracked"]["measured"]["chosen"]
    curve = accumulated_curves(run.metrics(), "measured")["chosen"]
    x, y = unpacked(found["x"]), unpacked(found["y"])
    assert len(x) == MOST_POINTS
    assert (x[-1], y[-1]) == (curve.x[-1], pytest.approx(curve.y[-1], rel=1e-5))


# What cannot happen to it


def test_no_text_leaves_its_place(written):
    scripts = Scripts(written)
    assert len(scripts.found) == 2
    assert not {"img", "b", "textarea"} & set(scripts.others)
    assert "document.title" not in written


def test_the_policy_names_the_scripts_and_no_address(written):
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', written)
    (script,) = [body for attrs, body in Scripts(written).found if not attrs]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_the_script_makes_text_nodes_only():
    files = (resources.files("ldjax.report") / "template").iterdir()
    script = "".join(file.read_text() for file in files if file.name.endswith(".js"))
    assert "createElement" in script
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacent", "write(", "eval("):
        assert forbidden not in script


def test_files_of_the_script_share_a_scope_and_no_name():
    files = (resources.files("ldjax.report") / "template").iterdir()
    scripts = [file.read_text() for file in files if file.name.endswith(".js")]
    pattern = re.compile(r"^(?:function|const|let) (\w+)", re.MULTILINE)
    names = [name for script in scripts for name in pattern.findall(script)]
    assert len(names) > 100
    assert {name for name in names if names.count(name) > 1} == set()


def test_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(Config((run.path, run.path), out=out)) == 0
    assert str(out) in capsys.readouterr().out
    assert len(content_of(out.read_text(encoding="utf-8"))["runs"]) == 2
    with pytest.raises(SystemExit, match="not a run folder"):
        main(Config((tmp_path,)))
    create_run(tmp_path / "begun", {})
    with pytest.raises(SystemExit, match=r"no metrics\.parquet"):
        main(Config((tmp_path / "begun",)))
