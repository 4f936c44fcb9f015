"""The demo's web application: the page, and what it asks of the network.

    GET  /            templates/web.html
    GET  /api/status  what the network is, and how many photographs wait
    POST /api/label   a form with the file `image` -> classes and mask, as JSON

Photographs are kept in memory, for as long as they wait, and nowhere else. One
at a time goes through the network, in a thread, so that the rest goes on.
"""

import asyncio
import base64
import concurrent.futures
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import time
import urllib.parse

import cv2
import numpy as np
import python_multipart  # noqa: F401  Starlette's forms need it.
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from psp_jax import visualize
from psp_jax.data import decode
from psp_jax.errors import DataError

_PAGE = pathlib.Path(__file__).parent / "templates" / "web.html"
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # What `decode` reads.
_FORM_BYTES = 16 << 10  # Of a form, besides its file.
_CLIENT_GONE = 499  # nginx's; nobody reads it.


@dataclasses.dataclass(frozen=True)
class Limits:
  """What the application takes on.

  Attributes:
    megabytes: of an uploaded file (10^6 bytes).
    megapixels: of a photograph.
    photographs: taken in at once, the one in the network included.
    stalled_seconds: that an upload may send nothing.
  """
  megabytes: float = 20
  megapixels: float = 50
  photographs: int = 8
  stalled_seconds: float = 30


def create_app(seg, run: str, limits: Limits, hosts=("*",), say=print):
  """The ASGI application.

  Args:
    seg: a `segmenter.Segmenter`.
    run: its name, for the page.
    limits: of what it takes on.
    hosts: names under which it may be asked; "*": any.
    say: is told a line a photograph.
  """
  service = _Service(seg, run, limits, say)
  html = _PAGE.read_text(encoding="utf-8")
  app = Starlette(
      routes=[
          Route("/", lambda request: HTMLResponse(html)),
          Route("/api/status", service.status),
          Route("/api/label", service.label, methods=["POST"])],
      middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts),
                             www_redirect=False)],
      exception_handlers={
          HTTPException: lambda request, error: JSONResponse(
              {"error": error.detail}, error.status_code, error.headers),
          DataError: lambda request, error: JSONResponse(
              {"error": str(error)}, 422),
          Exception: lambda request, error: JSONResponse(
              {"error": "the server failed; its terminal says why"}, 500)})
  return _Guarded(app, _security_headers(html))


