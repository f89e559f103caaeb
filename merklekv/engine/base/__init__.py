"""The base: all records but the most recent, in LMDB, in key order.

One process writes it (the checkpoint process, `BaseWriter`), others read it (`Base`).  Each transaction changes records
together with their leaves and counters.  The index (keys of each bucket) follows in transactions of its own, in bucket
order, which touches each of its pages once; while the `checkpointing` mark is set, it may lack keys.

Memory of a writer: one transaction's pages, TRANSACTION_KEYS or TRANSACTION_BYTES.  Cost: a transaction syncs once.

meta
    checkpoint_lsn  8    LSN up to which the base holds the whole log
    checkpointing   8    LSN that the checkpoint in progress will reach; absent when none is
    truncation     24    versions below it are gone
    newest         24    no record has a larger version
    live            8    keys whose record is no tombstone
    dead            8    tombstones
    metadata:*      n    metadata entries
"""
