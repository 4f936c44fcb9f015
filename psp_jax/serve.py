"""python -m psp_jax.serve --workdir=RUN

A web page that labels photographs, for people on this computer: it is reached
at 127.0.0.1 unless --host says otherwise. Photographs are not stored. Ctrl-C
ends it. Exit code 2: it did not start.

From a shell: curl -F image=@photo.jpg http://127.0.0.1:8000/api/label
"""

import argparse
import errno
import ipaddress
import logging
import os
import pathlib
import socket
import sys
import threading
import time
import webbrowser

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
from absl import logging as absl_logging  # noqa: E402

from psp_jax import compilation_cache, kept_programs  # noqa: E402
from psp_jax.errors import ConfigError, UserError  # noqa: E402

_LIBRARIES = ("starlette", "uvicorn", "python_multipart")
_LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
_SOME_SIZE = (480, 640)  # Where nobody knows the usual one.


def is_loopback(host: str) -> bool:
  """Whether only this computer reaches `host`."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def _local_name(host: str) -> str:
  """By which a browser on this computer asks for what listens at `host`."""
  host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
  return f"[{host}]" if ":" in host else host


def listen(host: str, port: int) -> socket.socket:
  """Raises ConfigError where that cannot be."""
  try:
    family, _, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address, family=family)
  except socket.gaierror as error:
    raise ConfigError(f"--host={host}: no such address ({error.strerror}); "
                      "name one of this computer, or leave it out") from error
  except OSError as error:
    if error.errno == errno.EADDRINUSE:
      raise ConfigError(
          f"--port={port}: another program listens there on {host}; end it, or "
          f"name another port: --port={port % 65535 + 1}, or 0 for any that is "
          "free") from error
    if error.errno == errno.EACCES:
      raise ConfigError(f"--port={port}: not for this user; name one above "
                        "1023") from error
    raise ConfigError(f"--host={host}: cannot be listened at "
                      f"({error.strerror}); name an address of this computer"
                      ) from error


def warm_up(seg) -> float:
  """Compiles for photographs of the usual size; returns the seconds."""
  began = time.monotonic()
  seg(np.zeros((*(seg.usual_size or _SOME_SIZE), 3), np.uint8))
  return time.monotonic() - began


def _positive(text: str) -> float:
  value = float(text)
  if not 0 < value < float("inf"):
    raise ValueError
  return value


def _port(text: str) -> int:
  value = int(text)
  if not 0 <= value < 65536:
    raise ValueError
  return value


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
      prog="python -m psp_jax.serve", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", required=True, metavar="RUN",
                      help="folder of a run, trained or converted")
  parser.add_argument("--step", type=int, metavar="N",
                      help="of the checkpoint; default: the last")
  parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS",
                      help="of this computer; 0.0.0.0: all of them (127.0.0.1)")
  parser.add_argument("--port", type=_port, default=8000, metavar="N",
                      help="0: any that is free (8000)")
  parser.add_argument("--max_megabytes", type=_positive, default=20.0,
                      metavar="X", help="of an upload (20)")
  parser.add_argument("--max_megapixels", type=_positive, default=50.0,
                      metavar="X", help="of a photograph (50)")
  parser.add_argument("--open", action="store_true",
                      help="open the page in this computer's browser")
  parser.add_argument("--compilation_cache", default="auto", metavar="DIR",
                      help="folder of compiled programs; off: none")
  return parser.parse_args()


def _libraries():
  """(uvicorn, psp_jax.web); raises ConfigError where they are missing."""
  try:
    import uvicorn

    from psp_jax import web
  except ModuleNotFoundError as error:
    if error.name not in _LIBRARIES:
      raise
    raise ConfigError(f"this needs {error.name}: pip install -e '.[demo]'"
                      ) from error
  return uvicorn, web


def _say(line: str) -> None:
  print(line, flush=True)


def main() -> None:
  """Returns when it is told to end."""
  args = _arguments()
  uvicorn, web = _libraries()
  # Now, so that a port that is taken is told before the network is loaded;
  # who comes early waits.
  listening = listen(args.host, args.port)
  from psp_jax import segmenter  # Late: mistakes above answer at once.

  kept_programs.enable(compilation_cache.enable(args.compilation_cache))
  seg = segmenter.load(args.workdir, args.step)
  _say(f"step {seg.step:,} of {args.workdir}, {len(seg.class_names)} classes; "
       "compiling")
  seconds = warm_up(seg)
  private = is_loopback(args.host)
  app = web.create_app(
      seg, pathlib.Path(args.workdir).resolve().name,
      web.Limits(args.max_megabytes, args.max_megapixels),
      # A page elsewhere whose name is made to point here sends that name.
      (*_LOCAL_NAMES, args.host) if private else ("*",), _say)
  # What is under way when the server ends is no error.
  logging.getLogger("uvicorn.error").addFilter(
      lambda record: "graceful shutdown" not in str(record.msg))
  server = uvicorn.Server(uvicorn.Config(
      app, http="h11", ws="none", lifespan="off", log_level="error",
      access_log=False, server_header=False, proxy_headers=False,
      timeout_graceful_shutdown=1))
  if not private:
    print(f"warning: --host={args.host}: whoever reaches this computer can "
          "use it, and nothing is encrypted", file=sys.stderr, flush=True)
  port = listening.getsockname()[1]
  url = f"http://{_local_name(args.host)}:{port}"
  _say(f"ready after {seconds:.1f} s: {url}  (Ctrl-C ends it)")
  if args.open:
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
  server.run(sockets=[listening])


def run() -> None:
  """`main`; a mistake is one line and exit code 2, Ctrl-C the end."""
  try:
    main()
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    _say("stopped")
    # A photograph in the network cannot be called back, nor need it be awaited.
    os._exit(0)


if __name__ == "__main__":
  absl_logging.set_verbosity(absl_logging.WARNING)
  run()
