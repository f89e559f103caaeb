"""Exit statuses: one for each kind of failure that a script or a supervisor may treat differently.

Status 2 is what every command line uses for a mistake in its arguments, 1 is for errors without a status of their own.
Those of the verbs (merklekv_tool/exit_codes.py) mean the same, but for 1 and 4, and there are more of them.
"""

from __future__ import annotations

from merklekv import errors, interrupt

StatusTable = tuple[tuple[type[errors.MerkleKVError], int], ...]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_LOCKED = 3
EXIT_ADDRESS = 4
EXIT_UNWRITABLE = 5
EXIT_FORMAT = 6
EXIT_CORRUPT = 7
EXIT_STORAGE = 8
EXIT_SLOW_STOP = 9
EXIT_INTERRUPTED = interrupt.EXIT_INTERRUPTED
EXIT_PIPE = 141  # as shells have it

MEANINGS = {
    EXIT_OK: "stopped when asked to",
    EXIT_FAILED: "an error not named below",
    EXIT_USAGE: "a wrong flag, setting or configuration file",
    EXIT_LOCKED: "another process has the data directory open",
    EXIT_ADDRESS: "the address is in use, is not this machine's, or may not be bound",
    EXIT_UNWRITABLE: "the data directory or stdout cannot be used, a disk is full, or the machine lacks something",
    EXIT_FORMAT: "the directory is not MerkleKV's, or its format is of a later release",
    EXIT_CORRUPT: "the data is damaged; the message names the file and the way out",
    EXIT_STORAGE: "the disk failed a write or a sync while the node was running",
    EXIT_SLOW_STOP: "stopping took too long and was cut short; acknowledged writes are safe",
    EXIT_INTERRUPTED: "interrupted from the keyboard before a node or a demo began",
    EXIT_PIPE: "the reader of the output stopped reading",
}

_STATUS_OF: StatusTable = (
    (errors.DirectoryLocked, EXIT_LOCKED),
    (errors.AddressInUse, EXIT_ADDRESS),
    (errors.AddressUnavailable, EXIT_ADDRESS),
    (errors.DirectoryUnwritable, EXIT_UNWRITABLE),
    (errors.Shortage, EXIT_UNWRITABLE),
    (errors.OutputFailed, EXIT_UNWRITABLE),
    (errors.NotADataDirectory, EXIT_FORMAT),
    (errors.FormatTooNew, EXIT_FORMAT),
    (errors.Corruption, EXIT_CORRUPT),
    (errors.StorageFailed, EXIT_STORAGE),
    (errors.InvalidArgument, EXIT_USAGE),
)


def status_of(error: errors.MerkleKVError, own: StatusTable = (), otherwise: int = EXIT_FAILED) -> int:
    """The exit status for an error: by a program's `own` table, then by the common one, then `otherwise`."""
    return next((status for kind, status in (*own, *_STATUS_OF) if isinstance(error, kind)), otherwise)
