"""One request, from the door and back: the story of the house.

A batch of requests goes through eight steps, in this order:

    1  open      unseal and read each request; one that cannot be read is refused alone
    2  ADMIT     bounds, calls left
    3  INSPECT   what does this input look like
    4  run       the model, on parameters that were checked before they are used
    5  ANSWER    f(x), or misinformation
    6  RELEASE   say as little as the policy allows
    7  RECORD    what each caller has now asked
    8  sign      one signature over the batch, a statement for each answer; seal what was asked under seal

Invariants: a bad request harms no other in its batch; nothing leaves but `Released`; after ADMIT the client learns of a refusal
only that it was refused, while the outcome keeps the true code for the ledger. Of a sealed request the outcome keeps only
the rows to be charged (see `garrison.enclave.mail`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from garrison.attest.evidence import NONCE_BYTES, Evidence, report_data
from garrison.bundle.manifest import Manifest, guard_digest
from garrison.bundle.reader import VerifiedBundle
from garrison.bundle.secret import check_secret
from garrison.crypto.signing import AnswerSigner
from garrison.enclave.caller_state import CallerState
from garrison.enclave.drill import drill
from garrison.enclave.gathering import gather
from garrison.enclave.keys import KeyRing
from garrison.enclave.mail import Letter, Mail
from garrison.enclave.quotes import Quoter
from garrison.enclave.replies import Opened, ReplyMaker, error_reply, told
from garrison.enclave.sessions import Sessions
from garrison.enclave.toll import Toll
from garrison.enclave.witness import make_witness
from garrison.errors import (
    GuardError,
    MalformedRequestError,
    NotFoundError,
    RefusedError,
    RequestError,
    UnavailableError,
    UpstreamError,
)
from garrison.guard.base import Defense
from garrison.guard.caller_release import CallerReleases
from garrison.guard.defenses.proof_of_work import ProofOfWork
from garrison.guard.distinct import DistinctRows
from garrison.guard.drifting.report import DriftReport
from garrison.guard.graph_form import GraphForm, fits, settings_of
from garrison.guard.numpy_form import NumpyForm
from garrison.guard.outputs import OutputCheck
from garrison.guard.override import UnsafeGuardOverride
from garrison.guard.pipeline import Pipeline, Progress, tighten
from garrison.guard.watching.book import Alarm
from garrison.limits import DEFAULT_LIMITS, Limits
from garrison.protocol.messages import Ask, Outcome, Reply
from garrison.protocol.oip import check_outputs
from garrison.protocol.oip_grpc import decode_any
from garrison.protocol.statement import StatementWriter
from garrison.runtime.runner import Runner, example_inputs
from garrison.types import Array, Batch, Caller, DefenseSpec, RawScores, Released

logger = logging.getLogger(__name__)

INTERNAL = "internal"
NO_LIMIT = -1
ELSEWHERE = "on another server"


class Scorer(Protocol):
    """Computes a guard-only bundle's model elsewhere (see `garrison.upstream.scorer`)."""

    def run(self, inputs: dict[str, Array]) -> RawScores:
        """Score rows.

        Raises:
            UnavailableError: the model cannot be asked now.
            UpstreamError: there is no answer that can be used.
        """
        ...


