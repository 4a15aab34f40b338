"""Every error that Garrison raises on purpose.

Each class carries a `code`: stable, lower case, safe to show to a client. The message says what was expected, what was
found and what to do next; it never holds tensor values or secrets.

    GarrisonError
    |-- ConfigError                      garrison.toml or an option is wrong
    |   |-- PlaintextKeyError            an API key would go over plain HTTP beyond this machine
    |-- MissingExtraError                an optional dependency is not installed
    |-- DatasetError
    |   |-- UnknownDatasetError | DatasetUnavailableError | DatasetCorruptError
    |-- KeyFileError                     an owner's key, secret or passphrase is wrong
    |-- SealingError                     a model cannot be sealed as asked
    |   |-- UnsupportedModelError | ModelFileError | CalibrationError | TargetExistsError | WrongReportError
    |-- BundleError                      a sealed bundle must not be used
    |   |-- NoTrustedKeyError | UntrustedKeyError | SignatureFormatError | SignatureInvalidError
    |   |-- ManifestError | FormatVersionError
    |   |-- MissingFileError | UnexpectedFileError | TruncatedFileError | ExtendedFileError
    |   |-- ChangedFileError | SwappedFileError
    |-- GuardError                       a chain of defenses cannot be built
    |   |-- StateError                   what was kept of callers cannot be used
    |-- RequestError                     what a client sent is wrong (its own fault, told plainly)
    |   |-- MalformedRequestError | InputError | LimitError | SlowRequestError
    |   |-- SealedRequestError | StaleKeyError | StaleSessionError | ReplayError | SealingRequiredError
    |   |-- AuthenticationError | ForbiddenError | BudgetExhaustedError | WorkRequiredError | ThrottledError | TooFastError
    |   |-- NotFoundError | MethodError
    |-- RefusedError                     the guard refused; the client learns no more than that
    |-- InvalidAnswerError               the model's answer is not one that may leave: not finite, no probabilities, unknown class
    |-- UnavailableError                 try again later
    |   |-- FrameError                   the connection to an enclave has ended, or what came over it lies
    |-- UpstreamError                    the server that a gateway guards gave no answer that can be used
    |-- ServiceError                     what a server answered makes no sense to the client
    |   |-- ProofError                   the signature of an answer does not hold
    |   |-- AttestationError             the evidence of an enclave is not good enough; carries the whole report
    |-- IsolationError                   an enclave cannot be started as asked on this machine
    |-- LedgerError                      a ledger does not hold, or must not be written to
    |-- AuditError
    |   |-- PlanError | PreflightError | QueryBudgetError | AuditSpentError | AttackFailedError | FolderInUseError
"""

from __future__ import annotations

from typing import ClassVar


class GarrisonError(Exception):
    """Base of all errors raised on purpose; `code` is stable and safe to show."""

    code: ClassVar[str] = "internal"


class ConfigError(GarrisonError):
    code = "config.invalid"


class PlaintextKeyError(ConfigError):
    """An API key would go over plain HTTP to a host that is not this machine."""

    code = "config.plaintext_key"


class MissingExtraError(GarrisonError):
    """An optional dependency is missing; names the extra that brings it."""

    code = "extra.missing"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"the package {package!r} is needed and not installed: pip install 'garrison[{extra}]'")
        self.package = package
        self.extra = extra


class DatasetError(GarrisonError):
    code = "dataset"


class UnknownDatasetError(DatasetError):
    code = "dataset.unknown"


class DatasetUnavailableError(DatasetError):
    code = "dataset.unavailable"


class DatasetCorruptError(DatasetError):
    code = "dataset.corrupt"


class KeyFileError(GarrisonError):
    code = "key.invalid"


class SealingError(GarrisonError):
    code = "sealing"


class UnsupportedModelError(SealingError):
    code = "sealing.unsupported_model"


class ModelFileError(SealingError):
    code = "sealing.model_file"


class CalibrationError(SealingError):
    code = "sealing.calibration"


class TargetExistsError(SealingError):
    code = "sealing.target_exists"


class WrongReportError(SealingError):
    """A report from which no budget can be derived for this model."""

    code = "sealing.report"


class BundleError(GarrisonError):
    """A bundle that must not be used; `file` names the part at fault, relative to the bundle."""

    code = "bundle"

    def __init__(self, message: str, *, file: str | None = None) -> None:
        super().__init__(message if file is None else f"{file}: {message}")
        self.file = file


class NoTrustedKeyError(BundleError):
    code = "bundle.no_trusted_key"


class UntrustedKeyError(BundleError):
    code = "bundle.untrusted_key"


class SignatureFormatError(BundleError):
    code = "bundle.signature_format"


