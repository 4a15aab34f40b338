"""The secret heap: an allocator that holds what it promises, over memory that nobody else can read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from garrison.enclave import secret_heap
from garrison.errors import IsolationError

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")

CHECK = """
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define SLOTS 400
#define ROUNDS 60000
static void bad(const char *why) { fprintf(stderr, "%s\\n", why); exit(1); }
static unsigned next(unsigned *state) { return *state = *state * 1664525u + 1013904223u; }
static size_t some(unsigned *s) { unsigned r = next(s) >> 8; return (r & 63) ? r % 700 : r % 300000; }
static void fill(unsigned char *p, size_t n, unsigned char mark) { memset(p, mark, n); }
static void check(unsigned char *p, size_t n, unsigned char mark) {
    for (size_t i = 0; i < n; i++) if (p[i] != mark) bad("a block was overwritten");
}
static void *work(void *arg) {
    unsigned s = (unsigned)(uintptr_t)arg;
    unsigned char *p[SLOTS] = {0}, mark[SLOTS]; size_t size[SLOTS];
    for (int i = 0; i < ROUNDS; i++) {
        unsigned k = (next(&s) >> 8) % SLOTS; size_t n = some(&s);
        if (p[k]) check(p[k], size[k], mark[k]);
        switch ((next(&s) >> 10) % 5) {
        case 0: free(p[k]); p[k] = malloc(n); break;
        case 1: free(p[k]); p[k] = calloc(n ? n : 1, 1); check(p[k], n, 0); break;
        case 2: {
            size_t old = p[k] ? size[k] : 0; n = n ? n : 1;
            p[k] = realloc(p[k], n); check(p[k], old < n ? old : n, mark[k]); break;
        }
        case 3: {
            size_t a = (size_t)16 << ((next(&s) >> 8) % 10); void *q; free(p[k]);
            if (posix_memalign(&q, a, n)) bad("posix_memalign failed");
            if ((uintptr_t)q % a) bad("not aligned"); p[k] = q; break;
        }
        default: free(p[k]); p[k] = NULL; n = 0;
        }
        if (p[k] && ((uintptr_t)p[k] % 16 || malloc_usable_size(p[k]) < n)) bad("a block is too small or not aligned");
        size[k] = n; mark[k] = (unsigned char)next(&s); if (p[k]) fill(p[k], n, mark[k]);
    }
    for (int k = 0; k < SLOTS; k++) { if (p[k]) check(p[k], size[k], mark[k]); free(p[k]); }
    return NULL;
}
int main(void) {
    pthread_t t[4]; void *q;
    for (uintptr_t i = 0; i < 4; i++) pthread_create(&t[i], NULL, work, (void *)(i + 1));
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    if (posix_memalign(&q, 24, 8) != EINVAL) bad("an alignment that is no power of two");
    volatile size_t huge = (size_t)-1 / 2 + 2;
    errno = 0; if (malloc(huge) || errno != ENOMEM) bad("half of all memory was given");
    if (calloc(huge, 4)) bad("an overflow was not seen");
    char *most = malloc(40u << 20); if (!most) bad("what was freed was not joined again"); memset(most, 1, 40u << 20);
    free(most); puts("good");
    return 0;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GARRISON_CACHE", str(tmp_path_factory.mktemp("cache")))
        return secret_heap.build()


def preloaded(library: Path, size: int, *, open_memory: bool) -> dict[str, str]:
    more = {"GARRISON_SECRET_HEAP_OPEN": "1"} if open_memory else {}
    heap = {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "GARRISON_SECRET_HEAP_BYTES": str(size)}
    return os.environ | heap | more


def test_four_threads_get_memory_that_is_theirs_alone_and_give_it_back(library: Path, tmp_path: Path) -> None:
    (tmp_path / "check.c").write_text(CHECK)
    program = tmp_path / "check"
    subprocess.run(["cc", "-O1", "-pthread", "-fno-builtin", "-o", str(program), str(tmp_path / "check.c")], check=True)
    for open_memory in (True, False) if secret_heap.secret_memory_offered() and os.geteuid() == 0 else (True,):
        done = subprocess.run(
            [str(program)],
            env=preloaded(library, 64 << 20, open_memory=open_memory),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


def test_a_full_heap_ends_the_process_and_says_so(library: Path) -> None:
    words = [sys.executable, "-S", "-c", "x = bytearray(1 << 28)"]
    done = subprocess.run(
        words, env=preloaded(library, 64 << 20, open_memory=True), capture_output=True, text=True, check=False
    )
    assert done.returncode == -6
    assert "the arena is full" in done.stderr
    enough = preloaded(library, 512 << 20, open_memory=True)
    assert subprocess.run(words, env=enough, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("size", ["0", "-1", "much", "4096"])
def test_a_size_that_makes_no_sense_is_refused(library: Path, size: str) -> None:
    environment = preloaded(library, 1, open_memory=True) | {"GARRISON_SECRET_HEAP_BYTES": size}
    done = subprocess.run([sys.executable, "-c", ""], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -6
    assert "GARRISON_SECRET_HEAP_BYTES" in done.stderr


TELL = "import json; from garrison.enclave.secret_heap import memory_is_secret as m; s = m(); print(json.dumps([s.how, s.mend]))"


def told(environment: dict[str, str]) -> list[str]:
    done = subprocess.run([sys.executable, "-c", TELL], env=environment, capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def test_a_heap_is_secret_only_where_it_lies_in_secret_memory(library: Path) -> None:
    assert told(dict(os.environ))[0] == ""
    assert told(preloaded(library, 256 << 20, open_memory=True)) == ["", "the heap lies in ordinary memory"]
    if not secret_heap.secret_memory_offered() or os.geteuid() != 0:
        pytest.skip("secret memory of this size takes root, and a kernel that gives it")
    assert told(preloaded(library, 256 << 20, open_memory=False)) == ["memfd_secret, 256 MiB", ""]
    half = preloaded(library, 256 << 20, open_memory=False)
    del half["PYTHONMALLOC"]
    assert "PYTHONMALLOC" in told(half)[1]


def test_a_library_that_others_can_change_is_not_taken(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GARRISON_CACHE", str(library.parent.parent))
    assert secret_heap.built_library() == library
    library.chmod(0o777)
    with pytest.raises(IsolationError, match="can be changed by other users"):
        secret_heap.built_library()
    library.chmod(0o755)


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GARRISON_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(IsolationError, match="no C compiler"):
        secret_heap.build()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(IsolationError, match="no C compiler"):
        secret_heap.build()
