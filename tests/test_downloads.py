"""Archives from a server: what is right is unpacked, all else refused."""

import functools
import hashlib
import http.server
import io
import pathlib
import tarfile
import threading
import zipfile

import pytest
import tensorflow_datasets as tfds
from test_datasets import make_ade20k
from test_voc2012 import write_sbd, write_voc

from psp_jax import default_config
from psp_jax.data import ade20k, coco_voc, datasets, downloads, voc2012
from psp_jax.errors import DataError


@pytest.fixture
def server(tmp_path):
  """(folder that it serves, its address)."""
  folder = tmp_path / "server"
  folder.mkdir()

  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
      pass

  httpd = http.server.ThreadingHTTPServer(
      ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
  threading.Thread(target=httpd.serve_forever, daemon=True).start()
  yield folder, f"http://127.0.0.1:{httpd.server_port}"
  httpd.shutdown()
  httpd.server_close()


def zipped(path, folder):
  with zipfile.ZipFile(path, "w") as archive:
    for file in folder.rglob("*"):
      archive.write(file, file.relative_to(folder.parent))


def archive_of(path, url, algorithm):
  digest = hashlib.new(algorithm, path.read_bytes()).hexdigest()
  return downloads.Archive(f"{url}/{path.name}", f"{algorithm}:{digest}")


def config(tmp_path, name):
  c = default_config.get_config()
  c.data.name = name
  c.data.data_dir = str(tmp_path / "prepared")
  c.data.allow_partial = True
  return c


def test_ade20k_is_downloaded_checked_and_prepared(
    tmp_path, server, monkeypatch, capsys):
  folder, url = server
  made = make_ade20k(tmp_path / "ADEChallengeData2016")
  zipped(folder / "ADE.zip", tmp_path / "ADEChallengeData2016")
  monkeypatch.setattr(ade20k, "ARCHIVE",
                      archive_of(folder / "ADE.zip", url, "sha1"))
  records = datasets.open_split(config(tmp_path, "ade20k"), "train")
  assert {records[i]["name"] for i in range(2)} <= set(made)
  assert f"downloading {url}/ADE.zip" in capsys.readouterr().err


def test_voc_and_sbd_are_downloaded_and_found_in_two_folders(
    tmp_path, server, monkeypatch):
  folder, url = server
  write_voc(tmp_path / "source")
  write_sbd(tmp_path / "source")
  for name, top, mode in (("voc.tar", "VOCdevkit", "w"),
                          ("benchmark.tgz", "benchmark_RELEASE", "w:gz")):
    with tarfile.open(folder / name, mode) as archive:
      archive.add(tmp_path / "source" / top, top)
  monkeypatch.setattr(voc2012, "ARCHIVES", [
      archive_of(folder / name, url, "md5")
      for name in ("voc.tar", "benchmark.tgz")])
  records = datasets.open_split(config(tmp_path, "voc2012"), "train_aug")
  assert len(records) == 6


def test_an_archive_that_differs_is_removed_and_named(
    tmp_path, server, monkeypatch):
  folder, url = server
  make_ade20k(tmp_path / "ADEChallengeData2016")
  zipped(folder / "ADE.zip", tmp_path / "ADEChallengeData2016")
  right = archive_of(folder / "ADE.zip", url, "sha1")
  content = (folder / "ADE.zip").read_bytes()
  (folder / "ADE.zip").write_bytes(content + b"x")
  monkeypatch.setattr(ade20k, "ARCHIVE", right)
  c = config(tmp_path, "ade20k")
  with pytest.raises(DataError) as error:
    datasets.prepare(c)
  assert f"{url}/ADE.zip: its sha1 is" in str(error.value)
  assert right.checksum.removeprefix("sha1:") in str(error.value)
  # Mended on the server, the damaged copy is not used again.
  (folder / "ADE.zip").write_bytes(content)
  assert len(datasets.open_split(c, "val")) == 2


def test_what_is_not_there_says_how_to_get_it_by_hand(
    tmp_path, server, monkeypatch):
  _, url = server
  monkeypatch.setattr(ade20k, "ARCHIVE",
                      downloads.Archive(f"{url}/gone.zip", "sha1:0"))
  with pytest.raises(DataError, match="gone.zip could not.*404.*manual_dir"):
    datasets.prepare(config(tmp_path, "ade20k"))


@pytest.mark.parametrize("member", ["../../evil.txt", "/tmp/psp_evil.txt"])
def test_an_archive_cannot_write_outside_its_folder(
    tmp_path, server, monkeypatch, member):
  folder, url = server
  with tarfile.open(folder / "evil.tar", "w") as archive:
    info = tarfile.TarInfo(member)
    info.size = 4
    archive.addfile(info, io.BytesIO(b"evil"))
  monkeypatch.setattr(ade20k, "ARCHIVE",
                      archive_of(folder / "evil.tar", url, "sha1"))
  with pytest.raises(DataError):
    datasets.prepare(config(tmp_path, "ade20k"))
  assert not list(tmp_path.rglob("evil.txt"))


def test_archives_are_those_that_others_checked():
  """Digests as Gluon-CV, torchvision and TFDS publish them."""
  assert ade20k.ARCHIVE.checksum == (
      "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7")
  assert [a.checksum for a in voc2012.ARCHIVES] == [
      "md5:6cd6e144f989b92b3379bac3b3de84fd",
      "md5:82b4d87ceb2ed10f6038a1cba92111cb"]
  registered = {}
  top = pathlib.Path(tfds.__file__).parent
  for path in (*top.rglob("checksums.tsv"), *top.glob("url_checksums/*.txt")):
    for line in path.read_text().splitlines():
      fields = line.split()
      if len(fields) > 2:
        registered[fields[0]] = fields[2]
  for archive in coco_voc.ARCHIVES:
    assert archive.checksum == f"sha256:{registered[archive.url]}"
