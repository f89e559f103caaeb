"""The commit log: every change in the order in which this node made it, on disk before anything else.

    segment     the files and their frames; reads one file
    disk        the system calls that make files and names durable
    writer      the open end: pending entries, reserved room, frames, rotation
    recovery    finds the end after a crash, and reads back what the base lacks
    reader      reads committed frames forwards
    retention   what the outbox still needs: the replication cursor, and which segments may go

The log is a sequence of segment files; the last one is open and grows by one frame for each commit (layout:
format.py).  One segment holds exactly what one memtable holds, so a checkpoint needs only sealed segments.
"""
