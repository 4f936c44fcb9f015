"""The demo: its API, its limits, its page in a real browser, its command."""

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pictures
import pytest
import runner
from PIL import Image

import psp_jax
from psp_jax import (
  checkpoint,
  compilation_cache,
  runs,
  segmenter,
  serve,
  train_step,
)
from psp_jax.data import camvid
from psp_jax.errors import ConfigError
from psp_jax.models import create_model

ROOT = pathlib.Path(__file__).parent.parent
uvicorn = pytest.importorskip("uvicorn", reason="needs psp_jax[demo]")
web = pytest.importorskip("psp_jax.web", reason="needs psp_jax[demo]")


def _random_variables(model):
  """As `initialize`, but for its minute of compiling."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 65, 65, 3)), train=True))

  def draw(path, leaf):
    if leaf.ndim > 1:  # He's.
      gain = (2 / np.prod(leaf.shape[:-1])) ** 0.5
      return jnp.asarray(rng.normal(0, gain, leaf.shape), leaf.dtype)
    ones = any(word in str(path[-1]) for word in ("scale", "var"))
    return jnp.full(leaf.shape, float(ones), leaf.dtype)

  return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def _made():
  return {}


@pytest.fixture
def run(_made, tiny_config, tmp_path_factory):
  """The folder of a run, untrained: its answers have several classes."""
  if "run" not in _made:
    workdir = tmp_path_factory.mktemp("run")
    model = create_model(tiny_config)
    state = train_step.create_train_state(
        model, tiny_config, _random_variables(model))
    with contextlib.closing(checkpoint.Checkpoints(workdir)) as checkpoints:
      checkpoints.save(state)
    runs.save_config(tiny_config, workdir)
    runs.save_classes(runs.Classes(camvid.TAXONOMY, (48, 64)), workdir)
    _made["run"] = workdir
  return _made["run"]


@pytest.fixture
def seg(_made, run):
  if "seg" not in _made:
    _made["seg"] = psp_jax.load(run)
  return _made["seg"]


@contextlib.contextmanager
def _serving(seg, limits=None, hosts=serve._LOCAL_NAMES):
  """The port of a server in a thread."""
  app = web.create_app(seg, "tiny", limits or web.Limits(), hosts,
                       lambda line: None)
  listening = serve.listen("127.0.0.1", 0)
  server = uvicorn.Server(uvicorn.Config(
      app, http="h11", ws="none", lifespan="off", log_level="critical",
      timeout_graceful_shutdown=1))
  thread = threading.Thread(target=server.run,
                            kwargs={"sockets": [listening]})
  thread.start()
  try:
    yield listening.getsockname()[1]
  finally:
    server.should_exit = True
    thread.join()


@pytest.fixture
def port(seg):
  with _serving(seg) as port:
    yield port


def _form(data, name="photo.png", field="image", **more):
  """(body, headers) of a form with a file."""
  parts = [f'--xx\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n'
           f"{value}\r\n" for key, value in more.items()]
  parts.append(f'--xx\r\nContent-Disposition: form-data; name="{field}"; '
               f'filename="{name}"\r\n\r\n')
  return ("".join(parts).encode() + data + b"\r\n--xx--\r\n",
          {"Content-Type": "multipart/form-data; boundary=xx"})


def _ask(port, method, path, body=None, headers=None):
  """(status, headers, body)."""
  connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
  with contextlib.closing(connection):
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.headers, response.read()


def _label(port, data, name="photo.png", **more):
  """(status, JSON)."""
  status, _, body = _ask(port, "POST", "/api/label", *_form(data, name, **more))
  return status, json.loads(body)


def _status(port):
  return json.loads(_ask(port, "GET", "/api/status")[2])


def _photo(seed=0, height=240, width=320):
  """Coloured cells."""
  cells = np.random.default_rng(seed).integers(
      0, 256, (3, 4, 3)).astype(np.uint8)
  return cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)


def _ids(mask: bytes):
  return np.asarray(Image.open(io.BytesIO(mask)))


# ---- The API.


def test_the_answer_is_the_networks(port, seg):
  data = pictures.png(_photo())
  status, answer = _label(port, data, "a/b\\street.png")
  expected = seg(_photo())
  assert status == 200
  assert (answer["name"], answer["width"], answer["height"]) == (
      "street.png", 320, 240)
  mask = Image.open(io.BytesIO(base64.b64decode(answer["mask"])))
  assert mask.mode == "P"
  np.testing.assert_array_equal(np.asarray(mask), expected)
  np.testing.assert_array_equal(
      np.asarray(mask.convert("RGB")), seg.palette[expected])
  counts = np.bincount(expected.reshape(-1), minlength=11)
  assert len(answer["classes"]) == (counts > 0).sum() > 1
  shares = [c["share"] for c in answer["classes"]]
  assert shares == sorted(shares, reverse=True)
  for c in answer["classes"]:
    assert c["share"] == pytest.approx(counts[c["id"]] / counts.sum(), abs=1e-6)
    assert c["name"] == seg.class_names[c["id"]]
    assert c["colour"] == "#" + bytes(seg.palette[c["id"]]).hex()
  assert answer["seconds"] > 0 and "picture" not in answer


def test_a_turned_photograph_is_labelled_and_sent_back_upright(port, seg):
  data = pictures.with_exif(pictures.jpeg(_photo()))
  status, answer = _label(port, data, "turned.jpg", picture="1")
  upright = segmenter.read_image(Image.open(io.BytesIO(data)))
  assert status == 200
  assert (answer["width"], answer["height"]) == (240, 320)
  back = np.asarray(Image.open(io.BytesIO(base64.b64decode(
      answer["picture"]))))
  assert np.abs(back.astype(int) - upright).mean() < 4


def test_status_tells_what_the_network_is(port, seg):
  status = _status(port)
  assert (status["run"], status["step"]) == ("tiny", 0)
  assert [c["name"] for c in status["classes"]] == list(seg.class_names)
  assert status["photographs"] == 0


def _huge_png():
  """A whole PNG of a header that promises 60000x60000 pixels."""
  def chunk(kind, body):
    return (struct.pack(">I", len(body)) + kind + body
            + struct.pack(">I", zlib.crc32(kind + body)))
  return (b"\x89PNG\r\n\x1a\n"
          + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
          + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


@pytest.mark.parametrize("data, message", [
    (b"", "is empty"),
    (b"just text", "not a JPEG, PNG, WebP or TIFF"),
    (cv2.imencode(".bmp", _photo())[1].tobytes(), "not a JPEG"),
    (pictures.jpeg(_photo())[:2000], "cut short"),
    (pictures.png(_photo())[:500], "cut short"),
    (_huge_png(), "million pixels"),
    (pictures.png(np.zeros((1001, 1000), np.uint8)), "1000x1001 is more than")])
def test_what_is_no_photograph_is_told(seg, data, message):
  with _serving(seg, web.Limits(megapixels=1)) as port:
    status, answer = _label(port, data, "/home/me/bad.jpg")
    assert status == 422 and message in answer["error"]
    assert answer["error"].startswith("bad.jpg: ")
    assert not any(secret in answer["error"] for secret in (
        "/home", str(ROOT), "Traceback"))
    assert _label(port, pictures.png(_photo()))[0] == 200  # It goes on.


def test_what_is_no_form_is_told(port):
  for body, headers, expected, message in (
      (b"x", {}, 415, "curl -F image=@photo.jpg"),
      (b"x", {"Content-Type": "multipart/form-data"}, 400, "boundary"),
      (*_form(b"x", field="photo"), 422, "field 'image'"),
      (_form(b"x")[0].replace(b'; filename="photo.png"', b""), _form(b"x")[1],
       422, "field 'image'")):
    status, _, answer = _ask(port, "POST", "/api/label", body, headers)
    assert status == expected and message in json.loads(answer)["error"]
  assert _ask(port, "GET", "/api/label")[0] == 405
  assert _ask(port, "GET", "/web.py")[0] == 404


def test_uploads_end_at_the_limit(seg):
  with _serving(seg, web.Limits(megabytes=0.2)) as port:
    status, answer = _label(port, bytes(300_000))
    assert status == 413 and "larger than 0.2 MB" in answer["error"]
    sent = 0

    def endless():  # No length is declared.
      nonlocal sent
      yield _form(b"")[0][:-10]  # Without its end.
      while sent < 30e6:
        sent += 50_000
        yield bytes(50_000)

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
      status, _, answer = _ask(port, "POST", "/api/label", endless(),
                               _form(b"")[1])
      assert status == 413 and "larger" in json.loads(answer)["error"]
    assert _status(port)["photographs"] == 0


def test_an_upload_that_stalls_gives_its_place_up(seg):
  with _serving(seg, web.Limits(stalled_seconds=0.2)) as port:
    body, headers = _form(bytes(5000))
    head = (f"POST /api/label HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: {headers['Content-Type']}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n").encode()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
      client.sendall(head + body[:1000])
      assert b"408" in client.recv(1000).split(b"\r\n")[0]
    assert _status(port)["photographs"] == 0


def test_photographs_are_not_written_to_disk(port, monkeypatch):
  def rollover(self):
    raise AssertionError("an upload goes to disk")
  monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", rollover)
  noise = np.random.default_rng(0).integers(0, 256, (900, 1300, 3), np.uint8)
  data = pictures.png(noise)
  assert len(data) > 3e6
  assert _label(port, data)[0] == 200


class _Slow:
  """A network that answers when it is let."""
  step, class_names = 7, ("nothing",)
  palette = np.zeros((1, 3), np.uint8)

  def __init__(self):
    self.let = threading.Event()
    self.inside = self.most = self.calls = 0

  def __call__(self, image):
    self.calls += 1
    self.inside += 1
    self.most = max(self.most, self.inside)
    assert self.let.wait(30)
    self.inside -= 1
    return np.zeros(image.shape[:2], np.uint8)


def _until(condition):
  end = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_one_at_a_time_the_others_wait_and_too_many_are_sent_away():
  slow = _Slow()
  data = pictures.png(_photo())
  with _serving(slow, web.Limits(photographs=3)) as port, \
      concurrent.futures.ThreadPoolExecutor(4) as clients:
    asked = [clients.submit(_label, port, data) for _ in range(3)]
    # All the while others are answered.
    _until(lambda: _status(port)["photographs"] == 3)
    status, headers, answer = _ask(port, "POST", "/api/label", *_form(data))
    assert status == 503 and int(headers["Retry-After"]) > 0
    assert "3 photographs wait" in json.loads(answer)["error"]
    assert slow.calls == 1
    slow.let.set()
    assert [a.result()[0] for a in asked] == [200] * 3
    assert (slow.calls, slow.most) == (3, 1)
    assert _status(port)["photographs"] == 0


def test_who_has_left_the_queue_is_not_served():
  slow = _Slow()
  body, headers = _form(pictures.png(_photo()))
  with _serving(slow) as port, \
      concurrent.futures.ThreadPoolExecutor(1) as clients:
    first = clients.submit(_label, port, pictures.png(_photo()))
    _until(lambda: slow.calls == 1)
    gone = http.client.HTTPConnection("127.0.0.1", port)
    gone.request("POST", "/api/label", body, headers)
    _until(lambda: _status(port)["photographs"] == 2)
    gone.close()
    time.sleep(0.1)  # For the server to notice.
    slow.let.set()
    assert first.result()[0] == 200
    _until(lambda: _status(port)["photographs"] == 0)
    assert slow.calls == 1


def test_a_bug_is_not_shown_to_the_client():
  class Broken(_Slow):
    def __call__(self, image):
      raise RuntimeError("secret /path")
  with _serving(Broken()) as port:
    status, answer = _label(port, pictures.png(_photo()))
    assert status == 500 and "secret" not in answer["error"]
    assert _status(port)["photographs"] == 0


def test_other_sites_get_nothing(port):
  for host, expected in (("evil.example", 400), ("evil.example:8000", 400),
                         (f"localhost:{port}", 200), ("[::1]:8000", 200)):
    assert _ask(port, "GET", "/", headers={"Host": host})[0] == expected
  body, headers = _form(pictures.png(_photo()))
  for origin, expected in (("http://evil.example", 403), ("null", 403),
                           (f"http://127.0.0.1:{port}", 200)):
    status, got, _ = _ask(port, "POST", "/api/label", body,
                          headers | {"Origin": origin})
    assert status == expected
    assert not any(name.lower().startswith("access-control") for name in got)


def test_every_answer_has_the_security_headers(port):
  for path in ("/", "/api/status", "/nothing"):
    headers = _ask(port, "GET", path)[1]
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


# ---- The page.


@pytest.fixture(scope="module")
def browser():
  playwright = pytest.importorskip(
      "playwright.sync_api", reason="the page's tests need playwright")
  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  if not chromium:
    pytest.skip("the page's tests need Chromium on the PATH")
  with playwright.sync_playwright() as p:
    browser = p.chromium.launch(executable_path=chromium, args=[
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
        "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"])
    yield browser
    browser.close()


@contextlib.contextmanager
def _opened(browser, port, refused=False, **options):
  """The page; afterwards, that it asked nobody else and complained of nothing.

  With `refused` an answer of 4xx, which Chromium notes as an error, may be.
  """
  context = browser.new_context(reduced_motion="reduce", **options)
  page = context.new_page()
  said, asked = [], []
  page.on("console", lambda message: said.append(message.text))
  page.on("pageerror", lambda error: said.append(str(error)))
  page.on("request", lambda request: asked.append(request.url))
  try:
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#known li")
    yield page
    own = (f"http://127.0.0.1:{port}/", "data:", "blob:")
    assert not [url for url in asked if not url.startswith(own)]
    assert not [text for text in said if not (
        refused and "the server responded with a status of 4" in text)]
  finally:
    context.close()


def _file(name, data):
  return {"name": name, "mimeType": "image/png", "buffer": data}


def _choose(page, name, data, button="Choose a photo"):
  with page.expect_file_chooser() as chooser:
    page.get_by_role("button", name=button).click()
  chooser.value.set_files(_file(name, data))
  page.wait_for_function(
      "name => document.title.startsWith(name) && !running", arg=name)
  _painted(page)


def _drop(page, name, data):
  page.evaluate("""([name, data]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes(data)], name));
    document.body.dispatchEvent(new DragEvent("drop", {
      dataTransfer: transfer, bubbles: true, cancelable: true}));
  }""", [name, base64.b64encode(data).decode()])


def _painted(page):
  page.evaluate("""() => new Promise(done => requestAnimationFrame(
    () => requestAnimationFrame(done)))""")


def _canvas(page, name):
  """(H, W, 4) of a canvas's own pixels."""
  url = page.evaluate(f"() => $('{name}').toDataURL()")
  return np.asarray(Image.open(io.BytesIO(base64.b64decode(
      url.partition(",")[2]))).convert("RGBA"))


