"""The atlas: every entry and every claim has its page, links lead somewhere, nothing is loaded, and an old site is never half destroyed."""

import errno
import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import atlas_claims
import claim_plugin
import jsonschema
import pytest
from test_report_html import Page
from typer.testing import CliRunner

import gnomon
from gnomon.atlas.entries import parse, reading_list
from gnomon.atlas.write import build_atlas
from gnomon.cli.main import application
from gnomon.core.catalogue import get_claim
from gnomon.core.errors import CannotWrite, InvalidInput
from gnomon.core.registry import TOPICS
from gnomon.report.code import highlight
from gnomon.report.maths import paragraphs
from gnomon.report.pages import style_sheet
from gnomon.run.claims import run_claims

KINDS = atlas_claims.kinds()
OUTCOMES = ["holds", "fails", "inconclusive", "vacuous", "out-of-scope", "error", "not-run"]


def schema(kind):
    return jsonschema.Draft202012Validator(json.loads(resources.files("gnomon.run").joinpath(f"schema/{kind}.json").read_text(encoding="utf-8")))


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def text_of(folder, address):
    return Page((folder / address).read_text(encoding="utf-8")).words


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A plug-in with a claim of each kind, one of them never run, and the folder of results."""
    results = atlas_claims.make(tmp_path)
    atlas_claims.write_claim(tmp_path, ("transport", "not_run", "The distance $W_2$ is a metric.", "G4", "equal", "holds"))
    atlas_claims.known(tmp_path, monkeypatch)
    return results


@pytest.fixture
def site(plugin, tmp_path):
    out = tmp_path / "site"
    build_atlas(out, [plugin])
    return out


# The reading list.


def test_the_reading_list_is_whole():
    reading = reading_list()
    counts = {"A": 9, "B": 4, "C": 5, "D": 5, "E": 2, "F": 6, "G": 6, "H": 5, "I": 4, "J": 4}
    assert list(reading.entries) == [f"{letter}{k}" for letter, count in counts.items() for k in range(1, count + 1)]
    assert list(reading.sections) == list(counts)
    covered = {topic for entry in reading.entries.values() for topic in entry.topics}
    assert covered == set(TOPICS)
    for entry in reading.entries.values():
        assert entry.title
        assert entry.authors
        assert re.fullmatch(r"(\d{4}|, | to )+", entry.year)
        assert len(entry.asks) > 60
        assert entry.asks.endswith(".")
        for paper in entry.papers:
            assert bool(paper.arxiv) + bool(paper.doi) + bool(paper.url) <= 1
            assert re.fullmatch(r"(\d{4}\.\d{4,5})?", paper.arxiv)
            assert paper.doi.startswith("10.") or not paper.doi
            assert paper.url.startswith("https://") or not paper.url


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('topics = ["kernels"]', 'topics = ["kernel"]'), r"topic of entry B1: 'kernel'. Did you mean 'kernels'"),
        (('id = "B1"', 'id = "Z1"'), "section of entry Z1"),
        (('title = "T"', 'titel = "T"'), "Entry B1 of the reading list cannot be read"),
        (('year = "1"', "year ="), "not TOML"),
    ],
)
def test_a_broken_reading_list_is_refused(change, message):
    text = '[sections]\nB = "Width"\n[[entry]]\nid = "B1"\ntitle = "T"\nauthors = "A"\nyear = "1"\npapers = []\ntopics = ["kernels"]\nasks = "What?"\n'
    assert list(parse(text).entries) == ["B1"]
    with pytest.raises(InvalidInput, match=message):
        parse(text.replace(*change))
    with pytest.raises(InvalidInput, match="two entries B1"):
        parse(text + text.partition('B = "Width"\n')[2])


# The pages.


def test_every_entry_claim_topic_and_verdict_has_a_page(site):
    names = set(files(site))
    claims = {f"claims/{topic}/{name.replace('_', '-')}.html" for topic, name, *_ in KINDS} | {"claims/transport/not-run.html"}
    entries = {f"entries/{name}.html" for name in reading_list().entries}
    lists = {f"topics/{topic}.html" for topic in TOPICS} | {f"verdicts/{outcome}.html" for outcome in OUTCOMES}
    assert names == claims | entries | lists | {"index.html", "about.html", "style.css", "atlas.json"}
    assert "not yet" in text_of(site, "index.html")
    assert "Not yet" in text_of(site, "entries/J3.html")


def check_site(folder, claims):
    """Pages are whole, load and run nothing, and every link inside leads to a page and a place on it."""
    pages = {path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    places = {address: set(page.attributes("id")) for address, page in pages.items()}
    for address, page in pages.items():
        assert (page.wrong, page.open) == ([], []), address
        tags = {tag for tag, _ in page.elements}
        assert not tags & {"script", "img", "iframe", "object", "embed", "video", "audio", "base", "form", "style"}, address
        assert page.attributes("src") == []
        assert page.attributes("style") == []
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        assert len(page.attributes("id")) == len(set(page.attributes("id"))), address
        assert sum(tag == "h1" for tag, _ in page.elements) == 1
        for tag, attributes in page.elements:
            if "href" not in attributes or attributes["href"] == "data:,":
                continue
            target, _, fragment = attributes["href"].partition("#")
            if target.startswith("https://"):
                assert tag == "a"
                continue
            assert ":" not in target, (address, target)
            there = os.path.normpath(Path(address).parent / target) if target else address
            assert (folder / there).is_file(), (address, target)
            assert not fragment or fragment in places[there], (address, target, fragment)
        for tag, attributes in page.elements:
            if tag == "svg" and attributes.get("class") == "gf":
                assert attributes["role"] == "img"
    assert sum(address.startswith("claims/") for address in pages) == claims
    style = (folder / "style.css").read_text(encoding="utf-8")
    assert "@import" not in style
    assert "url(" not in style


def test_links_lead_somewhere_and_nothing_is_loaded(site):
    check_site(site, len(KINDS) + 1)


def test_two_hundred_claims_are_all_rendered(tmp_path, monkeypatch):
    results = atlas_claims.make(tmp_path, 200)
    atlas_claims.known(tmp_path, monkeypatch)
    made = build_atlas(tmp_path / "site", [results])
    assert len(made["claims"]) == sum(made["verdicts"].values()) == 200
    check_site(tmp_path / "site", 200)


def test_a_claims_page_says_all_there_is_to_say(site):
    page = Page((site / "claims/effective/vertex-growth.html").read_text(encoding="utf-8"))
    said = page.words
    for words in (
        "holds", "standard scale", "0.503 ± 0.010", "± 0.05", "the next order", "lies inside the tolerance", "Roberts et al. 2022, section 3", "@book{roberts2022",
        "gnomon claims run effective/vertex-growth --scale standard", "moved by 4.2 tolerances", "def predict", "One replicate & its <error>.", "1,024",
    ):  # fmt: skip
        assert words in said, words
    maths = [attributes for tag, attributes in page.elements if tag == "math"]
    assert {"inline", "block"} == {attributes["display"] for attributes in maths}
    assert sum(tag == "mfrac" for tag, _ in page.elements) >= 2
    assert sum(tag == "svg" and attributes.get("class") == "gf" for tag, attributes in page.elements) == 1


def test_elements_that_differ_are_marked(site):
    said = text_of(site, "claims/kernels/depth-decay.html")
    assert "2 of 12 fail, by depth: 11, 12" in said
    page = Page((site / "claims/kernels/depth-decay.html").read_text(encoding="utf-8"))
    assert [attributes.get("class") for tag, attributes in page.elements if tag == "tr"].count("fails") == 2
    assert "4 of 54 fail" in text_of(site, "claims/landscape/angle-map.html")


def test_verdicts_are_said_as_they_are(site):
    assert "As expected: the step is too large for the limit" in text_of(site, "claims/dynamics/ou-covariance.html")
    assert "Can it hold?" in text_of(site, "claims/dynamics/ou-covariance.html")
    assert "Not as expected" in text_of(site, "claims/kernels/few-replicates.html")
    assert "replicates would decide it" in text_of(site, "claims/kernels/few-replicates.html")
    assert "The activation is smooth, and has no pieces" in text_of(site, "claims/approximation/outside.html")
    assert "the graph is empty" in text_of(site, "claims/graphs/broken.html")
    never = text_of(site, "claims/transport/not-run.html")
    assert "Not run yet" in never
    assert "gnomon claims run transport/not-run --scale standard" in never


def test_verdict_and_topic_pages_hold_the_claims_that_they_should(site):
    made = json.loads((site / "atlas.json").read_text())
    check = schema("atlas")
    assert [error.message for error in check.iter_errors(made)] == []
    assert not check.is_valid(made | {"verdicts": {"holds": 1}})
    assert not check.is_valid(made | {"claims": [made["claims"][0] | {"verdict": "agrees"}]})
    for outcome in OUTCOMES:
        page = Page((site / f"verdicts/{outcome}.html").read_text(encoding="utf-8"))
        listed = {href.removeprefix("../") for href in page.attributes("href") if href.startswith("../claims/")}
        assert listed == {claim["page"] for claim in made["claims"] if (claim["verdict"] or "not_run") == outcome.replace("-", "_")}
        assert made["verdicts"][outcome] == len(listed)
    page = Page((site / "topics/kernels.html").read_text(encoding="utf-8"))
    assert len({href for href in page.attributes("href") if href.startswith("../claims/kernels/")}) == 3


def test_a_map_of_the_field_lists_the_claims_of_its_topics(site):
    page = Page((site / "entries/A1.html").read_text(encoding="utf-8"))
    assert "../claims/generalization/certificate.html" in page.attributes("href")
    page = Page((site / "entries/B2.html").read_text(encoding="utf-8"))
    assert not any(href.startswith("../claims/") for href in page.attributes("href"))


def test_hostile_text_stays_text(tmp_path, monkeypatch):
    spec = ("kernels", "hostile", "A <script>alert(1)</script> & an unreadable $\\\\nosuch{$ formula.", "B3", "equal", "holds", KINDS[0][6], {"tolerance": 0.05})
    path = atlas_claims.write_claim(tmp_path, spec)
    document = atlas_claims.document("kernels/hostile", spec, code=atlas_claims.code_of(path)) | {"why": "<img src=x onerror=alert(1)>"}
    atlas_claims.put(tmp_path / "results/kernels/hostile.json", document)
    atlas_claims.known(tmp_path, monkeypatch)
    build_atlas(tmp_path / "site", [tmp_path / "results"])
    check_site(tmp_path / "site", 1)
    assert "<script>alert(1)</script>" in text_of(tmp_path / "site", "claims/kernels/hostile.html")


def test_the_same_store_gives_the_same_bytes(plugin, tmp_path):
    build_atlas(tmp_path / "one", [plugin])
    build_atlas(tmp_path / "two", [plugin])
    assert files(tmp_path / "one") == files(tmp_path / "two")


# Which verdict is shown.


def test_the_largest_scale_is_shown_and_old_code_is_named(plugin, tmp_path):
    store, spec = tmp_path / "store", KINDS[0]
    code = json.loads((plugin / "effective/vertex-growth.json").read_text())["code"]
    for scale in ("smoke", "paper"):
        atlas_claims.put(store / f"claims/effective/vertex-growth.{scale}.json", atlas_claims.document("effective/vertex-growth", spec, scale=scale, code=code))
    build_atlas(tmp_path / "site", [plugin, store])
    said = text_of(tmp_path / "site", "claims/effective/vertex-growth.html")
    assert "holds paper scale" in said
    assert "At other scales: standard, holds; smoke, holds." in said
    assert "older code" not in said
    atlas_claims.put(store / "claims/effective/vertex-growth.paper.json", atlas_claims.document("effective/vertex-growth", spec, scale="paper", code="0" * 16) | {"version": 1})
    build_atlas(tmp_path / "site", [plugin, store])
    said = text_of(tmp_path / "site", "claims/effective/vertex-growth.html")
    assert "Made by older code" in said
    assert "version 1 then, version 2 now" in said


def test_of_two_at_a_scale_that_of_the_present_code_then_the_newer_is_shown(plugin, tmp_path):
    spec, code = KINDS[0], json.loads((plugin / "effective/vertex-growth.json").read_text())["code"]
    place = tmp_path / "store/claims/effective/vertex-growth.standard.json"
    atlas_claims.put(place, atlas_claims.document("effective/vertex-growth", spec, code="0" * 16, at="2027-01-01T00:00:00") | {"seed": 7})
    build_atlas(tmp_path / "site", [plugin, tmp_path / "store"])
    assert "seed 0" in text_of(tmp_path / "site", "claims/effective/vertex-growth.html")
    atlas_claims.put(place, atlas_claims.document("effective/vertex-growth", spec, code=code, at="2027-01-01T00:00:00") | {"seed": 7})
    build_atlas(tmp_path / "site", [plugin, tmp_path / "store"])
    assert "seed 7" in text_of(tmp_path / "site", "claims/effective/vertex-growth.html")


def test_a_verdict_without_its_claim_is_retired_not_lost(plugin, tmp_path):
    atlas_claims.put(plugin / "effective/gone.json", atlas_claims.document("effective/gone", KINDS[0]))
    made = build_atlas(tmp_path / "site", [plugin])
    assert made["retired"] == ["effective/gone"]
    assert "effective/gone : holds at standard" in text_of(tmp_path / "site", "index.html")


def test_what_the_runner_stores_is_what_the_atlas_shows(tmp_path, monkeypatch):
    atlas_claims.write_claim(tmp_path, ("mathematics", "one"), claim_plugin.claim("one"))
    atlas_claims.known(tmp_path, monkeypatch)
    (document,) = run_claims([get_claim("mathematics/one")], store=tmp_path / "store")
    build_atlas(tmp_path / "site", [tmp_path / "store"])
    check_site(tmp_path / "site", 1)
    said = text_of(tmp_path / "site", "claims/mathematics/one.html")
    assert "holds smoke scale" in said
    assert f"moved by {document['sabotage']['moved_tolerances']:.3g} tolerances" in said
    assert "Schuirmann 1987, section 2" in said
    assert "Why it is so." in said


def test_the_documents_of_these_tests_are_as_the_runner_writes_them():
    check = schema("run")
    for spec in KINDS:
        check.validate(json.loads(json.dumps(atlas_claims.document(f"{spec[0]}/{spec[1].replace('_', '-')}", spec, code="0" * 16))))


# Bad input, and what stood there before.


def test_bad_input_is_refused_and_the_old_site_stays(plugin, tmp_path, site):
    before = files(site)
    newer = plugin / "effective/newer.json"
    for content, message in (('{"schema": "gnomon/run/99"}', "newer.json was written by a newer gnomon"), ("{", "newer.json cannot be read as JSON")):
        newer.write_text(content)
        with pytest.raises(InvalidInput, match=message):
            build_atlas(site, [plugin])
    newer.unlink()
    broken = atlas_claims.write_claim(tmp_path, ("effective", "lost", "A claim.", "Z9", "equal", "holds"))
    with pytest.raises(InvalidInput, match=r"claim effective/lost .*'Z9'"):
        build_atlas(site, [plugin])
    broken.write_text(broken.read_text().replace('"Z9"', '"B1"').replace('"roberts2022"', '"robert2022"'))
    sys.modules.pop(f"{atlas_claims.PACKAGE}.claims.effective.lost")
    with pytest.raises(InvalidInput, match=r"source in the claim effective/lost .*'roberts2022'"):
        build_atlas(site, [plugin])
    broken.write_text('"""A claim."""\n\nimport nosuch_module\n')
    sys.modules.pop(f"{atlas_claims.PACKAGE}.claims.effective.lost")
    with pytest.raises(InvalidInput, match=r"effective/lost does not import.*nosuch_module"):
        build_atlas(site, [plugin])
    assert files(site) == before


def test_a_folder_that_is_no_atlas_is_left_alone(plugin, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my page")
    with pytest.raises(InvalidInput, match="holds no atlas"):
        build_atlas(mine, [plugin])
    (mine / "atlas.json").write_text('{"schema": "gnomon/report/1"}')
    with pytest.raises(InvalidInput, match="not a gnomon/atlas document"):
        build_atlas(mine, [plugin])
    assert files(mine) == {"index.html": b"my page", "atlas.json": b'{"schema": "gnomon/report/1"}'}
    with pytest.raises(InvalidInput, match="is a file"):
        build_atlas(mine / "index.html", [plugin])
    with pytest.raises(CannotWrite, match="Cannot write"):
        build_atlas(mine / "index.html" / "site", [plugin])


def test_an_old_atlas_is_replaced_and_other_files_stay(plugin, tmp_path, site):
    (site / "CNAME").write_text("atlas.example")
    (tmp_path / atlas_claims.PACKAGE / "claims/graphs/broken.py").unlink()
    made = build_atlas(site, [plugin])
    assert "claims/graphs/broken.html" not in made["files"]
    assert not (site / "claims/graphs").exists()
    assert (site / "CNAME").read_text() == "atlas.example"
    assert set(files(site)) == set(made["files"]) | {"CNAME"}
    old = json.loads((site / "atlas.json").read_text())
    outside = tmp_path / "precious"
    outside.write_text("mine")
    (site / "atlas.json").write_text(json.dumps(old | {"files": [*old["files"], "../precious", str(outside)]}))
    build_atlas(site, [plugin])
    assert outside.read_text() == "mine"


def test_a_full_disk_leaves_the_old_site_whole(plugin, tmp_path, site, monkeypatch):
    before, real, count = files(site), os.fsync, iter(range(1000))
    (plugin / "effective/vertex-growth.json").unlink()

    def full(handle):
        if next(count) == 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotWrite, match="No space left"):
        build_atlas(site, [plugin])
    assert files(site) == before


# From the command line, with a plug-in found by its entry point.


def test_the_command_finds_a_plug_in_s_claim_with_no_other_edit(tmp_path):
    spec = KINDS[0]
    path = atlas_claims.write_claim(tmp_path, spec)
    atlas_claims.put(tmp_path / "cache/store/claims/effective/vertex-growth.standard.json", atlas_claims.document("effective/vertex-growth", spec, code=atlas_claims.code_of(path)))
    atlas_claims.put(tmp_path / "cache/store/runs/report.json", {"schema": "gnomon/report/1"})
    (tmp_path / "results").mkdir()
    source = str(Path(gnomon.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), source]), "GNOMON_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "gnomon.cli.main", "atlas", "--out", "site", "--results", "results", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = {claim["claim"]: claim for claim in json.loads(done.stdout)["claims"]}
    check_site(tmp_path / "site", len(found))
    assert found["effective/vertex-growth"]["verdict"] == "holds"
    assert "holds standard scale" in text_of(tmp_path / "site", "claims/effective/vertex-growth.html")


def test_the_command_says_what_it_built(plugin, tmp_path, monkeypatch):
    monkeypatch.setenv("GNOMON_CACHE", str(tmp_path / "cache"))
    app, out = application(), str(tmp_path / "site")
    atlas_claims.put(plugin / "effective/gone.json", atlas_claims.document("effective/gone", KINDS[0]))
    done = CliRunner().invoke(app, ["atlas", "--out", out, "--results", str(plugin)])
    assert done.exit_code == 0
    first, second, third, last = done.stdout.splitlines()
    assert first.startswith("50 entries · 12 claims (3 holds, 4 fails, 1 inconclusive")
    assert second.startswith("not as expected: ")
    assert "effective/gone" in third
    assert last.endswith("site/index.html")
    for option in ("--results", "--store"):
        done = CliRunner().invoke(app, ["atlas", "--out", out, option, str(tmp_path / "nowhere")])
        assert (done.exit_code, "There is no folder" in done.stderr) == (2, True)
    (plugin / "effective/newer.json").write_text('{"schema": "gnomon/run/99"}')
    done = CliRunner().invoke(app, ["atlas", "--out", out, "--results", str(plugin)])
    assert (done.exit_code, "newer.json was written by a newer gnomon" in done.stderr) == (2, True)


# Parts.


def test_a_paragraph_that_is_a_formula_stands_alone():
    first, second, third = paragraphs("Rate $1/n$\nof growth.\n\n$$\\frac{a}{b}$$\n\nWhere $a$ and $b$ differ.")
    assert 'display="inline"' in first
    assert 'display="block"' in second
    assert second.startswith("<math")
    assert third.count("<math") == 2


def test_code_is_coloured_and_unchanged():
    code = '"""A <b> & more."""\n\n\ndef f(x: int) -> int:  # why\n    return x + 1 if x else "é"\n'
    marked = highlight(code)
    assert "".join(Page(marked).text) == code
    for piece in ('<span class="k">def</span>', '<span class="d">f</span>', '<span class="c"># why</span>', '<span class="n">1</span>'):
        assert piece in marked


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    return sum(weight * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4) for weight, c in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_code_can_be_read_on_their_grounds(scheme):
    """WCAG 2's contrast of 4.5 for text of normal size."""
    named = {name: re.findall(rf"--{name}:(#\w+)", style_sheet())[scheme] for name in ("tint", "ink", "muted", "accent", "code-key", "code-text", "code-number", "code-name")}
    ground = luminance(named["tint"])
    for name in named.keys() - {"tint"}:
        low, high = sorted((luminance(named[name]), ground))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


