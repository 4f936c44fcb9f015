"""The page as a browser shows it, and what stands in it beside the counts."""

import builtins
import importlib.util
import json
import shutil
import subprocess
import sys
import types

import cv2
import numpy as np
import pytest
from test_structure import ROOT

from psp_jax import default_config, extremes, metrics, published, report
from psp_jax.data import taxonomy

# What a browser would act upon if it were not escaped.
NAMES = ("road", "</script><script>hacked = 1</script>", "<b>bold</b> & \"q\"",
         "{{ 7 * 7 }} %{x}", "<img src=x onerror=hacked=1>", "absent")
PALETTE = np.array([(250, 0, 0), (0, 200, 0), (0, 0, 250), (99, 99, 0),
                    (0, 99, 99), (150, 0, 150)], np.uint8)
TAXONOMY = taxonomy.Taxonomy(NAMES, PALETTE, taxonomy.make_label_map(0, 6))
CONFUSION = np.array([
    [900, 100, 0, 0, 0, 0], [0, 20, 0, 0, 0, 0], [30, 0, 70, 0, 0, 0],
    [123, 0, 0, 877, 0, 0], [10, 40, 0, 0, 0, 0], [0] * 6])
PHOTO, TRUTH, GUESS = (40, 90, 160), 0, 1
_CHROMIUM = shutil.which("chromium")
_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
          "--disable-background-networking", "--disable-component-update",
          "--disable-sync")


def examples(*names):
  """Pictures of one colour: photograph, truth and prediction."""
  found = extremes.Extremes(4, 640)
  for i, name in enumerate(names):
    label = np.full((60, 100), TRUTH, np.uint8)
    image = np.full((60, 100, 3), PHOTO, np.uint8)
    confusion = np.zeros((6, 6), int)
    confusion[TRUTH, [TRUTH, GUESS]] = 10 * i, 100
    found.add({"image": image, "label": label, "name": name}, confusion,
              lambda label=label: np.full_like(label, GUESS))
  return found


def content(confusion=CONFUSION, classes=TAXONOMY, **changes):
  scores = metrics.scores(confusion)
  config = default_config.get_config()
  config.published = "mIoU <i>41.68</i> %"
  config.data.crop_size = 17
  found = examples("worst", "</title><b>", "c", "d", "best")
  values = {
      "name": "run <1>", "taxonomy": classes, "confusion": confusion,
      "result": {
          "dataset": "made", "split": "val", "num_images": 5, "step": 1200,
          "miou": scores.miou, "mean_accuracy": scores.mean_accuracy,
          "pixel_accuracy": scores.pixel_accuracy,
          "final_score": scores.final_score,
          "protocol": {
              "scales": [1.0], "flip": True, "window": "whole",
              "stride_fraction": 2 / 3, "base_size": 0, "base_side": "long",
              "average": "probabilities", "absent_classes": "skip"}},
      "best": found.best(), "worst": found.worst(), "num_ranked": 5,
      "config": config.to_dict(), "rows": {},
      "training": [{"step": s, "loss": 9 / s, "pixel_accuracy": 0.5,
                    "learning_rate": 0.01} for s in (1, 600, 1200)],
      "validation": [{"step": 600, "miou": 0.25}, {"step": 900, "miou": None}],
      "about": {"time": "2026-01-02 03:04"}}
  return report.Content(**values | changes)


# ---- In a browser.


@pytest.fixture(scope="module")
def browser():
  if _CHROMIUM is None:
    pytest.skip("needs Chromium: no `chromium` is on the PATH")
  api = pytest.importorskip("playwright.sync_api")
  with api.sync_playwright() as playwright:
    chromium = playwright.chromium.launch(
        executable_path=_CHROMIUM, args=_FLAGS)
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  file = tmp_path_factory.mktemp("page") / "report.html"
  file.write_text(report.render(content()), encoding="utf-8")
  return file


@pytest.fixture
def opened(browser):
  """A function (file, more of Playwright's options) -> page.

  Pages must have said nothing and asked for nothing when the test is done.
  """
  pages, said = [], []

  def open_page(file, width=1280, **options):
    page = browser.new_page(viewport={"width": width, "height": 900},
                            **options)
    page.set_default_timeout(240_000)  # The machine may be a busy one.
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url[:99])
            if request.url.split(":")[0] not in ("data", "blob")
            and request.url != file.as_uri() else None)
    pages.append(page)
    page.goto(file.as_uri())
    page.wait_for_function(
        "document.querySelectorAll('#matrix .yaxislayer-above text').length")
    return page

  yield open_page
  for page in pages:
    page.close()
  assert not said


