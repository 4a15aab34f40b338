from __future__ import annotations

import datetime as dt
import gzip
import http.server
import ipaddress
import shutil
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tests.datasets.conftest import ARCHIVE, FILES, PINS, npm_road, sha256, tgz

from garrison.datasets import roads
from garrison.datasets.archives import RoadError, WrongBytesError
from garrison.datasets.roads import (
    DebianPackage,
    Errand,
    Home,
    Installed,
    InstalledModule,
    Members,
    PythonPackage,
    SourceFile,
    run,
    under,
)
from garrison.datasets.store import silent


@pytest.fixture
def errand(tmp_path: Path) -> Errand:
    (tmp_path / "work").mkdir()
    return Errand(PINS, tmp_path / "packages", tmp_path / "work", silent)


def test_a_folder_of_compressed_files(errand: Errand, tmp_path: Path) -> None:
    folder = tmp_path / "installed"
    folder.mkdir()
    road = Installed(folder, under(".", *FILES, suffix=".gz"))
    for name, data in FILES.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(data))
    assert road.obtain(errand) == FILES
    (folder / "labels.gz").unlink()
    with pytest.raises(WrongBytesError, match=r"no file ./labels.gz"):
        road.obtain(errand)


def test_an_installed_package_is_found_and_not_imported(
    errand: Errand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "made_for_this_test"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('was imported')")
    for name, data in FILES.items():
        (package / "data" / name).write_bytes(data)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert InstalledModule("made_for_this_test", under("data", *FILES)).obtain(errand) == FILES
    assert "made_for_this_test" not in sys.modules
    with pytest.raises(RoadError, match="not installed"):
        InstalledModule("never_made_for_any_test", under("data", *FILES)).obtain(errand)


def test_members_are_joined_and_converted_and_unknown_files_left_alone() -> None:
    members = Members({"both": ("a", "b.gz"), "loud": ("a",)}, {"loud": bytes.upper})
    read = {"a": b"x", "b.gz": gzip.compress(b"yz")}
    files = tuple(SourceFile(name, "", 2) for name in ("both", "loud", "elsewhere"))
    assert members.wanted(files) == {"a", "b.gz"}
    assert members.assemble(files, read) == {"both": b"xyz", "loud": b"X"}


def test_an_npm_package_that_brings_other_bytes_is_refused(errand: Errand, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = ARCHIVE

    def client(arguments: list[str], folder: Path) -> bytes:
        assert arguments[:2] == ["npm", "pack"]
        (folder / "made-1.0.0.tgz").write_bytes(brought)
        return b""

    monkeypatch.setattr(roads, "run", client)
    assert npm_road().obtain(errand) == FILES
    (errand.packages / "made-1.0.0.tgz").unlink()
    brought = tgz({"package/data/images": b"evil"})
    with pytest.raises(WrongBytesError, match=f"has SHA-256 {sha256(brought)}, expected {sha256(ARCHIVE)}"):
        npm_road().obtain(errand)
    assert not (errand.packages / "made-1.0.0.tgz").exists()


def test_pip_is_asked_for_exactly_the_pinned_package(errand: Errand, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def client(arguments: list[str], folder: Path) -> bytes:
        asked.append((arguments, (folder / "pins.txt").read_text()))
        return b""

    monkeypatch.setattr(roads, "run", client)
    for archive, wheel in (("made-1.0-py3-none-any.whl", True), ("made-1.0.tar.gz", False)):
        road = PythonPackage("made==1.0", archive, "0" * 64, under("made", *FILES))
        with pytest.raises(RoadError, match=f"left no file {archive}"):
            road.obtain(errand)
        arguments, pins = asked.pop()
        assert arguments[:4] == [sys.executable, "-m", "pip", "download"]
        assert {"--no-deps", "--require-hashes"} <= set(arguments)
        assert ("--only-binary=:all:" in arguments) is wheel
        assert pins == f"made==1.0 --hash=sha256:{'0' * 64}\n"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_debian_package_put_there_by_hand(errand: Errand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: dataset-made\nVersion: 1\nArchitecture: all\nMaintainer: M <m@example.org>\nDescription: made\n"
    )
    (tree / "usr" / "share").mkdir(parents=True)
    for name, data in FILES.items():
        (tree / "usr" / "share" / name).write_bytes(data)
    errand.packages.mkdir()
    run(["dpkg-deb", "--build", str(tree), str(errand.packages / "dataset-made_1_all.deb")], tmp_path)
    road = DebianPackage("dataset-made", under("usr/share", *FILES))
    assert road.obtain(errand) == FILES
    assert list(errand.work.iterdir()) == []

    (errand.packages / "dataset-made_1_all.deb").write_bytes(b"broken")
    with pytest.raises(RoadError, match=r"apt-get update|apt-get is not on this machine"):
        road.obtain(errand)


def test_what_a_client_says_goes_into_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import sys; print('notice', file=sys.stderr); print('E: it is not there', file=sys.stderr); sys.exit(3)"
    with pytest.raises(RoadError, match=r"^E: it is not there$"):
        run([sys.executable, "-c", script], tmp_path)
    with pytest.raises(RoadError, match="exit status 3"):
        run([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)
    monkeypatch.setattr(roads, "COMMAND_SECONDS", 0.2)
    with pytest.raises(RoadError, match="took longer than"):
        run([sys.executable, "-c", "import time; time.sleep(30)"], tmp_path)


def certificate(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1, in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "tls.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


ANSWERS = {
    "/images.gz": gzip.compress(FILES["images"], mtime=0),
    "/labels": FILES["labels"],
    "/long": FILES["labels"] * 1000,
}
REDIRECTS = {"/away": "http://127.0.0.1:9/labels", "/moved": "/images.gz"}


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path])
        else:
            self.send_response(200 if self.path in ANSWERS else 404)
        self.end_headers()
        self.wfile.write(ANSWERS.get(self.path, b""))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
        """Keep the test's output clean."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    pem = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        yield f"https://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_public_home_over_https(errand: Errand, home: str) -> None:
    assert Home(home, {"images": "images.gz", "labels": "labels"}).obtain(errand) == FILES
    assert Home(home, {"images": "moved"}, {"images": lambda data: data[:2]}).obtain(errand) == {
        "images": ANSWERS["/images.gz"][:2]
    }


@pytest.mark.parametrize(
    ("name", "says"), [("absent", "404"), ("away", "leads away from https"), ("long", "longer than")]
)
def test_a_home_that_answers_something_else(errand: Errand, home: str, name: str, says: str) -> None:
    with pytest.raises(RoadError, match=says):
        Home(home, {"labels": name}).obtain(errand)


def test_a_home_whose_certificate_nobody_trusts(errand: Errand, home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(RoadError, match="certificate"):
        Home(home, {"labels": "labels"}).obtain(errand)