class _Service:
  """The network and those who wait for it."""

  def __init__(self, seg, run, limits, say):
    self._seg, self._run, self._limits, self._say = seg, run, limits, say
    self._photographs = 0
    self._turn = asyncio.Lock()
    self._thread = concurrent.futures.ThreadPoolExecutor(1, "network")

  async def status(self, request):
    del request
    return JSONResponse({
        "run": self._run, "step": self._seg.step,
        "classes": [{"id": i, "name": name, "colour": _colour(self._seg, i)}
                    for i, name in enumerate(self._seg.class_names)],
        "photographs": self._photographs,
        "limits": dataclasses.asdict(self._limits)})

  async def label(self, request):
    if self._photographs >= self._limits.photographs:
      raise HTTPException(
          503, f"{self._photographs} photographs wait already; try again in a "
          "moment", {"Retry-After": "5"})
    self._photographs += 1
    try:
      data, name, with_picture = await self._read(request)
      async with self._turn:
        if await request.is_disconnected():
          return Response(status_code=_CLIENT_GONE)
        content = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._answer, data, name, with_picture)
      return Response(content, media_type="application/json")
    except asyncio.CancelledError:  # So uvicorn ends what waits.
      return JSONResponse({"error": "the server was stopped"}, 503)
    except ClientDisconnect:
      return Response(status_code=_CLIENT_GONE)
    finally:
      self._photographs -= 1

  async def _read(self, request) -> tuple[bytes, str, bool]:
    """(the file, its name, whether to send the photograph back)."""
    if not request.headers.get("content-type", "").lower().startswith(
        "multipart/form-data"):
      raise HTTPException(
          415, "the photograph goes into the field 'image' of a form: curl -F "
          "image=@photo.jpg")
    parser = MultiPartParser(request.headers, self._limited(request),
                             max_files=1, max_fields=4)
    # Beyond its default, a megabyte, uploads would be written to disk.
    parser.spool_max_size = self._most_bytes()
    try:
      form = await parser.parse()
    except MultiPartException as error:
      raise HTTPException(400, f"not a form: {error.message}") from error
    file = form.get("image")
    if not isinstance(file, UploadFile):
      raise HTTPException(
          422, "no file in the field 'image': curl -F image=@photo.jpg")
    data = await file.read()
    await form.close()
    return data, _safe_name(file.filename), form.get("picture") == "1"

  def _most_bytes(self) -> int:
    return int(self._limits.megabytes * 1e6) + _FORM_BYTES

  async def _limited(self, request):
    """The body's chunks; HTTPException as soon as there are too many."""
    most, chunks, received = self._most_bytes(), request.stream(), 0
    while True:
      if received > most:
        raise HTTPException(
            413, f"larger than {self._limits.megabytes:g} MB; make the picture "
            "smaller, or start the server with a larger --max_megabytes")
      try:
        async with asyncio.timeout(self._limits.stalled_seconds):
          chunk = await anext(chunks)
      except StopAsyncIteration:
        return
      except TimeoutError as error:
        raise HTTPException(408, "the upload stopped half way") from error
      received += len(chunk)
      yield chunk

  def _answer(self, data, name, with_picture) -> bytes:
    """JSON; in the network's thread. Raises DataError."""
    began = time.monotonic()
    _check(data, name, self._limits)
    pixels = decode.decode_image(data, name, upright=True)
    labels = self._seg(pixels)
    height, width = labels.shape
    seconds = time.monotonic() - began
    result = {
        "name": name, "width": width, "height": height,
        "seconds": round(seconds, 3),
        "classes": [
            {"id": i, "name": self._seg.class_names[i],
             "colour": _colour(self._seg, i), "share": round(share, 6)}
            for i, share in visualize.shares(
                labels, len(self._seg.class_names))],
        "mask": _base64(visualize.indexed_png(
            labels, self._seg.palette))}
    if with_picture:
      result["picture"] = _base64(cv2.imencode(
          ".jpg", np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes())
    self._say(f"{width}x{height} in {seconds:.2f} s")
    return json.dumps(result).encode()


class _Guarded:
  """`app` with headers on every answer, and deaf to other sites' pages."""

  def __init__(self, app, headers: dict[str, str]):
    self._app, self._headers = app, headers

  async def __call__(self, scope, receive, send):
    if scope["type"] != "http":
      return await self._app(scope, receive, send)

    async def send_with_headers(message):
      if message["type"] == "http.response.start":
        MutableHeaders(scope=message).update(self._headers)
      await send(message)

    headers = Headers(scope=scope)
    origin = headers.get("origin")
    app = self._app
    if origin is not None and (
        urllib.parse.urlsplit(origin).netloc != headers.get("host")):
      app = JSONResponse({"error": "asked by the page of another site"}, 403)
    await app(scope, receive, send_with_headers)


def _security_headers(html: str) -> dict[str, str]:
  """The page may run its own script and ask its own server, nothing else."""
  def hashes(tag):
    texts = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join("'sha256-" + _base64(hashlib.sha256(t.encode()).digest())
                    + "'" for t in texts)

  return {
      "Content-Security-Policy": "; ".join([
          "default-src 'none'", f"script-src {hashes('script')}",
          f"style-src {hashes('style')}", "img-src data: blob:",
          "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
          "frame-ancestors 'none'"]),
      "Cross-Origin-Opener-Policy": "same-origin",
      "Cross-Origin-Resource-Policy": "same-origin",
      "Referrer-Policy": "no-referrer",
      "X-Content-Type-Options": "nosniff",
      "Cache-Control": "no-store"}


def _check(data: bytes, name: str, limits: Limits) -> None:
  """Raises DataError by the header, before there is room for the pixels."""
  if not data:
    return  # `decode` says it better.
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
      width, height = file.size
  except Image.DecompressionBombError as error:
    raise DataError(f"{name}: more than {limits.megapixels:g} million pixels; "
                    "make it smaller") from error
  except Exception as error:  # Whatever the bytes make Pillow raise.
    raise DataError(f"{name}: not a JPEG, PNG, WebP or TIFF image that can be "
                    "read; save it as one of those") from error
  if width * height > limits.megapixels * 1e6:
    raise DataError(f"{name}: {width}x{height} is more than "
                    f"{limits.megapixels:g} million pixels; make it smaller")


def _safe_name(name: str | None) -> str:
  """Without folders and what does not print."""
  last = (name or "").replace("\\", "/").rpartition("/")[2]
  return "".join(c for c in last if c.isprintable())[-80:] or "photograph"


def _colour(seg, index: int) -> str:
  return "#" + bytes(seg.palette[index]).hex()


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode()