def _seen(page):
  """(240, 320, 3): the photograph and its overlay as the screen has them."""
  page.mouse.move(1, 1)
  shot = Image.open(io.BytesIO(page.locator("#view").screenshot()))
  return cv2.resize(np.asarray(shot.convert("RGB")), (320, 240),
                    interpolation=cv2.INTER_AREA).astype(int)


def test_the_page_shows_what_the_api_says(browser, port, seg):
  photo = _photo()
  data = pictures.png(photo)
  expected = seg(photo)
  colours = seg.palette[expected].astype(int)
  _, answer = _label(port, data)
  with _opened(browser, port) as page:
    assert "tiny, step 0" in page.inner_text("#run")
    assert page.locator("#known li").all_inner_texts() == list(seg.class_names)
    _choose(page, "street.png", data)

    # The overlay, and the slider.
    overlay = _canvas(page, "overlay")
    np.testing.assert_array_equal(overlay[..., :3], colours)
    assert (overlay[..., 3] == 255).all()
    np.testing.assert_array_equal(_canvas(page, "photo")[..., :3], photo)
    for percent in (0, 50, 100):
      page.locator("#opacity").fill(str(percent))
      mixed = (photo.astype(int) * (100 - percent) + colours * percent) / 100
      # Edges between cells are smoothed on the screen.
      assert np.median(np.abs(_seen(page) - mixed)) < 1.5
      assert page.inner_text("#percent") == f"{percent} %"

    # The legend.
    rows = page.locator("#legend button")
    assert [text.split("\n") for text in rows.all_inner_texts()] == [
        [c["name"], f"{100 * c['share']:.1f} %" if c["share"] >= 0.001
         else "< 0.1 %"] for c in answer["classes"]]
    assert page.locator("#legend .swatch").evaluate_all(
        "all => all.map(s => getComputedStyle(s).backgroundColor)") == [
            "rgb({}, {}, {})".format(*seg.palette[c["id"]])
            for c in answer["classes"]]
    assert f"{len(answer['classes'])} of 11 found" in page.inner_text("#panel")

    # What is saved.
    with page.expect_download() as download:
      page.get_by_role("link", name="Save mask").click()
    assert download.value.suggested_filename == "street_mask.png"
    mask = Image.open(download.value.path())
    np.testing.assert_array_equal(np.asarray(mask), expected)
    np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), colours)
    page.locator("#opacity").fill("40")
    with page.expect_download() as download:
      page.get_by_role("button", name="Save overlay").click()
    assert download.value.suggested_filename == "street_overlay.jpg"
    saved = np.asarray(Image.open(download.value.path())).astype(int)
    assert np.median(np.abs(saved - .6 * photo - .4 * colours)) < 3


