"""Every error that a user can meet. Each message is one line: what is wrong, where, and what to do about it.

Every module may import this one, which imports nothing.
"""

SHOWN_SIZE_MAX = 400


def shown(value: object) -> str:
    """A value for a message: its `repr`, at most SHOWN_SIZE_MAX characters of it."""
    try:
        text = repr(value)
    except ValueError:  # an int of thousands of digits
        return "a number"
    return text if len(text) <= SHOWN_SIZE_MAX else text[:SHOWN_SIZE_MAX] + "..."


class MerkleKVError(Exception):
    """Base of all errors that MerkleKV raises on purpose."""


class DatabaseClosed(MerkleKVError):
    """The database was closed. Open the directory again."""


class InvalidArgument(MerkleKVError):
    """An argument or setting that is not allowed. Nothing was changed."""


class NotANumber(MerkleKVError):
    """The value to increment is not a signed 64-bit decimal number. Nothing was changed."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"Value for key '{key.decode(errors='replace')}' is not a valid number")


class NumberOverflow(MerkleKVError):
    """The increment would exceed the signed 64-bit range. Nothing was changed."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"increment of key '{key.decode(errors='replace')}' would overflow 64 bits, not stored")


class Shortage(MerkleKVError):
    """The machine lacks room, memory or descriptors for a while. Nothing was changed; try again later."""


class DiskFull(Shortage):
    """There is no room on disk for this write. Nothing was changed; reads work, and writes once there is room."""


class Stalled(MerkleKVError):
    """A write stall: checkpoints are behind and memory is bounded. Nothing was changed; try again."""


class StorageFailed(MerkleKVError):
    """The disk failed a write or a sync. Its content is unknown now, so the process has to stop."""


class Corruption(MerkleKVError):
    """A file is damaged. The message names the file, the position and the way out."""


class ChangesGone(MerkleKVError):
    """The log no longer has the position of a cursor of the change feed. The message says how to begin again."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}; to begin again, take the cursor of the end, read all records, then go on with the changes from "
            "that cursor"
        )
        self.reason = reason


class DirectoryLocked(MerkleKVError):
    """Another process has the data directory open."""


class DirectoryUnwritable(MerkleKVError):
    """The data directory cannot be created or written."""


class NotADataDirectory(MerkleKVError):
    """The directory has files, but not MerkleKV's."""


class FormatTooNew(MerkleKVError):
    """A later release wrote the data, in a format that this one does not know."""


class OutputFailed(MerkleKVError):
    """The output cannot be written to stdout."""


class AddressInUse(MerkleKVError):
    """Another program listens on the address."""


class AddressUnavailable(MerkleKVError):
    """The address is not this machine's, or binding it is not permitted."""