class Service:
    """One sealed model behind its guard.

    Args:
        bundle: the verified bundle.
        key: the owner's misinformation key; needed where the chain needs it.
        tightened: by defense name, what the host tightens of the signed guard.
        callers: by caller, the stricter release policy that the host gives it (see `garrison.guard.caller_release`).
        override: replaces the signed guard, for measurements in this process only.
        limits: sizes and counts.
        quoter: asks the hardware to vouch for this service; None where it runs without an enclave, and then there is no
            evidence and no sealed request is taken.
        parameter_memory: most bytes of parameters that are held at once; None for all of them.
        signing_key: see `garrison.crypto.signing.AnswerSigner`.
        scorer: asks the model of a guard-only bundle; None for a bundle that holds its model.

    Raises:
        ConfigError: `parameter_memory` is too small for this model.
        KeyFileError: the key is missing or belongs to another model.
        GuardError: the chain cannot be built; the service does not start.
        ManifestError: the graph is not what the manifest says.
    """

    def __init__(
        self,
        bundle: VerifiedBundle,
        *,
        key: bytes | None = None,
        tightened: Mapping[str, Mapping[str, Any]] | None = None,
        callers: Mapping[str, Mapping[str, Any]] | None = None,
        override: UnsafeGuardOverride | None = None,
        limits: Limits = DEFAULT_LIMITS,
        quoter: Quoter | None = None,
        parameter_memory: int | None = None,
        signing_key: bytes | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self.manifest: Manifest = bundle.manifest
        self.manifest_json = bundle.manifest_json
        self.manifest_digest = bundle.manifest_sha256
        self.owner = bundle.signer
        self.facts = self.manifest.facts()
        self.limits = limits
        self._override = override
        chain = override.use() if override is not None else tighten(self.manifest.guard, tightened or {})
        if key is not None and self.manifest.key_commitment:
            check_secret(self.manifest, key, "--secret")  # another key would give other misinformation than before
        self._pipeline = Pipeline(chain, self.facts, key)
        self.guard_digest = guard_digest(chain)
        lasting = key if self.manifest.key_commitment else None
        self.caller_state = CallerState(self._pipeline, self.manifest_digest, self.guard_digest, lasting)
        self._check_outputs = OutputCheck(self._pipeline.release_defense, self.facts)
        self.caller_releases = CallerReleases(self._pipeline.release_defense, callers or {}, self.facts)
        # Under an override raw scores can be had, and those of the guarded graph are only good for rows that it admits.
        traced = self.manifest.guarded is not None and override is None and fits(self.manifest.guard, self._pipeline)
        settings = settings_of(self._pipeline) if traced else None
        runner = None
        if scorer is None:
            runner = Runner(bundle, limits, parameter_memory=parameter_memory, settings=settings)
        self._upstream = "" if scorer is None else str(self.manifest.upstream)
        self._runner: Scorer = runner or scorer  # type: ignore[assignment]  # one of the two is there
        self._parameters = ELSEWHERE if runner is None else runner.parameters
        self._numpy_form = NumpyForm(self._pipeline, self._runner.run)
        self._graph_form = GraphForm(self._pipeline, runner) if traced and runner is not None else None
        self._signer = AnswerSigner(signing_key)
        statements = StatementWriter(self.manifest_digest, self.guard_digest, self._upstream)
        self._named = self.manifest.name, str(self.manifest.version)
        self._reply_maker = ReplyMaker(self._signer, *self._named, statements, self.caller_releases)
        self._quoter = quoter
        self._keys = None if quoter is None else KeyRing(self._signer.public_key, limits=limits)
        self._distinct = next((x.state for x in self._pipeline.links if isinstance(x.state, DistinctRows)), None)
        self._toll = self._toll_of(self.armed(ProofOfWork.name))
        sessions = Sessions(self._signer.public_key, self.manifest_digest, self.guard_digest, limits=limits)
        self.witness = make_witness(self._signer, self.manifest_digest, self.guard_digest, self._pipeline.defenses)
        sealed = self.manifest.require_sealed
        self._mail = Mail(self._keys, sessions, limits, sealing_required=sealed, tally=self.witness.tally)
        if runner is not None:
            # The first run allocates; better now than on a client's time.
            runner.run(example_inputs(self.manifest.inputs, 1))

    @property
    def guard_form(self) -> str:
        """How the chain runs: "graph", or "numpy: " and why."""
        if self._graph_form is not None:
            return "graph"
        return f"numpy: {self.manifest.numpy_because or 'the chain that runs is not the one that was traced'}"

    @property
    def parameters(self) -> str:
        """How the parameters are held; see `garrison.runtime.runner.Runner`."""
        return self._parameters

    def drill(self) -> None:
        """See `garrison.enclave.drill`.

        Raises:
            IsolationError: the service fails on a request of its own.
        """
        toll, self._toll = self._toll, None  # a rehearsal does not work for its questions
        try:
            drill(self._answer_safely, self.manifest.inputs, self.limits)
        finally:
            self._toll = toll
        self.caller_state.forget()

    def load_ahead(self) -> bool:
        """See `garrison.runtime.runner.Runner.load_ahead`."""
        return isinstance(self._runner, Runner) and self._runner.load_ahead()

    def stop_loading(self) -> None:
        """See `garrison.runtime.runner.Runner.stop_loading`."""
        if isinstance(self._runner, Runner):
            self._runner.stop_loading()

    @property
    def public_key(self) -> bytes:
        """The key that signs the answers: 32 bytes, made at start."""
        return self._signer.public_key

    @property
    def chain(self) -> tuple[DefenseSpec, ...]:
        """The chain that runs: the signed one, as tightened by the host."""
        return self._pipeline.specs

    def armed(self, name: str) -> Defense | None:
        """The armed defense of that name, if the chain has one."""
        return self._pipeline.find(name)

    def outputs(self, caller: str | None = None) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
        """Name, dtype and row shape of each tensor that is released: by the chain, or to this caller."""
        if caller is not None:
            return self.caller_releases.outputs(caller)
        return self._pipeline.release_defense.describe_outputs(self.facts)

    def answer(self, asks: Sequence[Ask]) -> list[Reply]:
        """Answer a batch of requests; one reply an ask, in order. Never raises for what a client sent.

        Raises:
            UnavailableError: the model of a guard-only bundle cannot be asked now; nothing was answered.
        """
        replies: dict[int, Reply] = {}
        # 1 open: the envelopes, where there are any
        if self._mail.takes_plain and not [ask for ask in asks if ask.sealed]:
            return self._answer_safely(asks)
        letters = self._unseal(asks, replies)
        answers = self._answer_safely([letter.ask for letter in letters.values()])
        # 8 sign: and seal
        for (number, letter), answer in zip(letters.items(), answers, strict=True):
            replies[number] = self._mail.close(letter, answer)
        return [replies[number] for number in range(len(asks))]

    def evidence(self, nonce: bytes, capabilities: Mapping[str, str]) -> Evidence:
        """Evidence over the keys that requests may be sealed to now.

        Args:
            nonce: the client's, `NONCE_BYTES` bytes.
            capabilities: what the isolation was probed to have; handed on, vouched for by nobody.

        Raises:
            MalformedRequestError: a nonce of another length.
            NotFoundError: this service runs without an enclave.
            IsolationError: the hardware does not answer.
        """
        if self._quoter is None or self._keys is None:
            raise NotFoundError("this service runs without an enclave, so it has no evidence to show")
        if len(nonce) != NONCE_BYTES:
            raise MalformedRequestError(f"expected a nonce of {NONCE_BYTES} bytes, found {len(nonce)}")
        keys = self._keys.offered()
        quote = self._quoter.quote(report_data(keys, nonce, self.manifest_digest, self.guard_digest, self.owner))
        return Evidence(
            quote=quote,
            keys=keys,
            nonce=nonce,
            model=self.manifest.name,
            version=self.manifest.version,
            manifest=self.manifest_json,
            guard=self.guard_digest,
            owner=self.owner,
            capabilities=dict(capabilities),
        )

    def predict(self, inputs: dict[str, Array], caller: str = "local") -> Released:
        """Steps 2 to 7 on arrays, for callers within this process. Not signed, not budgeted.

        Raises:
            RequestError, RefusedError: as a client over the wire would get it.
        """
        rows = len(next(iter(inputs.values())))
        progress, released = self._guarded(Batch(inputs, np.zeros(rows, dtype=np.intp), (Caller(caller),), (NO_LIMIT,)))
        code = progress.refused[0]
        if code is not None:
            raise _refusal(code, progress.detail[0])
        policy = self.caller_releases.of(caller)
        return released if policy is None else self.caller_releases.tightened(policy, released)

    def alarms(self) -> tuple[Alarm, ...]:
        """The first alarm of each caller by each detector; see `garrison.guard.watching.book.Alarm`."""
        return self.caller_state.alarms()

    def first_alarm(self, caller: str, *, shadow: bool = False) -> Alarm | None:
        """A caller's alarm with the fewest rows; with `shadow` also one that does nothing."""
        mine = [alarm for alarm in self.alarms() if alarm.caller == caller and (shadow or alarm.action)]
        return min(mine, key=lambda alarm: alarm.row, default=None)

    def clear_alarm(self, caller: str) -> bool:
        """See `garrison.enclave.caller_state.CallerState.clear_alarm`."""
        return self.caller_state.clear_alarm(caller)

    def drift(self) -> DriftReport | None:
        """What `drift` has found; None where the chain has none. Without what tells of inputs where the owner demands sealed requests."""
        report = self.caller_state.drift()
        return report.without_inputs() if report is not None and self.manifest.require_sealed else report

    def raw(self, inputs: dict[str, Array]) -> RawScores:
        """What the model says before any defense; only where the signed guard is overridden anyway.

        Raises:
            GuardError: the signed guard runs.
        """
        if self._override is None:
            raise GuardError("raw scores can only be had under an UnsafeGuardOverride")
        return self._runner.run(inputs)

    def _toll_of(self, asked: Defense | None) -> Toll | None:
        """Checks proofs, where the chain asks for any."""
        if not isinstance(asked, ProofOfWork):
            return None
        return Toll(self._signer.public_key, asked.bits, asked.window_seconds)

    def _unseal(self, asks: Sequence[Ask], replies: dict[int, Reply]) -> dict[int, Letter]:
        letters = {}
        for number, ask in enumerate(asks):
            try:
                letter = self._mail.open(ask)
            except (RequestError, UnavailableError) as error:
                replies[number] = told(error)
                continue
            except Exception:
                logger.exception("an envelope could not be opened; the others of its batch are answered")
                replies[number] = error_reply(
                    INTERNAL, "the service failed on this request", Outcome(code=INTERNAL, rows=0)
                )
                continue
            if letter.refused is None:
                letters[number] = letter
            else:
                replies[number] = self._mail.close(letter, told(letter.refused))
        return letters

    def _answer_safely(self, asks: Sequence[Ask]) -> list[Reply]:
        """Nothing here is sealed (any more): an envelope opens once, so what is tried again is what was inside."""
        code, detail = INTERNAL, "the service failed on this request"
        try:
            return self._answer(asks)
        except UnavailableError:
            raise
        except UpstreamError as error:
            code, detail = error.code, str(error)
            logger.warning("a batch of %d requests got no answer: %s", len(asks), error)
        except Exception:
            logger.exception("a batch of %d requests failed; answering them one by one", len(asks))
        if len(asks) == 1:
            return [error_reply(code, detail, Outcome(code=code, rows=0))]
        if self._toll is not None:
            self._toll.give_back()
        return [self._answer_safely([ask])[0] for ask in asks]

    def _answer(self, asks: Sequence[Ask]) -> list[Reply]:
        replies: dict[int, Reply] = {}
        if self._toll is not None:
            self._toll.begin()
        # 1 open: the requests
        opened = self._open(asks, replies)
        if opened:
            # 2 to 7
            progress, released = self._guarded(gather(opened, self._toll, distinct=self._distinct is not None))
            distinct = () if self._distinct is None else self._distinct.count(progress.batch, progress.refused)
            # 8 sign: the answers
            self._reply_maker.sign(opened, progress, released, replies, distinct)
            if self._distinct is not None:
                self._distinct.learn(progress.batch, progress.refused)
        return [replies[number] for number in range(len(asks))]

    def _guarded(self, batch: Batch) -> tuple[Progress, Released]:
        with self.caller_state.turn:
            # 2 to 6: as part of the model's graph where it can be, else phase by phase
            progress, released = (self._graph_form or self._numpy_form)(batch)
            self._check_outputs(progress, released)
            # 7 RECORD
            self._pipeline.record(progress, released)
        return progress, released

    def _open(self, asks: Sequence[Ask], replies: dict[int, Reply]) -> list[Opened]:
        opened = []
        for number, ask in enumerate(asks):
            try:
                request = decode_any(ask.body, ask.json_bytes, self.facts, self._named, self.limits)
                if request.outputs:
                    check_outputs(request, [name for name, _, _ in self.outputs(ask.caller)])
                opened.append(Opened(number, ask, request))
            except RequestError as error:
                replies[number] = told(error)
        return opened


def _refusal(code: str, detail: str) -> RequestError | RefusedError:
    for kind in RequestError.__subclasses__():
        if kind.code == code:
            return kind(detail)
    return RefusedError("the service refuses this request")