class SignatureInvalidError(BundleError):
    code = "bundle.signature_invalid"


class ManifestError(BundleError):
    code = "bundle.manifest"


class FormatVersionError(BundleError):
    code = "bundle.format_version"


class MissingFileError(BundleError):
    code = "bundle.missing_file"


class UnexpectedFileError(BundleError):
    code = "bundle.unexpected_file"


class TruncatedFileError(BundleError):
    code = "bundle.truncated_file"


class ExtendedFileError(BundleError):
    code = "bundle.extended_file"


class ChangedFileError(BundleError):
    code = "bundle.changed_file"


class SwappedFileError(BundleError):
    code = "bundle.swapped_file"


class GuardError(GarrisonError):
    code = "guard.invalid"


class StateError(GuardError):
    code = "guard.state"


class RequestError(GarrisonError):
    code = "request"


class MalformedRequestError(RequestError):
    """The message cannot be read as an Open Inference Protocol request."""

    code = "request.malformed"


class InputError(RequestError):
    """The message is well formed, but a tensor has a wrong name, dtype, shape or value."""

    code = "request.input"


class LimitError(RequestError):
    code = "request.too_large"


class SlowRequestError(RequestError):
    """The request did not arrive whole within the time that a client has for it."""

    code = "request.slow"


class SealedRequestError(RequestError):
    """A sealed envelope that cannot be opened, or holds nothing that can be read."""

    code = "request.sealed"


class StaleKeyError(RequestError):
    """Sealed to a key that is not in use (any more): attest again and seal anew."""

    code = "request.stale_key"


class StaleSessionError(RequestError):
    """Sealed within a session that the enclave does not keep (any more): begin another one."""

    code = "request.stale_session"


class ReplayError(RequestError):
    """The same sealed request was here before."""

    code = "request.replayed"


class SealingRequiredError(RequestError):
    """The owner demands sealed requests, and this one was plain."""

    code = "request.sealing_required"


class AuthenticationError(RequestError):
    code = "request.unauthenticated"


class ForbiddenError(RequestError):
    """The caller is known, and its scopes do not cover this."""

    code = "request.forbidden"


class BudgetExhaustedError(RequestError):
    code = "request.budget_exhausted"

    @staticmethod
    def told(rows: int, distinct: int, period: str) -> str:
        """For whoever has too few rows left, by whichever limit: enclaves know what is left, and not whether an operator's quota made it so."""
        different = f", {distinct} of them different" if distinct else ""
        given = f"{rows} rows{different} ({period})"
        return f"what is left to the caller, with a budget of {given}, does not cover this request"


class WorkRequiredError(RequestError):
    """The request must bring a proof of work, and this one covers too few rows, was used before, or is not there."""

    code = "request.work_required"


class ThrottledError(RequestError):
    """An alarm rings for this caller, and it has asked what it may in this minute."""

    code = "request.throttled"


class TooFastError(RequestError):
    """More requests a second than the operator allows this caller, or this model."""

    code = "request.too_fast"


class NotFoundError(RequestError):
    code = "request.not_found"


class MethodError(RequestError):
    code = "request.method"


class RefusedError(GarrisonError):
    code = "refused"


class InvalidAnswerError(GarrisonError):
    """What the model computed for this input must not be used; asking again will not help."""

    code = "answer.invalid"


class UnavailableError(GarrisonError):
    code = "unavailable"


class FrameError(UnavailableError):
    """The connection to an enclave has ended, or a frame on it lies. To a client: try again later."""


class UpstreamError(GarrisonError):
    """Trying again will not help. What that server said is not in the message: it may hold what the guard keeps back."""

    code = "upstream"


class ServiceError(GarrisonError):
    code = "service"


class ProofError(ServiceError):
    code = "service.proof"


class AttestationError(ServiceError):
    """`report` is the appraisal, a `garrison.attest.report.Report`; None where there was no evidence that could be read."""

    code = "service.attestation"

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class IsolationError(GarrisonError):
    code = "isolation"


class LedgerError(GarrisonError):
    code = "ledger"


class AuditError(GarrisonError):
    code = "audit"


class PlanError(AuditError):
    code = "audit.plan"


class PreflightError(AuditError):
    code = "audit.preflight"


class QueryBudgetError(AuditError):
    code = "audit.query_budget"


class AuditSpentError(AuditError):
    """A limit of the audit (queries, dollars, minutes) leaves no room for a trial."""

    code = "audit.spent"


class AttackFailedError(AuditError):
    """An attack ended with an error of its own, which says nothing of the service."""

    code = "audit.attack_failed"


class FolderInUseError(AuditError):
    """Another audit writes into the folder."""

    code = "audit.folder_in_use"
