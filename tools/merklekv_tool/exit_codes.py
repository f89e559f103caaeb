"""Exit statuses of the verbs. Up to 9, but for 1 and 4, they mean what they mean for `merklekv`."""

from __future__ import annotations

import re
from typing import Final

from merklekv import exit_codes
from merklekv.errors import MerkleKVError
from merklekv_tool.errors import BackupError, DumpError, Exists, FileError

EXIT_PROBLEMS: Final = 1
EXIT_UNREACHABLE: Final = 4
EXIT_DUMP: Final = 10
EXIT_REFUSED: Final = 11
EXIT_NODE: Final = 12
EXIT_OTHER: Final = 13
EXIT_EXISTS: Final = 14
EXIT_FAULT: Final = 70  # as in sysexits.h
EXIT_INTERRUPTED: Final = exit_codes.EXIT_INTERRUPTED
EXIT_PIPE: Final = exit_codes.EXIT_PIPE
EXIT_TERMINATED: Final = 143

MEANINGS: Final = {
    exit_codes.EXIT_OK: "done, and nothing is wrong",
    EXIT_PROBLEMS: "problems, differences, or a node that is not ready; each is named",
    exit_codes.EXIT_USAGE: "a wrong argument or option",
    exit_codes.EXIT_LOCKED: "a process, most likely a node, has the directory open",
    EXIT_UNREACHABLE: "the node cannot be reached, or the connection broke",
    exit_codes.EXIT_UNWRITABLE: "a file or directory cannot be read or written, or its disk is full",
    exit_codes.EXIT_FORMAT: exit_codes.MEANINGS[exit_codes.EXIT_FORMAT],
    exit_codes.EXIT_CORRUPT: exit_codes.MEANINGS[exit_codes.EXIT_CORRUPT],
    exit_codes.EXIT_STORAGE: "the disk failed a write or a sync",
    EXIT_DUMP: "the dump or backup is damaged or cut short; the message says where",
    EXIT_REFUSED: "load left records out; each is named",
    EXIT_NODE: "the node answered with an error",
    EXIT_OTHER: "an error not named here",
    EXIT_EXISTS: "the target exists already; nothing was changed",
    EXIT_FAULT: "a fault in the tool itself",
    EXIT_INTERRUPTED: "interrupted from the keyboard",
    EXIT_PIPE: exit_codes.MEANINGS[EXIT_PIPE],
    EXIT_TERMINATED: "ended by SIGTERM, SIGQUIT or SIGXCPU, or by SIGHUP from a terminal that closes",
}

_UNKNOWN: Final = re.compile(r"(.*: ERR unknown command[^,]*).*", re.DOTALL)


def explained(error: MerkleKVError) -> str:
    """The error's message. What another server says about an unknown command is put into our words."""
    unknown = _UNKNOWN.fullmatch(str(error))
    return f"{unknown[1]}; is it a MerkleKV node, of this release?" if unknown else str(error)


def status_of(error: MerkleKVError) -> int:
    """The exit status for an error."""
    from merklekv.net.client import NodeError, Unreachable

    own: exit_codes.StatusTable = (
        (DumpError, EXIT_DUMP),
        (BackupError, EXIT_DUMP),
        (Exists, EXIT_EXISTS),
        (FileError, exit_codes.EXIT_UNWRITABLE),
        (Unreachable, EXIT_UNREACHABLE),
        (NodeError, EXIT_NODE),
    )
    return exit_codes.status_of(error, own, otherwise=EXIT_OTHER)