def _alone(page, expected, seg, index):
  """Whether class `index` has its colour and the others are dimmed."""
  _painted(page)
  overlay = _canvas(page, "overlay")
  mine = expected == index
  return ((overlay[mine] == [*seg.palette[index], 255]).all()
          and (overlay[~mine][:, :3] == 0).all()
          and (overlay[~mine][:, 3] < 200).all())


def test_a_class_is_seen_alone(browser, port, seg):
  photo = _photo()
  expected = seg(photo)
  first, second = [c["id"] for c in _label(
      port, pictures.png(photo))[1]["classes"]][:2]
  with _opened(browser, port) as page:
    _choose(page, "street.png", pictures.png(photo))
    rows = page.locator("#legend button")
    whole = _canvas(page, "overlay")

    rows.nth(1).hover()
    assert _alone(page, expected, seg, second)
    page.mouse.move(1, 1)
    _painted(page)
    np.testing.assert_array_equal(_canvas(page, "overlay"), whole)

    rows.nth(0).click()
    page.mouse.move(1, 1)
    assert _alone(page, expected, seg, first)
    assert rows.nth(0).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    _painted(page)
    np.testing.assert_array_equal(_canvas(page, "overlay"), whole)
    assert rows.nth(0).get_attribute("aria-pressed") == "false"

    # By the keyboard: from the slider one tab to the legend.
    page.locator("#opacity").focus()
    page.keyboard.press("Tab")
    assert _alone(page, expected, seg, first)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert _alone(page, expected, seg, second)
    page.keyboard.press("Escape")

    # A place in the photograph says its class, and chooses it.
    y, x = np.argwhere(expected == second)[0]
    box = page.locator("#overlay").bounding_box()
    at = (box["x"] + (x + .5) / 320 * box["width"],
          box["y"] + (y + .5) / 240 * box["height"])
    page.mouse.move(*at)
    assert page.inner_text("#tip") == seg.class_names[second]
    page.mouse.click(*at)
    assert _alone(page, expected, seg, second)


