"""Every error a user can meet.

This module is the bottom of the house: it imports nothing and everything may import it.  Each message is one line that
says what is wrong, where, and what to do, so that it can be printed as it is.
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


class InvalidArgument(MerkleKVError):
    """A key, value or amount outside what the engine stores.  Nothing was changed."""


class NotANumber(MerkleKVError):
    """An increment met a value that is not a signed 64-bit decimal number.  Nothing was changed."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"Value for key '{key.decode(errors='replace')}' is not a valid number")
        self.key = key


class NumberOverflow(MerkleKVError):
    """An increment would leave the signed 64-bit range.  Nothing was changed."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"increment of key '{key.decode(errors='replace')}' would overflow 64 bits, not stored")
        self.key = key


class Shortage(MerkleKVError):
    """The machine is short of something for now: room, memory, descriptors.  Nothing was changed; ask again later."""


class DiskFull(Shortage):
    """There is no room on disk for this write.  Nothing was changed; reads go on, and writes once there is room."""


class Stalled(MerkleKVError):
    """Merging is behind and memory is bounded, so writes wait.  Nothing was changed; ask again."""


class StorageFailed(MerkleKVError):
    """The disk refused a write or a sync.  What it holds is unknown, so the process has to stop."""


class Corruption(MerkleKVError):
    """A file holds what it cannot hold.  The message names the file, the position and the way out."""


class DirectoryLocked(MerkleKVError):
    """Another process has the data directory open."""


class DirectoryUnwritable(MerkleKVError):
    """The data directory cannot be created or written."""


class NotADataDirectory(MerkleKVError):
    """The directory holds something, but not MerkleKV's data."""


class FormatTooNew(MerkleKVError):
    """The data was written by a later release, in a format that this one does not know."""


class OutputFailed(MerkleKVError):
    """What was to be printed cannot be written to stdout."""


class AddressInUse(MerkleKVError):
    """Another program listens on the address."""


class AddressUnavailable(MerkleKVError):
    """The address is not one of this machine's, or may not be bound."""
