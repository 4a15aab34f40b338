"""What the server answers: plain functions from requests to answers, without a transport.

All paths are known at start, so a path is one look-up. Invariant: nothing that names a model is shown to a caller who has not
shown a key where keys are used; only health and `/v2` are open.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import parse_qsl

import msgspec

from garrison import __version__
from garrison.attest.evidence import NONCE_BYTES, Evidence
from garrison.bundle.manifest import InputSpec
from garrison.enclave.host import OutputSpec, ServiceCard
from garrison.errors import MalformedRequestError, NotFoundError
from garrison.limits import Limits
from garrison.protocol.oip_metadata import (
    BATCH_DIMENSION,
    GATEWAY_NOTE,
    InputRange,
    KeySet,
    ModelExtras,
    ModelKey,
    ModelMetadata,
    ServerExtras,
    ServerMetadata,
    TensorMetadata,
    WorkMetadata,
)
from garrison.server.admission import allow
from garrison.server.hosting import Hosting, Model
from garrison.server.http_errors import Answer, json_answer
from garrison.server.identity import ALL, Scopes
from garrison.server.openapi import OPENAPI_PATH, openapi_document
from garrison.types import ANYBODY

KEYS_PATH = "/.well-known/garrison/keys"
ATTESTATION_PATH = "/.well-known/garrison/attestation"

_GET, _POST = ("GET", "HEAD"), ("POST",)
_JSON_TYPE = ("content-type", "application/json")
_NONCE = re.compile(r"[A-Za-z0-9_-]{43}=?")

Page = Callable[[], Answer]
_FROM_URL = str.maketrans("-_", "+/")


@dataclass(frozen=True, slots=True)
class Route:
    """What stands at a path: a page, a model that answers questions, or evidence of the enclaves.

    Attributes:
        open: whether it is shown without a key.
        about: the model that a page is about.
        listing: a page of models, for what the caller sees.
        pages_of: by caller, the page that it gets in place of `page`; `ANYBODY` for whoever is not named.
    """

    methods: tuple[str, ...]
    page: Page | None = None
    model: Model | None = None
    evidence: bool = False
    open: bool = False
    about: Model | None = None
    listing: Callable[[Scopes], Answer] | None = None
    pages_of: Mapping[str, Page] = field(default_factory=dict)

    def page_for(self, caller: str, scopes: Scopes = ALL) -> Page | None:
        """What this caller is shown."""
        if self.listing is not None:
            return partial(self.listing, scopes)
        return self.pages_of.get(caller, self.pages_of.get(ANYBODY, self.page)) if self.pages_of else self.page


class App:
    """The pages and models of one server.

    Attributes:
        stopping: set when the server has begun to stop; it is not ready then, and still answers what has reached it.
        refused: how many requests were refused before they reached a model, over all transports, by code.
    """

    def __init__(self, hosting: Hosting, limits: Limits) -> None:
        self.hosting = hosting
        self.limits = limits
        self.stopping = False
        self.refused: dict[str, int] = {}
        self._routes = self._all_routes()

    def count_refused(self, code: str) -> None:
        self.refused[code] = self.refused.get(code, 0) + 1

    def route(self, path: str) -> Route | None:
        return self._routes.get(path)

    def why_not_found(self, path: str, scopes: Scopes = ALL) -> NotFoundError:
        """For a caller who may know of the models that its scopes cover."""
        parts = path.split("/")
        names = self._names(scopes)
        if parts[:3] == ["", "v2", "models"] and len(parts) > 3 and parts[3] not in names:
            return NotFoundError(
                f"unknown model {parts[3][:64]!r}; this server has {', '.join(names) or 'none for you'}"
            )
        if parts[:3] == ["", "v2", "models"] and len(parts) > 5 and parts[4] == "versions":
            seen = [version for version in self.hosting.versions(parts[3]) if scopes.sees(parts[3], version)]
            versions = ", ".join(map(str, seen))
            return NotFoundError(f"unknown version {parts[5][:64]!r} of {parts[3]!r}; this server has {versions}")
        return NotFoundError(f"nothing is here: {path[:128]!r}")

    def allow(self, route: Route, scopes: Scopes, path: str) -> None:
        """Whether a caller may do what a path is for.

        Raises:
            NotFoundError: it is about a model that the caller does not see, and so as if it were not there.
            ForbiddenError: the caller sees it, and may not do this.
        """
        model = route.model or route.about
        if model is not None and not scopes.everything:
            allow("metadata" if route.model is None else "infer", model, scopes, self.why_not_found(path, scopes))

    def _names(self, scopes: Scopes) -> tuple[str, ...]:
        if scopes.everything:
            return self.hosting.names
        return tuple(dict.fromkeys(m.name for m in self.hosting if scopes.sees(m.name, m.version)))

    def read_challenge(self, query: str, scopes: Scopes = ALL) -> tuple[Model, bytes]:
        """Whose evidence is wanted, and the nonce, from the query string `nonce=BASE64URL&model=NAME&version=N`.

        Raises:
            MalformedRequestError: no nonce of 32 bytes in base64url, or a parameter that is not known or comes twice.
            NotFoundError: no such model; or none is named, and there are several.
            ForbiddenError: the caller sees the model, and may not ask for evidence.
        """
        given = _parameters(query)
        nonce = given.get("nonce", "")
        if not _NONCE.fullmatch(nonce):
            raise MalformedRequestError(f"nonce must be {NONCE_BYTES} random bytes in base64url (43 characters)")
        names = self._names(scopes)
        name = given.get("model", names[0] if len(names) == 1 else "")
        if not names:
            raise NotFoundError("the server shows this caller no model: its key names none, or others")
        if not name:
            raise NotFoundError(f"the server has {len(names)} models; name one of {', '.join(names)}")
        version = given.get("version")
        route = self.route(
            f"/v2/models/{name}/infer" if version is None else f"/v2/models/{name}/versions/{version}/infer"
        )
        if route is None or route.model is None:
            raise self.why_not_found(f"/v2/models/{name}" + (f"/versions/{version}" if version else ""), scopes)
        allow("attest", route.model, scopes, self.why_not_found(f"/v2/models/{name}", scopes))
        return route.model, binascii.a2b_base64(nonce.rstrip("=").translate(_FROM_URL) + "=")

    def _all_routes(self) -> dict[str, Route]:
        routes = {
            "/v2/health/live": Route(_GET, lambda: json_answer({"live": True}), open=True),
            "/v2/health/ready": Route(_GET, self._ready, open=True),
            "/v2": Route(_GET, lambda: json_answer(self._server()), open=True),
            "/v2/": Route(_GET, lambda: json_answer(self._server()), open=True),
            "/v2/repository/index": Route(_POST, listing=self._index),
            KEYS_PATH: Route(_GET, listing=lambda scopes: json_answer(self._keys(scopes))),
            ATTESTATION_PATH: Route(_GET, evidence=True),
            OPENAPI_PATH: Route(_GET, self._fixed(openapi_document()), open=True),
        }
        for name in self.hosting.names:
            default = self.hosting.default(name)
            routes |= self._model_routes(f"/v2/models/{name}", default, self.hosting.versions(name))
        for model in self.hosting:
            path = f"/v2/models/{model.name}/versions/{model.version}"
            routes |= self._model_routes(path, model, self.hosting.versions(model.name))
        return routes

    def _model_routes(self, path: str, model: Model, versions: tuple[int, ...]) -> dict[str, Route]:
        metadata = _model_metadata(model, versions)
        pages = {
            caller: self._fixed(msgspec.structs.replace(metadata, outputs=_tensors(outputs)))
            for caller, outputs in model.card.outputs_of.items()
        }
        return {
            path: Route(_GET, self._fixed(metadata), about=model, pages_of=pages),
            f"{path}/ready": Route(_GET, lambda: self._model_ready(model), about=model),
            f"{path}/infer": Route(_POST, model=model),
        }

    @staticmethod
    def _fixed(document: object) -> Page:
        answer = json_answer(document)
        return lambda: answer

    def _ready(self) -> Answer:
        ready = not any(self._why_not_ready(model) for model in self.hosting)
        return json_answer({"ready": ready}, 200 if ready else 503)

    def _model_ready(self, model: Model) -> Answer:
        ready = not self._why_not_ready(model)
        return json_answer({"name": model.name, "ready": ready}, 200 if ready else 503)

    def _server(self) -> ServerMetadata:
        cards = [model.card for model in self.hosting]
        isolation = ", ".join(sorted({card.isolation for card in cards}))
        forms = tuple(sorted({card.guard_form for card in cards}))
        gateway = GATEWAY_NOTE if any(model.manifest.upstream for model in self.hosting) else ""
        extras = ServerExtras(
            isolation=isolation, guard_forms=forms, capabilities=_common_capabilities(cards), gateway=gateway
        )
        return ServerMetadata(name="garrison", version=__version__, garrison=extras)

    def _index(self, scopes: Scopes) -> Answer:
        entries = []
        for model in self._seen(scopes):
            reason = self._why_not_ready(model)
            state = "UNAVAILABLE" if reason else "READY"
            entries.append({"name": model.name, "version": str(model.version), "state": state, "reason": reason})
        return json_answer(entries)

    def _why_not_ready(self, model: Model) -> str:
        if self.stopping:
            return "the server is stopping"
        return model.batcher.why_not() if model.enclave.ready else "the enclave is being started anew"

    def _keys(self, scopes: Scopes) -> KeySet:
        return KeySet(keys=tuple(_model_key(model) for model in self._seen(scopes)))

    def _seen(self, scopes: Scopes) -> list[Model]:
        return [model for model in self.hosting if scopes.sees(model.name, model.version)]


def _common_capabilities(cards: Sequence[ServiceCard]) -> dict[str, str]:
    """What all enclaves have: no model is named where no key is asked for."""
    names = dict.fromkeys(name for card in cards for name in card.capabilities)
    found = {name: {card.capabilities.get(name, "") for card in cards} for name in names}
    return {name: "" if "" in ways else ", ".join(sorted(ways)) for name, ways in found.items()}


def _parameters(query: str) -> dict[str, str]:
    expected = "expected the parameters nonce, and perhaps model and version, each once"
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=8)
    except ValueError as error:  # more of them
        raise MalformedRequestError(expected) from error
    given = dict(pairs)
    if len(given) != len(pairs) or not given.keys() <= {"nonce", "model", "version"}:
        raise MalformedRequestError(expected)
    return given


def write_evidence(evidence: Evidence) -> Answer:
    """Evidence as JSON, bytes in base64. Never to be kept by a cache: it belongs to one nonce."""
    return Answer(200, [_JSON_TYPE, ("cache-control", "no-store")], msgspec.json.encode(evidence))


def _model_metadata(model: Model, versions: tuple[int, ...]) -> ModelMetadata:
    card, manifest = model.card, model.manifest
    return ModelMetadata(
        name=manifest.name,
        versions=tuple(map(str, versions)),
        platform="garrison_onnx" if manifest.upstream is None else "garrison_gateway",
        inputs=tuple(TensorMetadata(i.name, i.datatype, (BATCH_DIMENSION, *i.shape)) for i in manifest.inputs),
        outputs=_tensors(card.outputs),
        garrison=ModelExtras(
            version=str(manifest.version),
            task=manifest.task,
            labels=manifest.labels,
            ranges={spec.name: _range(spec) for spec in manifest.inputs},
            manifest_digest=card.manifest_digest,
            guard_digest=card.guard_digest,
            budget_rows=card.budget_rows,
            budget_period=card.budget_period,
            budget_distinct=card.budget_distinct,
            price_per_1000_rows=card.price_per_1000_rows,
            work=_work(card),
            model_digest=manifest.model_digest(),
            answers_digest=manifest.answers_digest(card.chain),
            upstream="" if manifest.upstream is None else str(manifest.upstream),
        ),
    )


def _work(card: ServiceCard) -> WorkMetadata | None:
    asked = card.work
    return None if asked is None else WorkMetadata(bits=asked.bits, window_seconds=asked.window_seconds, who=asked.who)


def _tensors(outputs: Sequence[OutputSpec]) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(o.name, o.datatype, (BATCH_DIMENSION, *o.shape)) for o in outputs)


def _range(spec: InputSpec) -> InputRange:
    return InputRange(minimum=spec.minimum, maximum=spec.maximum, may_be_missing=spec.may_be_missing)


def _model_key(model: Model) -> ModelKey:
    card = model.card
    return ModelKey(
        name=model.name,
        version=str(model.version),
        public_key=card.public_key.hex(),
        isolation=card.isolation,
        manifest_digest=card.manifest_digest,
        guard_digest=card.guard_digest,
    )