def test_dropped_pasted_and_refused(browser, port, seg):
  one, two = _photo(1), _photo(2)
  with _opened(browser, port, refused=True) as page:
    _drop(page, "notes.txt", b"just text")
    page.wait_for_selector("#error:not([hidden])")
    assert "not a JPEG, PNG, WebP or TIFF" in page.inner_text("#error")
    assert page.locator("#drop").is_visible()

    _drop(page, "one.png", pictures.png(one))
    page.wait_for_function("() => document.title.startsWith('one.png')")
    _painted(page)
    np.testing.assert_array_equal(
        _canvas(page, "overlay")[..., :3], seg.palette[seg(one)])
    assert page.locator("#error").is_hidden()

    # What is refused leaves what is there.
    _drop(page, "half.png", pictures.png(two)[:400])
    page.wait_for_selector("#error:not([hidden])")
    assert "half.png" in page.inner_text("#error")
    _painted(page)
    np.testing.assert_array_equal(
        _canvas(page, "overlay")[..., :3], seg.palette[seg(one)])
    np.testing.assert_array_equal(_canvas(page, "photo")[..., :3], one)

    # A TIFF, which Chromium does not show.
    _drop(page, "scan.tif", pictures.pil(two, "TIFF"))
    page.wait_for_function("() => document.title.startsWith('scan.tif')")
    assert np.abs(_canvas(page, "photo")[..., :3].astype(int) - two).mean() < 4

    # Of two the newer counts, and the older is given up.
    posted = []
    page.on("request", lambda request: posted.append(request.method))
    page.evaluate("""([one, two]) => {
      const transfer = data => {
        const result = new DataTransfer();
        result.items.add(new File([bytes(data)], "image.png"));
        return result;
      };
      document.dispatchEvent(new DragEvent("drop", {
        dataTransfer: transfer(one), bubbles: true, cancelable: true}));
      document.dispatchEvent(new ClipboardEvent("paste", {
        clipboardData: transfer(two), bubbles: true}));
    }""", [base64.b64encode(pictures.png(p)).decode() for p in (one, two)])
    page.wait_for_function("() => document.title.startsWith('image.png')")
    _painted(page)
    np.testing.assert_array_equal(
        _canvas(page, "overlay")[..., :3], seg.palette[seg(two)])
    assert posted.count("POST") == 1


