"""Puts the guard of a sealed bundle around an endpoint of a user's own ASGI app (FastAPI, Starlette, or any other).

    app = FastAPI()
    app.add_middleware(Guarded, bundle="BUNDLE", trust="OWNER.pub", path="/predict", inputs="x", output="probabilities")

The endpoint goes on computing with the user's own model; before it runs, the guard looks at the input, and what it answers goes through
the guard before it leaves. Needs no web framework. See docs/middleware.md, also for what it cannot do: nothing is isolated or signed.
"""

from __future__ import annotations

from garrison.asgi.forms import Question
from garrison.asgi.middleware import Guarded

__all__ = ["Guarded", "Question"]
