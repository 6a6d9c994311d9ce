"""Everything outclass raises on purpose.

OutclassError
  + UsageError       (also ValueError)   a wrong argument: class list, option, array shape, unreachable threshold
  + NotReadyError    (also RuntimeError) an object lacks what the call needs (not fitted, nothing calibrated)
  + ImageError       (also OSError)      one image could not be read; a scan turns it into a row
  + EncoderError     (also RuntimeError) an encoder is unknown, missing or incomplete
  + MismatchError    (also ValueError)   two things were made by different encoders, or a file is not what it says
  + MissingExtraError(also ImportError)  an optional part is not installed; the message holds the pip command

Every message says what was wrong, what was expected, what was got and what to do next.
"""


class OutclassError(Exception):
    """Base of every exception raised on purpose; the command line prints it without a traceback."""


class UsageError(OutclassError, ValueError):
    """A wrong argument: class list, option, array shape or a threshold that cannot be reached."""


class NotReadyError(OutclassError, RuntimeError):
    """The object lacks what the call needs, such as fitted images."""


class ImageError(OutclassError, OSError):
    """One image could not be read. A scan turns it into a verdict with ``error`` set."""


class EncoderError(OutclassError, RuntimeError):
    """An encoder is unknown, missing or incomplete."""


class MismatchError(OutclassError, ValueError):
    """Two things were made by different encoders, or a stored file is not what it says it is."""


class MissingExtraError(OutclassError, ImportError):
    """An optional part of outclass is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs the package {package}: pip install "outclass[{extra}]"')