def test_a_turned_photograph_is_shown_upright(browser, port):
  with _opened(browser, port) as page:
    _drop(page, "t.jpg", pictures.with_exif(pictures.jpeg(_photo())))
    page.wait_for_function("() => document.title.startsWith('t.jpg')")
    assert _canvas(page, "photo").shape == (320, 240, 4)
    assert _canvas(page, "overlay").shape == (320, 240, 4)


def test_a_photograph_larger_than_a_screen_is_shown_smaller(browser, port, seg):
  expected = seg(_photo())
  with _opened(browser, port) as page:
    page.evaluate("() => { mostShown = 20000; }")
    _drop(page, "big.png", pictures.png(_photo()))
    page.wait_for_function("() => document.title.startsWith('big.png')")
    _painted(page)
    overlay = _canvas(page, "overlay")
    height, width = overlay.shape[:2]
    assert 18000 < height * width <= 20000
    rows = ((np.arange(height) + .5) * 240 / height).astype(int)
    columns = ((np.arange(width) + .5) * 320 / width).astype(int)
    np.testing.assert_array_equal(
        overlay[..., :3], seg.palette[expected[np.ix_(rows, columns)]])
    page.locator("#opacity").fill("100")
    for most, size in ((16e6, (320, 240)), (20000, (width, height))):
      page.evaluate("most => { mostSaved = most; }", most)
      with page.expect_download() as download:
        page.get_by_role("button", name="Save overlay").click()
      saved = Image.open(download.value.path())
      assert saved.size == size
    wanted = seg.palette[expected[np.ix_(rows, columns)]]
    assert np.median(np.abs(np.asarray(saved).astype(int) - wanted)) < 3