def drawn_order(page):
  """Names on the bars' axis, from the top."""
  return page.evaluate("""() =>
      [...document.querySelectorAll("#bars .yaxislayer-above text")]
      .map(t => [t.getBoundingClientRect().top, t.textContent])
      .sort((a, b) => a[0] - b[0]).map(t => t[1])""")


def cut(name):
  return name if len(name) <= 28 else name[:27] + "…"


def test_names_are_text_wherever_they_stand(opened, path):
  page = opened(path)
  assert page.title() == "run <1>: mIoU 49.5\N{NO-BREAK SPACE}% on made val"
  assert page.evaluate("typeof hacked") == "undefined"
  assert sorted(drawn_order(page)) == sorted(map(cut, NAMES))
  rows = page.locator("#class-table tbody th")
  assert sorted(rows.all_text_contents()) == sorted(NAMES)
  assert page.locator("figcaption span:first-child").all_text_contents() == [
      "best", "d", "c", "worst", "</title><b>"]
  assert page.locator("b", has_text="road").count()
  assert page.get_by_text("config: mIoU <i>41.68</i> %").is_visible()
  # plotly has a markup of its own.
  page.locator("#matrix-frame").scroll_into_view_if_needed()
  box = page.locator("#matrix .nsewdrag").first.bounding_box()
  page.mouse.move(box["x"] + box["width"] * 0.5 / 6,
                  box["y"] + box["height"] * 2.5 / 6)  # Row 2, column 0.
  hover = page.locator("#matrix .hoverlayer text").first
  hover.wait_for()
  assert hover.text_content() == (
      "<b>bold</b> & \"q\" called road30.0 %30 of 100 pixels")


def test_classes_are_sorted_by_what_is_asked(opened, path):
  page = opened(path)
  iou = metrics.scores(CONFUSION).per_class_iou
  share = CONFUSION.sum(1)
  largest = [sorted(range(6), key=lambda c: -np.nan_to_num(key[c], nan=-1))
             for key in (iou, share)]

  def expect(order):
    assert drawn_order(page) == [cut(NAMES[c]) for c in order]
    assert page.locator("#class-table tbody th").all_text_contents() == [
        NAMES[c] for c in order]

  expect(largest[0])
  page.get_by_role("button", name="share of pixels").click()
  expect(largest[1])
  button = page.get_by_role("button", name="IoU")
  button.focus()
  page.keyboard.press("Enter")
  expect(largest[0])
  assert button.get_attribute("aria-pressed") == "true"
  page.keyboard.press("Space")  # Again: the other way, the absent still last.
  expect(largest[0][:-1][::-1] + largest[0][-1:])
  page.get_by_role("button", name="name").click()
  by_name = [NAMES.index(n) for n in page.evaluate(
      "names => names.sort((a, b) => a.localeCompare(b))", list(NAMES))]
  expect(by_name)
  accuracy = metrics.scores(CONFUSION).per_class_accuracy
  page.get_by_role("button", name="accuracy").click()
  expect(sorted(range(6), key=lambda c: -np.nan_to_num(accuracy[c], nan=-1)))


def pixels(locator):
  data = np.frombuffer(locator.screenshot(), np.uint8)
  return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(int)


def shares(locator, photo, layer):
  """What of the width has the photograph's colour, and what the layer's."""
  row = pixels(locator)[20]  # Above the handle and the tags.
  is_photo = np.abs(row - photo).max(-1) < 12
  is_layer = np.abs(row - layer).max(-1) < 12
  return is_photo.mean(), is_layer.mean()


