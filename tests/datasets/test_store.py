from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.datasets.conftest import ARCHIVE, FILES, PINS, npm_road, sha256, tgz

from garrison.datasets.archives import RoadError
from garrison.datasets.roads import DebianPackage, Errand, Home, Installed, under
from garrison.datasets.store import Store, default_cache
from garrison.errors import DatasetCorruptError, DatasetUnavailableError, MissingExtraError


@dataclass(frozen=True)
class MadeRoad:
    """Hands out what it is told to, and counts how often it is asked."""

    found: dict[str, bytes]
    error: Exception | None = None
    asked: list[Errand] = field(default_factory=list)
    title: str = "a made road"

    def by_hand(self, packages: Path, folder: Path) -> str:
        return f"walk to {packages} or {folder}"

    def obtain(self, errand: Errand) -> dict[str, bytes]:
        self.asked.append(errand)
        if self.error:
            raise self.error
        return self.found


def test_files_come_out_of_a_package_and_stay(store: Store) -> None:
    assert store.read("images") == FILES["images"]
    (store.packages / "made-1.0.0.tgz").unlink()
    assert store.read("labels") == FILES["labels"]
    assert store.path("labels").read_bytes() == FILES["labels"]
    assert sorted(p.name for p in store.folder.iterdir()) == [".lock", "images", "labels"]


@pytest.mark.parametrize("damage", [b"", FILES["images"][:-1], FILES["images"] + b"\0", b"x" + FILES["images"][1:]])
def test_a_corrupt_cached_file_is_fetched_again(store: Store, damage: bytes) -> None:
    path = store.path("images")
    path.write_bytes(damage)
    assert store.read("images") == FILES["images"]
    assert path.read_bytes() == FILES["images"]


def test_a_corrupt_cached_file_that_cannot_be_fetched_again_is_an_error(store: Store) -> None:
    store.path("images").write_bytes(b"damaged")
    (store.packages / "made-1.0.0.tgz").unlink()
    with pytest.raises(DatasetCorruptError, match=r"the cache: .*images has not the pinned SHA-256"):
        store.read("images")


def test_a_file_put_there_by_hand_is_taken(tmp_path: Path, no_programs: None) -> None:
    store = Store("made", PINS, (npm_road(),), tmp_path)
    store.folder.mkdir()
    (store.folder / "images").write_bytes(FILES["images"])
    assert store.read("images") == FILES["images"]
    with pytest.raises(DatasetUnavailableError, match="lacks labels"):
        store.read("labels")


def test_what_cannot_be_had_lists_every_road_and_what_to_do(tmp_path: Path, no_programs: None) -> None:
    roads = (
        Installed(tmp_path / "absent", under(".", *FILES)),
        DebianPackage("dataset-made", under("usr/share", *FILES)),
        npm_road(),
        Home("http://not-encrypted.invalid/", {name: f"{name}.gz" for name in FILES}),
    )
    with pytest.raises(DatasetUnavailableError) as caught:
        Store("made", PINS, roads, tmp_path).read("images")
    text = str(caught.value)
    for expected in (
        f"installed in {tmp_path / 'absent'}: there is no such folder",
        "Debian package dataset-made: the program apt-get is not on this machine",
        "npm package made@1.0.0: the program npm is not on this machine",
        "is no https address",
        f"put the .deb into {tmp_path / 'packages'}",
        f"run `npm pack made@1.0.0` and put made-1.0.0.tgz into {tmp_path / 'packages'}",
        f"download images.gz, labels.gz, decompress them, and put them into {tmp_path / 'made'}",
        PINS[0].sha256[:16],
    ):
        assert expected in text


def test_wrong_bytes_from_the_only_road_are_corrupt_and_not_kept(tmp_path: Path) -> None:
    road = MadeRoad({"images": FILES["images"], "labels": b"other"})
    store = Store("made", PINS, (road,), tmp_path)
    with pytest.raises(DatasetCorruptError, match=f"labels has SHA-256 .*, expected {PINS[1].sha256}"):
        store.read("labels")
    assert not (store.folder / "labels").exists()