def test_an_upload_over_the_limit_is_told_on_the_page(browser, seg):
  with _serving(seg, web.Limits(megabytes=0.5)) as port, \
      _opened(browser, port, refused=True) as page:
    _drop(page, "large.png", bytes(2_000_000))
    page.wait_for_selector("#error:not([hidden])")
    assert "larger than 0.5 MB" in page.inner_text("#error")


def test_two_pages_wait_for_each_other(browser):
  slow = _Slow()
  with _serving(slow) as port, _opened(browser, port) as first, \
      _opened(browser, port) as second:
    assert first.locator("#status").get_attribute("aria-live") == "polite"
    for page in (first, second):
      _drop(page, "photo.png", pictures.png(_photo()))
    first.wait_for_function(
        "() => $('status').textContent.includes('2 in the queue')")
    slow.let.set()
    for page in (first, second):
      page.wait_for_function("() => document.title.startsWith('photo.png')")
      assert "nothing" in page.inner_text("#legend")


@pytest.mark.parametrize("width, scheme", [
    (320, "light"), (390, "dark"), (1280, "light")])
def test_nothing_overflows(browser, port, width, scheme):
  data = pictures.png(_photo())
  name = "a_rather_long_name_of_a_photograph_as_cameras_give_them_0001.png"
  with _opened(browser, port, color_scheme=scheme,
               viewport={"width": width, "height": 800}) as page:
    def fits():
      return page.evaluate(
          "() => document.documentElement.scrollWidth <= innerWidth")
    assert fits()
    page.evaluate("text => showError(text)", "x" * 200)
    assert fits()
    _choose(page, name, data)
    assert fits()
    for button in page.locator("button:visible, .button").all():
      assert button.bounding_box()["height"] >= 44
    background = page.evaluate(
        "() => getComputedStyle(document.body).backgroundColor")
    shade = sum(map(int, background[4:-1].split(",")))
    assert shade > 600 if scheme == "light" else shade < 200


# ---- The command.


