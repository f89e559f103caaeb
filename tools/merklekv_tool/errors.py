"""The errors that only the tool raises. `exit_codes` has their exit statuses."""

from merklekv.errors import DirectoryLocked, MerkleKVError


class DumpError(MerkleKVError):
    """A dump is damaged or ends too early. The message has the file and the line or byte."""


class BackupError(MerkleKVError):
    """A backup is damaged, or this is no backup. The message has its name."""


class Exists(MerkleKVError):
    """The target exists already."""


class FileError(MerkleKVError):
    """A file that was named cannot be read or written."""


class LogMoved(MerkleKVError):
    """The node deleted its log faster than the tool could copy it."""


class NodeRuns(DirectoryLocked):
    """A process has the directory open, and the verb needs it closed: the port of a node is no way."""
