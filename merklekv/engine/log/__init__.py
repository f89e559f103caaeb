"""The commit log: every change in the order in which this node made it, on disk before anything else.

    segment     the files, their frames, and the calls that make them durable
    writer      the open end: pending entries, reserved room, frames, rotation
    reader      reads committed frames forwards
    retention   what the outbox still needs: the replication cursor, and which segments may go

A start finds the end of the log: engine/recovery.py.
The log is a sequence of segment files; the last one is open and grows by one frame for each commit (layout:
format.py).  One segment holds exactly what one memtable holds, so a checkpoint needs only sealed segments.
"""
