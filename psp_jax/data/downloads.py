"""Archives from the public servers, checked before they are unpacked."""

import contextlib
import hashlib
import pathlib
import sys
import urllib.request
from typing import NamedTuple

import tensorflow_datasets as tfds

from psp_jax import progress
from psp_jax.errors import DataError


class Archive(NamedTuple):
  """A file to download.

  Attributes:
    url: where from.
    checksum: "md5:...", "sha1:..." or "sha256:..." as its users publish it; ""
      for an archive that its server makes anew each time.
  """
  url: str
  checksum: str = ""


def fetch(dl_manager, archives, by_hand: str) -> list[pathlib.Path]:
  """The folders of the unpacked archives; those downloaded before are kept.

  Args:
    dl_manager: TFDS's.
    archives: to download and unpack.
    by_hand: how to get them otherwise, for the message.

  Raises:
    DataError: a server cannot be reached, or sends something else.
  """
  folders = []
  for archive in archives:
    try:
      _check_reachable(archive.url)
      progress.say(f"downloading {archive.url}")
      with _progress_bar():
        path = pathlib.Path(dl_manager.download(archive.url))
        _verify(archive, path)
        folders.append(pathlib.Path(dl_manager.extract(path)))
    except DataError:
      raise
    except Exception as error:  # Whatever the network stack raises.
      raise DataError(f"{archive.url} could not be downloaded and unpacked "
                      f"({error}). {by_hand}") from error
  return folders


def _check_reachable(url: str) -> None:
  """Raises OSError at once where TFDS would try again for minutes."""
  request = urllib.request.Request(url, method="HEAD")
  urllib.request.urlopen(request, timeout=20).close()


def _verify(archive: Archive, path: pathlib.Path) -> None:
  """Raises DataError, and removes the file, where its checksum differs."""
  if not archive.checksum:
    return
  algorithm, expected = archive.checksum.split(":")
  with open(path, "rb") as file:
    found = hashlib.file_digest(file, algorithm).hexdigest()
  if found != expected:
    path.unlink()
    path.with_name(path.name + ".INFO").unlink(missing_ok=True)
    raise DataError(
        f"{archive.url}: its {algorithm} is {found}, must be {expected}: "
        "damaged on the way, or another file. It was removed; start again, or "
        "get it by hand and name its folder with --manual_dir")


@contextlib.contextmanager
def _progress_bar():
  """TFDS's own, on a terminal."""
  if sys.stderr.isatty():
    tfds.enable_progress_bar()
  try:
    yield
  finally:
    tfds.disable_progress_bar()