def test_the_next_road_is_tried_for_what_is_still_missing(tmp_path: Path) -> None:
    roads = (
        MadeRoad({}, RoadError("closed")),
        MadeRoad({"images": FILES["images"]}),
        MadeRoad({"labels": b"wrong"}),
        MadeRoad({"labels": FILES["labels"]}),
        MadeRoad({}, AssertionError("not needed any more")),
    )
    store = Store("made", PINS, roads, tmp_path)
    assert store.read("images") == FILES["images"]
    assert store.read("labels") == FILES["labels"]
    assert [[file.name for file in errand.files] for road in roads for errand in road.asked] == [
        ["images", "labels"],
        ["images", "labels"],
        ["labels"],
        ["labels"],
    ]


def test_a_missing_extra_is_named_only_when_no_other_road_leads_there(tmp_path: Path) -> None:
    needs = MadeRoad({}, MissingExtraError("rdata", "data"))
    with pytest.raises(MissingExtraError, match=r"garrison\[data\]"):
        Store("a", PINS, (needs, MadeRoad({}, RoadError("closed"))), tmp_path).read("images")
    assert Store("b", PINS, (needs, MadeRoad(FILES)), tmp_path).read("images") == FILES["images"]


def test_a_package_with_another_sha256_is_not_opened(tmp_path: Path, no_programs: None) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "made-1.0.0.tgz").write_bytes(tgz({"package/data/images": FILES["images"]}))
    store = Store("made", PINS[:1], (npm_road(),), tmp_path)
    with pytest.raises(DatasetUnavailableError, match="npm is not on this machine"):
        store.read("images")
    (tmp_path / "packages" / "made-1.0.0.tgz").write_bytes(ARCHIVE)
    assert store.read("images") == FILES["images"]


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetUnavailableError, match="set GARRISON_CACHE"):
        Store("made", PINS, (MadeRoad(FILES),), tmp_path / "file").read("images")


def test_what_a_killed_process_left_is_swept_away(store: Store) -> None:
    store.folder.mkdir()
    (store.folder / ".work-abc").mkdir()
    (store.folder / ".work-abc" / "half").touch()
    (store.folder / ".new-images").write_bytes(b"half")
    store.read("images")
    assert sorted(p.name for p in store.folder.iterdir()) == [".lock", "images", "labels"]


def test_progress_is_told(store: Store) -> None:
    told: list[tuple[str, float]] = []
    replace(store, progress=lambda what, share: told.append((what, share))).read("images")
    assert told == [("made: npm package made@1.0.0", 0.0), ("made: npm package made@1.0.0", 1.0)]


PROCESS = """
import sys, time
from pathlib import Path
from garrison.datasets.roads import SourceFile
from garrison.datasets.store import Store

class Road:
    title = "slow"
    def by_hand(self, packages, folder): return ""
    def obtain(self, errand):
        with (cache / "asked").open("a") as log: log.write("x")
        time.sleep(0.3)
        return {"images": bytes(100_000)}

cache = Path(sys.argv[1])
while not (cache / "go").exists(): time.sleep(0.001)
assert Store("made", (SourceFile("images", sys.argv[2], 100_000),), (Road(),), cache).read("images") == bytes(100_000)
"""


def test_processes_that_load_at_once_fetch_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROCESS, str(tmp_path), sha256(bytes(100_000))]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    time.sleep(0.5)
    (tmp_path / "go").touch()
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()
    assert (tmp_path / "asked").read_text() == "x"


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("GARRISON_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert default_cache() == tmp_path / ".cache" / "garrison"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/invalid")
    assert default_cache() == tmp_path / ".cache" / "garrison"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/garrison")
    monkeypatch.setenv("GARRISON_CACHE", "~/own")
    assert default_cache() == tmp_path / "own"