def test_the_slider_wipes_between_photograph_and_layer(opened, path):
  page = opened(path)
  wipe = page.locator(".wipe").first
  wipe.scroll_into_view_if_needed()
  assert shares(wipe, PHOTO, PALETTE[GUESS]) == pytest.approx(
      (0.5, 0.5), abs=0.02)
  box = wipe.bounding_box()
  page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30)
  page.mouse.down()
  page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 30, steps=5)
  page.mouse.up()
  assert shares(wipe, PHOTO, PALETTE[GUESS]) == pytest.approx(
      (0.25, 0.75), abs=0.02)
  others = page.locator(".wipe").nth(1)  # Each has a slider of its own.
  assert shares(others, PHOTO, PALETTE[GUESS])[0] == pytest.approx(
      0.5, abs=0.02)
  page.get_by_role("radio", name="truth").check()
  assert shares(wipe, PHOTO, PALETTE[TRUTH])[1] == pytest.approx(
      0.75, abs=0.02)
  page.keyboard.press("ArrowRight")  # Of the radio buttons: prediction.
  assert shares(wipe, PHOTO, PALETTE[GUESS])[1] == pytest.approx(
      0.75, abs=0.02)
  wipe.get_by_role("slider").focus()
  page.keyboard.press("End")
  assert shares(wipe, PHOTO, PALETTE[GUESS]) == pytest.approx(
      (1, 0), abs=0.02)
  page.keyboard.press("Home")
  page.keyboard.press("ArrowRight")
  assert shares(wipe, PHOTO, PALETTE[GUESS])[1] == pytest.approx(
      0.99, abs=0.01)


def test_both_colour_schemes_also_where_they_change(opened, path):
  page = opened(path, color_scheme="light")

  def colours():
    return page.evaluate("""() => ["body", "#bars .ytick text"].map(q => {
        const s = getComputedStyle(document.querySelector(q));
        return q === "body" ? s.backgroundColor : s.fill;
    }).map(c => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0) / 3)
    """)

  page_light, text_light = colours()
  page.emulate_media(color_scheme="dark")
  page.wait_for_function("""() => getComputedStyle(document.querySelector(
      "#bars .ytick text")).fill.match(/\\d+/)[0] > 128""")
  page_dark, text_dark = colours()
  assert page_light > 240 and text_light < 60
  assert page_dark < 40 and text_dark > 200


def test_curves_are_there_where_there_is_a_history(opened, path, tmp_path):
  page = opened(path)
  assert page.evaluate("""() => ["loss", "miou", "rate"].map(id =>
      document.getElementById(id).data[0].y)""") == [
          [9, 9 / 600, 9 / 1200], [25, None], [0.01] * 3]
  file = tmp_path / "converted.html"
  file.write_text(report.render(content(training=[], validation=[])), "utf-8")
  page = opened(file)
  assert page.locator("#training, #loss").count() == 0
  assert page.get_by_role("link", name="Training").count() == 0


def test_a_phone_scrolls_one_way_and_many_classes_stay_readable(
    opened, tmp_path):
  rng = np.random.default_rng(0)
  many = taxonomy.Taxonomy(
      tuple(f"class number {i} of a great many" for i in range(150)),
      taxonomy.voc_palette(150), taxonomy.make_label_map(0, 150))
  confusion = rng.integers(0, 50, (150, 150)) + 500 * np.eye(150, dtype=int)
  file = tmp_path / "many.html"
  file.write_text(report.render(content(confusion, many, best=[], worst=[])),
                  "utf-8")
  page = opened(file, 390)
  assert page.evaluate("document.documentElement.scrollWidth") == 390
  ticks = page.evaluate("""() => ["#bars .ytick text", "#matrix .ytick text",
      "#matrix .xtick text"].map(q => {
        const boxes = [...document.querySelectorAll(q)].map(
            t => t.getBoundingClientRect());
        const side = q.includes("xtick") ? "left" : "top";
        const at = boxes.map(b => b[side]).sort((a, b) => a - b);
        return [at.length, Math.min(...at.slice(1).map((x, i) => x - at[i]))];
      })""")
  for number, apart in ticks:
    assert number == 150 and apart >= 11  # Pixels: no label over another.
  for frame in ("#bars-frame", "#matrix-frame"):
    held = page.evaluate(f"""() => {{
        const f = document.querySelector("{frame}");
        return [f.clientHeight, f.scrollHeight, f.clientWidth]; }}""")
    assert held[0] < 900 < held[1] and held[2] <= 390


def test_a_phone_shows_pictures_within_its_width(opened, path):
  page = opened(path, 390)
  assert page.evaluate("document.documentElement.scrollWidth") == 390
  box = page.locator(".wipe").first.bounding_box()
  assert box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_where_nothing_counts_the_page_still_opens(opened, tmp_path):
  empty = np.zeros((6, 6), int)
  file = tmp_path / "empty.html"
  file.write_text(report.render(content(
      empty, best=[], worst=[], training=[], validation=[])), "utf-8")
  page = opened(file)
  assert page.title() == "run <1>: mIoU none on made val"
  assert page.locator("#images").count() == 0