# In a browser.


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_telephone_and_ask_for_the_style_alone(browser, plugin, tmp_path, scheme):
    long = "encoder_layers_17_self_attention_output_projection_parametrizations_weight_original0"
    formula = "$" + " + ".join(f"\\frac{{x_{{{k}}}^{{{k}}}}}{{n}}" for k in range(40)) + "$"
    spec = ("information", long, f"A {'very' * 40} long statement with {formula} in it.\n\n{formula}", "G5", "equal", "fails", KINDS[4][6], {"tolerance": 0.1})
    path = atlas_claims.write_claim(tmp_path, spec)
    name = f"information/{long.replace('_', '-')}"
    atlas_claims.put(plugin / f"{name}.json", atlas_claims.document(name, spec, code=atlas_claims.code_of(path)) | {"why": long * 3})
    out = tmp_path / "site"
    build_atlas(out, [plugin])
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    addresses = ["index.html", "about.html", "entries/A1.html", "entries/B1.html", "entries/G5.html", "topics/kernels.html", "verdicts/fails.html", f"claims/{name}.html"]
    for address in [*addresses, *(f"claims/{topic}/{slug.replace('_', '-')}.html" for topic, slug, *_ in KINDS)]:
        asked.clear()
        page.goto((out / address).as_uri())
        assert asked == [(out / address).as_uri(), (out / "style.css").as_uri()]
        page.evaluate("document.querySelectorAll('details').forEach(entry => { entry.open = true })")
        for width in (390, 320, 1280):
            page.set_viewport_size({"width": width, "height": 844})
            over = page.evaluate(
                "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll,svg,.away,pre.code,.formula,.quantity a,.statement,h3.claim') && e.getBoundingClientRect().right > innerWidth + 1)"
                ".map(e => e.outerHTML.slice(0, 80))"
            )
            assert (address, width, page.evaluate("document.documentElement.scrollWidth") <= width, over) == (address, width, True, [])
    assert said == []
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in paper.removeprefix("rgb(").removesuffix(")").split(","))
    assert (brightness < 150) if scheme == "dark" else (brightness > 700)
    context.close()


def test_pages_are_read_and_walked_without_script(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "index.html").as_uri())
    page.click("text=The Principles of Deep Learning Theory")
    page.click("article a >> nth=0")
    assert "claims/effective/" in page.url
    page.click("summary >> nth=0")
    assert page.is_visible("details[open] >> nth=0")
    context.close()
