"""Every error that edgekit raises on purpose.

    EdgekitError                 one line: what is wrong and where; `hint`: what to do next
    ├── InputError               the user's file, flag or data is wrong
    │   ├── ProfileError         unknown profile or bad profile file
    │   ├── ModelError           not a model, or one that cannot be used
    │   ├── DataError            calibration or evaluation data does not fit
    │   └── ConfigError          a configuration file or message does not fit its schema
    ├── BundleError              a bundle is refused
    │   ├── FormatError          not a bundle, truncated, trailing bytes, unknown version
    │   ├── SignatureError       not signed by a key that is trusted here
    │   ├── DigestError          bytes differ from what was signed
    │   └── DecryptError         not sealed to this key, or ciphertext was edited
    ├── GateError                no candidate passed the gates
    ├── EngineError              an engine failed
    │   ├── EngineMissing        the engine's library is not installed
    │   └── GoldenError          the engine's answers differ from the golden samples
    ├── AuthError                not allowed, or a token that is used, unknown or expired
    └── SystemFault              the machine: full disk, busy port, no broker, missing program
        ├── TimedOut             no answer within the time that the caller gave
        └── Overloaded           an agent that serves nothing yet, or too much; trying again later helps

Command line tools print `error: <message>` and `  hint: <hint>` and exit with `exit_code`;
HTTP servers answer `http_status`. Anything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations


class EdgekitError(Exception):
    """Base of every deliberate error. `message` is one line, `hint` says what to do next."""

    exit_code = 2
    http_status = 400

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(EdgekitError):
    """The user's file, flag or data is wrong."""


class ProfileError(InputError):
    """Unknown profile or bad profile file."""


class ModelError(InputError):
    """Not a model, or one that cannot be used."""


class DataError(InputError):
    """Calibration or evaluation data does not fit the model."""


class ConfigError(InputError):
    """A configuration file or message does not fit its schema."""


class BundleError(EdgekitError):
    """A bundle is refused."""


class FormatError(BundleError):
    """Not a bundle, truncated, trailing bytes or of an unknown version."""


class SignatureError(BundleError):
    """Not signed by a key that is trusted here."""


class DigestError(BundleError):
    """Bytes differ from what was signed."""


class DecryptError(BundleError):
    """Not sealed to this key, or the ciphertext was edited."""


class GateError(EdgekitError):
    """No candidate passed the gates."""


class EngineError(EdgekitError):
    """An inference engine failed."""

    http_status = 500


class EngineMissing(EngineError):
    """The engine's library is not installed."""


class GoldenError(EngineError):
    """The engine's answers differ from the golden samples beyond tolerance."""


class AuthError(EdgekitError):
    """Not allowed, or a token that is used, unknown or expired."""

    http_status = 401


class SystemFault(EdgekitError):
    """The machine is in the way: full disk, busy port, no broker, missing program."""

    http_status = 503


class TimedOut(SystemFault):
    """No answer came within the time that the caller gave."""

    http_status = 504


class Overloaded(SystemFault):
    """An agent serves nothing yet, or too much at once: the same request may succeed later."""