# ---- Without one.


def test_confusions_in_words():
  found = report.worst_confusions(CONFUSION, NAMES)
  assert [(c["truth"], c["prediction"], c["pixels"]) for c in found] == [
      (NAMES[4], NAMES[1], 40), (NAMES[2], NAMES[0], 30),
      (NAMES[4], NAMES[0], 10), (NAMES[3], NAMES[0], 123),
      (NAMES[0], NAMES[1], 100)]
  assert [c["share"] for c in found] == pytest.approx(
      [0.8, 0.3, 0.2, 0.123, 0.1])
  names = [f"c{i}" for i in range(30)]
  worst = report.worst_confusions(np.ones((30, 30)), names)
  assert len(worst) == 10 and worst[0]["prediction"] == "c1"
  text = report.render(content())
  assert ("12.3\N{NO-BREAK SPACE}% of <b>{{ 7 * 7 }} %{x}</b>'s pixels are "
          "called <b>road</b>") in text


def test_published_figures_are_those_of_the_rows():
  row = published.ROWS["table3_resnet50"]
  text = report.render(content(rows={
      "table4_psp": (published.ROWS["table4_psp"], ["step 1 of 2"]),
      "table3_resnet50": (row, ["step 1 of 2"])}))
  for figure in ("41.68", "80.04", "41.89", "52.27", "80.39"):
    assert text.count(f">{figure}\N{NO-BREAK SPACE}%</td>") == 1
  assert "paper <span class=\"muted small\">table4_psp, table3_resnet50<" in (
      text)
  assert text.count("step 1 of 2") == 1
  assert "No published score" in report.render(
      content(config=default_config.get_config().to_dict()))


def test_what_differs_from_the_defaults_comes_first():
  text = report.render(content())
  head, tail = text.split("The whole config")
  assert "data.crop_size" in head and "<td>17</td>" in head
  assert "473" in head and "optimizer.momentum" not in head
  assert "optimizer.momentum" in tail and "2 of" in head


class _Split(types.SimpleNamespace):
  labelled = True


def test_nobody_collects_where_no_report_is_made(monkeypatch, capsys):
  config = default_config.get_config()
  assert isinstance(report.collector(config, _Split()), extremes.Extremes)
  assert report.collector(config, _Split(labelled=False)) is None
  config.eval.report = False
  assert report.collector(config, _Split()) is None
  assert not capsys.readouterr().out


def test_a_missing_package_is_told_in_a_line(monkeypatch, capsys):
  found = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest:
                      None if name == "plotly" else found(name, *rest))
  assert report.collector(default_config.get_config(), _Split()) is None
  line, = capsys.readouterr().out.splitlines()
  assert "plotly missing" in line and "pip install 'psp_jax[report]'" in line


def test_importing_it_needs_no_package_of_its_own(monkeypatch):
  real = builtins.__import__

  def refuse(name, *rest):
    if name.split(".")[0] in ("plotly", "jinja2", "markupsafe"):
      raise ImportError(name)
    return real(name, *rest)

  monkeypatch.setattr(builtins, "__import__", refuse)
  monkeypatch.delitem(sys.modules, "psp_jax.report")
  importlib.import_module("psp_jax.report")


def test_it_is_written_from_a_run_s_folder(tmp_path):
  config = default_config.get_config()
  config.published = "mIoU 1 %"
  run = content()
  (tmp_path / "eval.json").write_text(
      json.dumps(run.result | {"dataset": "ade20k"}))
  (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
  (tmp_path / "training.jsonl").write_text('{"step": 7, "loss": 0.5}\n')
  report.write(tmp_path, config, TAXONOMY, CONFUSION, examples("a", "b"))
  text = (tmp_path / "report.html").read_text("utf-8")
  assert f"<h1>{tmp_path.name}</h1>" in text
  assert "table4_psp" in text and "step 1,200 of 150,000" in text
  assert '"loss": [0.5]' in text and "mIoU 1 %" in text


def test_templates_are_installed(tmp_path):
  subprocess.run(
      [sys.executable, "setup.py", "-q", "build", "-b", tmp_path], cwd=ROOT,
      check=True, capture_output=True)
  installed = {p.name for p in tmp_path.glob("lib/psp_jax/templates/*")}
  assert installed == {"report.html", "report.js", "style.css", "web.html"}
