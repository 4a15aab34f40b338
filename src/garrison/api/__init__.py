"""The commands as functions, for notebooks and scripts. They return data and print nothing.

    import garrison

    garrison.keygen("owner")
    garrison.harden("model.onnx", (x, y), "HARDENED")
    garrison.seal("HARDENED", "BUNDLE", key="owner.key")
    with garrison.serve("BUNDLE", trust="owner.pub") as server:
        print(garrison.predict(server.url, x_test).classes)
    garrison.run_audit("BUNDLE", "report", plan="demo", trust="owner.pub")

Each is loaded when it is used, so that `import garrison` stays light and `garrison.serve` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from garrison.api.auditing import run_audit
    from garrison.api.keys import keygen, verify
    from garrison.api.sealing import harden, seal
    from garrison.api.serving import predict, serve

__all__ = ["harden", "keygen", "predict", "run_audit", "seal", "serve", "verify"]

FUNCTIONS: dict[str, str] = {
    "harden": "garrison.api.sealing",
    "keygen": "garrison.api.keys",
    "predict": "garrison.api.serving",
    "run_audit": "garrison.api.auditing",
    "seal": "garrison.api.sealing",
    "serve": "garrison.api.serving",
    "verify": "garrison.api.keys",
}


def __getattr__(name: str) -> Any:
    if name not in FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(FUNCTIONS[name]), name)
