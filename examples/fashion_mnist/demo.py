"""The whole way, as a user would go it: each step is an ordinary command, printed before it runs.

    python examples/fashion_mnist/demo.py [OUT]      (default out/demo)

A second run reuses what is already there; `rm -r out/demo` starts over.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from garrison import datasets

HERE = Path(__file__).parent
GARRISON = (sys.executable, "-m", "garrison")


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m", flush=True)


def shown(command: tuple[str, ...]) -> str:
    words = (
        ("garrison", *command[len(GARRISON) :]) if command[: len(GARRISON)] == GARRISON else ("python", *command[1:])
    )
    return shlex.join(words)


def run(*command: str) -> None:
    print(f"$ {shown(command)}", flush=True)
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"that command failed with exit code {done.returncode}")


def unless(target: Path, *command: str) -> None:
    """Run a command unless what it makes is there."""
    if target.exists():
        print(f"$ {shown(command)}    # {target} is there already", flush=True)
    else:
        run(*command)


@contextmanager
def served(*command: str, url: str) -> Iterator[None]:
    """Run the server while the body runs; it is stopped by SIGTERM, as a service manager would."""
    print(f"$ {shown(command)} &", flush=True)
    server = subprocess.Popen(command)
    try:
        wait_until_ready(server, url)
        yield
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_until_ready(server: subprocess.Popen[bytes], url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    sys.exit("the server did not become ready")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def write_questions(out: Path) -> None:
    """What will be asked: honest test images, and an attacker's digits."""
    for name, source in (("honest.npz", "fashion-mnist"), ("digits.npz", "mnist")):
        if not (out / name).exists():
            found = datasets.load(source, "test")
            if source == "fashion-mnist" and found.y is not None:
                np.savez(out / name, x=found.x[:500], y=found.y[:500], labels=np.array(found.labels))
            else:
                np.savez(out / name, x=found.x[:500])


def build(out: Path) -> None:
    training, owner, victim = out / "training", out / "keys" / "owner", out / "training" / "victim.onnx"
    calibration = str(training / "calibration.npz")
    say("1  Train: the one step that is the user's own")
    run(sys.executable, str(HERE / "train.py"), "--out", str(training))
    say("2  An owner's key")
    unless(out / "keys" / "owner.key", *GARRISON, "keygen", "-o", str(owner))
    say("3  Harden: calibrate the misinformation")
    data = ("--data", str(training / "train.npz"), "--calibration", calibration, "--outlier-exposure")
    unless(out / "hardened", *GARRISON, "harden", str(victim), *data, "-o", str(out / "hardened"))
    say("4  Seal; also the undefended model, for comparison")
    key = ("--key", f"{owner}.key")
    unless(
        out / "bundle",
        *GARRISON,
        "seal",
        str(out / "hardened"),
        *key,
        "--name",
        "fashion-mnist",
        "-o",
        str(out / "bundle"),
    )
    plain = (str(training / "plain.onnx"), "--data", calibration, *key, "--name", "fashion-mnist-plain")
    unless(out / "plain", *GARRISON, "seal", *plain, "-o", str(out / "plain"))
    say("5  Verify and look inside")
    run(*GARRISON, "verify", str(out / "bundle"), "--trust", f"{owner}.pub")
    run(*GARRISON, "inspect", str(out / "bundle"), "--trust", f"{owner}.pub")


def ask_and_attack(out: Path) -> None:
    port = free_port()
    url, trust = f"http://127.0.0.1:{port}", ("--trust", str(out / "keys" / "owner.pub"))
    say("6  Serve, guarded")
    with served(
        *GARRISON, "serve", str(out / "bundle"), *trust, "--port", str(port), "--state", str(out / "state"), url=url
    ):
        say("7  Ask: honest images, then an attacker's digits")
        run(*GARRISON, "predict", url, str(out / "honest.npz"), "--limit", "500")
        run(*GARRISON, "predict", url, str(out / "digits.npz"), "--limit", "5")
        say("8  Attack it, and read the report")
        arms = ("--reference", str(out / "bundle"), "--baseline", str(out / "plain"), *trust)
        run(*GARRISON, "audit", url, "--plan", "demo", *arms, "-o", str(out))


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out/demo")
    (out / "keys").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    write_questions(out)
    build(out)
    ask_and_attack(out)
    say(
        f"Done in {time.monotonic() - started:.0f} s. Open {out / 'report.html'}; the same in figures: {out / 'report.json'}"
    )


if __name__ == "__main__":
    main()