@pytest.fixture
def command(monkeypatch, capsys):
  """A function (flags) -> (exit code, stdout, stderr)."""
  monkeypatch.setattr(compilation_cache, "enable", lambda where: None)

  def call(*flags):
    monkeypatch.setattr(sys, "argv", ["serve", *flags])
    code = 0
    try:
      serve.run()
    except SystemExit as end:
      code = end.code
    return (code, *capsys.readouterr())

  return call


def test_a_port_that_is_taken_is_told(command, run):
  with serve.listen("127.0.0.1", 0) as taken:
    port = taken.getsockname()[1]
    code, out, err = command(f"--workdir={run}", f"--port={port}")
  assert code == 2 and not out and err.count("\n") == 1
  assert err.startswith(f"error: --port={port}: another program")
  assert f"--port={port + 1}" in err


def test_a_run_that_is_missing_is_told(command, tmp_path):
  code, out, err = command(f"--workdir={tmp_path}/none", "--port=0")
  assert code == 2 and not out and err.count("\n") == 1
  assert err.startswith("error: ") and f"{tmp_path}/none" in err


@pytest.mark.parametrize("flag", [
    "--port=65536", "--port=x", "--max_megabytes=0", "--max_megapixels=nan"])
def test_flags_that_cannot_be_are_told(command, run, flag):
  code, _, err = command(f"--workdir={run}", flag)
  assert code == 2 and flag.split("=")[0] in err and flag.split("=")[1] in err


def test_other_mistakes_are_told(monkeypatch):
  for host in ("no.such.host.invalid", "203.0.113.1"):
    with pytest.raises(ConfigError, match=f"--host={host}"):
      serve.listen(host, 0)
  monkeypatch.setitem(sys.modules, "uvicorn", None)
  with pytest.raises(ConfigError, match=r"needs uvicorn: pip.*\[demo\]"):
    serve._libraries()


@pytest.mark.parametrize("host, private", [
    ("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
    ("192.168.1.2", False), ("example.org", False)])
def test_who_can_reach_it_is_known(host, private):
  assert serve.is_loopback(host) == private


def test_more_than_this_computer_gets_a_warning(command, monkeypatch, seg,
                                                run):
  asked = []

  def serve_nobody(server, sockets):
    asked.append(server.config.app)
    sockets[0].close()

  monkeypatch.setattr(uvicorn.Server, "run", serve_nobody)
  monkeypatch.setattr(segmenter, "load", lambda workdir, step: seg)
  code, out, err = command(f"--workdir={run}", "--host=0.0.0.0", "--port=0")
  assert code == 0 and len(asked) == 1
  assert err.startswith("warning: --host=0.0.0.0") and err.count("\n") == 1
  assert "http://127.0.0.1:" in out
  assert not command(f"--workdir={run}", "--port=0")[2]


def test_ctrl_c_ends_it_also_in_the_middle(run):
  process = subprocess.Popen(
      [sys.executable, "-c", runner.HEARING, "-m", "psp_jax.serve",
       f"--workdir={run}", "--port=0"], cwd=ROOT, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
  try:
    process.told = lambda: ""
    ready = runner.lines_until(process, "ready")[-1]
    port = int(ready.split("http://127.0.0.1:")[1].split()[0])
    status, answer = _label(port, pictures.png(_photo()))
    assert status == 200 and answer["width"] == 320
    with concurrent.futures.ThreadPoolExecutor(3) as clients:
      large = pictures.jpeg(_photo(height=2000, width=3000))
      asked = [clients.submit(_label, port, large) for _ in range(3)]
      _until(lambda: _status(port)["photographs"] == 3)
      began = time.monotonic()
      process.send_signal(signal.SIGINT)
      out, err = process.communicate(timeout=20)
      last = asked[2].result()
    assert time.monotonic() - began < 10
    assert last == (503, {"error": "the server was stopped"})
    assert process.returncode == 0
    assert out.splitlines()[-1] == "stopped" and "320x240 in" in out
    assert "Traceback" not in err and "rror" not in err
  finally:
    process.kill()
    process.wait()


def test_the_page_is_in_the_package(monkeypatch):
  from setuptools import Distribution  # noqa: F401  Before distutils.
  from distutils.core import run_setup  # isort: skip
  monkeypatch.chdir(ROOT)
  build = run_setup("setup.py", stop_after="init").get_command_obj("build_py")
  build.ensure_finalized()
  packaged = {name for package, _, _, names in build.data_files
              if package == "psp_jax" for name in names}
  assert "templates/web.html" in packaged
