# cython: language_level=3, wraparound=False, initializedcheck=False, cdivision=True
"""Compiled twins of the hot functions and classes.

Each has the name, the interface and the results of a Python reference, which `merklekv.core.compiled` marks and where
its contract is written. It works on the same Python objects. What is rare it leaves to methods of these.

Nothing here waits for a lock or runs without the interpreter's, but for the loops of system calls in `Sockets`.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.object cimport PyObject, PyObject_Hash
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EAGAIN, EBADF, EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

cdef extern from "Python.h":
    PyObject *PyDict_GetItemWithError(dict, object) except? NULL

cdef extern from *:
    """
    #define XXH_INLINE_ALL
    #include "xxhash.h"
    """
    void __builtin_prefetch(const void *address) nogil
    int __builtin_clzll(unsigned long long number) nogil
    bint __builtin_saddll_overflow(long long one, long long other, long long *result) nogil
    bint __builtin_ssubll_overflow(long long one, long long other, long long *result) nogil
    bint __builtin_smulll_overflow(long long one, long long other, long long *result) nogil
    ctypedef struct XXH128_hash_t:
        pass
    ctypedef struct XXH3_state_t:
        pass
    ctypedef struct XXH64_canonical_t:
        pass
    ctypedef struct XXH128_canonical_t:
        pass
    uint64_t XXH3_64bits(const void *data, size_t size) nogil
    XXH128_hash_t XXH3_128bits(const void *data, size_t size) nogil
    int XXH3_64bits_reset(XXH3_state_t *state) nogil
    int XXH3_64bits_update(XXH3_state_t *state, const void *data, size_t size) nogil
    uint64_t XXH3_64bits_digest(const XXH3_state_t *state) nogil
    int XXH3_128bits_reset(XXH3_state_t *state) nogil
    int XXH3_128bits_update(XXH3_state_t *state, const void *data, size_t size) nogil
    XXH128_hash_t XXH3_128bits_digest(const XXH3_state_t *state) nogil
    uint64_t XXH64_hashFromCanonical(const XXH64_canonical_t *source) nogil
    void XXH64_canonicalFromHash(XXH64_canonical_t *target, uint64_t hash) nogil
    void XXH128_canonicalFromHash(XXH128_canonical_t *target, XXH128_hash_t hash) nogil

cdef extern from "<sys/socket.h>":
    enum: MSG_DONTWAIT
    enum: MSG_NOSIGNAL
    ssize_t recv(int fd, void *buffer, size_t size, int flags) nogil
    ssize_t send(int fd, const void *buffer, size_t size, int flags) nogil

cdef extern from "<sys/epoll.h>":
    enum: EPOLLIN

INTERFACE = 9

ctypedef unsigned char byte

cdef inline uint64_t load64(const byte *at) noexcept nogil:
    return XXH64_hashFromCanonical(<const XXH64_canonical_t *>at)

cdef inline void store64(byte *at, uint64_t number) noexcept nogil:
    XXH64_canonicalFromHash(<XXH64_canonical_t *>at, number)

cdef inline void store32(byte *at, uint64_t number) noexcept nogil:
    at[0], at[1], at[2], at[3] = <byte>(number >> 24), <byte>(number >> 16), <byte>(number >> 8), <byte>number

cdef inline byte *data_of(bytes data) noexcept:
    return <byte *>PyBytes_AS_STRING(data)

cdef inline bytes bytes_of(const byte *start, Py_ssize_t size):
    return PyBytes_FromStringAndSize(<const char *>start, size)


# -- net/protocol/resp.py ----------------------------------------------------------------------------------------------

cdef enum:
    ARGUMENTS_MAX = 128
    BULK_BYTES_MAX = 4096
    NAMES = 64
    NAME_BYTES_MAX = 16

cdef list _names = [b""] * NAMES  # of commands that came lately, so that a name is one object whose hash is known

cdef bytes name_of(const byte *start, Py_ssize_t size):
    if not 0 < size <= NAME_BYTES_MAX:
        return bytes_of(start, size)
    cdef Py_ssize_t place = (size * 7 + start[0] * 5 + start[size - 1]) % NAMES
    cdef bytes name = <bytes>_names[place]
    if PyBytes_GET_SIZE(name) != size or memcmp(data_of(name), start, size):
        name = bytes_of(start, size)
        _names[place] = name
    return name

cdef Py_ssize_t after_header(
    const byte *data, Py_ssize_t size, Py_ssize_t at, byte kind, Py_ssize_t *number
) noexcept nogil:
    """Where a header such as `$100` ends, -1 if it is not whole or not plain; its number, below 10,000."""
    cdef Py_ssize_t total = 0, first = at + 1
    if at >= size or data[at] != kind:
        return -1
    at = first
    while at < size and at < first + 4 and c'0' <= data[at] <= c'9':
        total = total * 10 + data[at] - c'0'
        at += 1
    if at == first or at + 2 > size or data[at] != c'\r' or data[at + 1] != c'\n':
        return -1
    if data[first] == c'0' and at != first + 1:
        return -1
    number[0] = total
    return at + 2

cdef Py_ssize_t take_plain(const byte *data, Py_ssize_t size, Py_ssize_t bulk_max, list requests) except -1:
    cdef Py_ssize_t starts[ARGUMENTS_MAX]
    cdef Py_ssize_t sizes[ARGUMENTS_MAX]
    cdef Py_ssize_t taken = 0, at, count, number, length
    cdef list request
    cdef bytes part
    while True:
        at = after_header(data, size, taken, c'*', &count)
        if at < 0 or not 0 < count <= ARGUMENTS_MAX:
            return taken
        for number in range(count):
            at = after_header(data, size, at, c'$', &length)
            if at < 0 or length > bulk_max or at + length + 2 > size:
                return taken
            starts[number], sizes[number] = at, length
            at += length
            if data[at] != c'\r' or data[at + 1] != c'\n':
                return taken
            at += 2
        request = PyList_New(count)
        for number in range(count):
            if number:
                part = bytes_of(data + starts[number], sizes[number])
            else:
                part = name_of(data + starts[number], sizes[number])
            Py_INCREF(part)
            PyList_SET_ITEM(request, number, part)
        requests.append(request)
        taken = at


cdef class PlainParser:
    cdef public bint is_exact
    cdef Py_ssize_t bulk_max

    def __init__(self, Py_ssize_t bulk_bytes):
        self.is_exact = False
        self.bulk_max = min(bulk_bytes, BULK_BYTES_MAX)

    def feed(self, bytes data not None):
        cdef list requests = []
        if self.is_exact:
            return self.feed_exactly(data, requests)
        cdef Py_ssize_t taken = take_plain(data_of(data), PyBytes_GET_SIZE(data), self.bulk_max, requests)
        if taken == PyBytes_GET_SIZE(data):
            return requests
        return self.feed_exactly(data[taken:], requests)


# -- net/commands/strings.py -------------------------------------------------------------------------------------------

def bulk_each(list values not None, sessions not None):
    cdef list replies = []
    cdef Py_ssize_t number, size, digits, left, misses = 0
    cdef bytes value, reply
    cdef byte *at
    for number in range(len(values)):
        value = values[number]
        if value is None:
            replies.append(sessions[number].nil)
            misses += 1
            continue
        size = PyBytes_GET_SIZE(value)
        digits, left = 1, size
        while left > 9:
            left //= 10
            digits += 1
        reply = PyBytes_FromStringAndSize(NULL, digits + size + 5)
        at = data_of(reply)
        at[0] = c'$'
        left = size
        for place in range(digits, 0, -1):
            at[place] = <byte>(c'0' + left % 10)
            left //= 10
        at += digits + 1
        at[0], at[1] = c'\r', c'\n'
        memcpy(at + 2, data_of(value), size)
        at[size + 2], at[size + 3] = c'\r', c'\n'
        replies.append(reply)
    return replies, misses


# -- engine/record.py, engine/merkle.py --------------------------------------------------------------------------------

cdef enum:  # of a record, see engine/record.py
    FLAGS_AT = 24
    DIGEST_AT = 25
    VALUE_AT = 41
    EXPIRY_SIZE = 8
    OVERHEAD = VALUE_AT + EXPIRY_SIZE
    EXPIRY = 2
    PURGED = 4

cdef enum:  # see engine/format.py
    BUCKETS = 65536
    KEY_BYTES_MAX = 511
    ENTRY_SIZE = 7
    COUNTER_MASK = 0xFFFFFFFF
    BELOW = 256
    LEAF_SIZE = 24
    REMOTE = 0x80
    # KEYLESS_OPS:
    TRUNCATE = 7
    ORIGIN = 8
    METADATA = 9
    REPAIR = 11
    FRAME_HEADER = 40
    FRAME_PLACE = 16
    PLACE_SIZE = 14  # of RECORD_PLACE, see engine/log/segment.py
    KEY_OVERHEAD = 176  # see engine/memtable.py
    SMALL = 1024

cdef void digest(byte *target, const byte *key, Py_ssize_t key_size, const byte *record, Py_ssize_t size) noexcept nogil:
    """The digest of a record of `size` bytes, whose digest is not read."""
    cdef byte small[SMALL]
    cdef byte head[2]
    cdef XXH3_state_t state
    cdef XXH128_hash_t hash
    cdef Py_ssize_t body = size - VALUE_AT
    head[0], head[1] = <byte>(key_size >> 8), <byte>key_size
    if key_size + size <= SMALL - 2:
        memcpy(small, head, 2)
        memcpy(small + 2, key, key_size)
        memcpy(small + 2 + key_size, record, DIGEST_AT)
        memcpy(small + 2 + key_size + DIGEST_AT, record + VALUE_AT, body)
        hash = XXH3_128bits(small, 2 + key_size + DIGEST_AT + body)
    else:
        XXH3_128bits_reset(&state)
        XXH3_128bits_update(&state, head, 2)
        XXH3_128bits_update(&state, key, key_size)
        XXH3_128bits_update(&state, record, DIGEST_AT)
        XXH3_128bits_update(&state, record + VALUE_AT, body)
        hash = XXH3_128bits_digest(&state)
    XXH128_canonicalFromHash(<XXH128_canonical_t *>target, hash)


ctypedef struct Leaf:
    uint64_t high  # of the sum of digests
    uint64_t low
    uint64_t count

cdef inline void add_digest(Leaf *leaf, const byte *number) noexcept nogil:
    cdef uint64_t low = load64(number + 8)
    leaf.low += low
    leaf.high += load64(number) + (leaf.low < low)

cdef inline void take_digest(Leaf *leaf, const byte *number) noexcept nogil:
    cdef uint64_t low = load64(number + 8)
    leaf.high -= load64(number) + (leaf.low < low)
    leaf.low -= low


cdef class Leaves:
    cdef Leaf *leaves
    cdef readonly bytearray changed

    def __cinit__(self):
        self.changed = bytearray(BUCKETS)
        self.leaves = <Leaf *>calloc(BUCKETS, sizeof(Leaf))
        if self.leaves == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.leaves)

    def move(self, Py_ssize_t bucket, total, long long count):
        require_bucket(bucket, BUCKETS)
        cdef Leaf *leaf = self.leaves + bucket
        cdef bytes number = (total & ((1 << 128) - 1)).to_bytes(16, "big")
        add_digest(leaf, data_of(number))
        leaf.count += <uint64_t>count
        self.changed[bucket] = 1

    def merge(self, Leaves other not None):
        cdef Py_ssize_t bucket
        cdef byte *changed = <byte *>PyByteArray_AS_STRING(self.changed)
        cdef const byte *theirs = <const byte *>PyByteArray_AS_STRING(other.changed)
        for bucket in range(BUCKETS):
            self.leaves[bucket].low += other.leaves[bucket].low
            self.leaves[bucket].high += other.leaves[bucket].high + (
                self.leaves[bucket].low < other.leaves[bucket].low
            )
            self.leaves[bucket].count += other.leaves[bucket].count
            changed[bucket] |= theirs[bucket]

    def leaf(self, Py_ssize_t bucket):
        require_bucket(bucket, BUCKETS)
        cdef Leaf *leaf = self.leaves + bucket
        return (<object>leaf.high << 128) | (<object>leaf.low << 64) | leaf.count

    def load(self, Py_ssize_t node, bytes packed not None):
        require_bucket(node, BUCKETS // BELOW)
        if PyBytes_GET_SIZE(packed) != BELOW * LEAF_SIZE:
            raise ValueError("leaves of a wrong size")
        cdef const byte *at = data_of(packed)
        cdef Leaf *leaf = self.leaves + node * BELOW
        for _ in range(BELOW):
            leaf.high, leaf.low, leaf.count = load64(at), load64(at + 8), load64(at + 16)
            leaf += 1
            at += LEAF_SIZE
        self.changed[node * BELOW] = 1  # the digest above it is not made yet

    def pack(self, Py_ssize_t node, bytearray packed not None):
        require_bucket(node, BUCKETS // BELOW)
        if PyByteArray_GET_SIZE(packed) != BELOW * LEAF_SIZE:
            raise ValueError("leaves of a wrong size")
        cdef Py_ssize_t count = 0
        cdef byte *at = <byte *>PyByteArray_AS_STRING(packed)
        cdef byte *changed = <byte *>PyByteArray_AS_STRING(self.changed) + node * BELOW
        cdef Leaf *leaf = self.leaves + node * BELOW
        for number in range(BELOW):
            if changed[number]:
                store64(at, leaf.high)
                store64(at + 8, leaf.low)
                store64(at + 16, leaf.count)
                changed[number] = 0
                count += 1
            leaf += 1
            at += LEAF_SIZE
        return count

def count_each(leaves, list pairs not None, bint removed):
    cdef bytes number
    cdef size_t bucket
    cdef Leaf leaf
    cdef byte *at
    for key, record in pairs:
        number = exact(record)[DIGEST_AT:VALUE_AT].rjust(16, b"\0")  # shorter, if it is damaged
        bucket = bucket_of(exact(key))
        packed = leaves[bucket // BELOW]
        if type(packed) is not bytearray or PyByteArray_GET_SIZE(packed) != BELOW * LEAF_SIZE:
            raise ValueError("leaves of a wrong size")
        at = <byte *>PyByteArray_AS_STRING(packed) + bucket % BELOW * LEAF_SIZE
        leaf.high, leaf.low, leaf.count = load64(at), load64(at + 8), load64(at + 16)
        if removed:
            take_digest(&leaf, data_of(number))
            leaf.count -= 1
        else:
            add_digest(&leaf, data_of(number))
            leaf.count += 1
        store64(at, leaf.high)
        store64(at + 8, leaf.low)
        store64(at + 16, leaf.count)

cdef int require_bucket(Py_ssize_t number, Py_ssize_t end) except -1:
    if not 0 <= number < end:
        raise IndexError(number)
    return 0


# -- engine/memtable.py ------------------------------------------------------------------------------------------------

cdef enum:
    SLOTS_MIN = 64
    TOGETHER = 32  # keys whose places in memory are fetched at once: one waits for them as long as for all

    RUN = 2048  # keys that are brought in order at once, when they have come
    LONG_RUN = 16384  # keys in a run that was merged from eight

ctypedef struct Entry:
    uint32_t hash  # its lower half
    uint32_t after  # the number of the entry that came before it to its bucket; 0: none did
    PyObject *key
    PyObject *record

ctypedef struct Item:
    uint64_t head  # 8 bytes of the key, behind those that all keys have which are sorted with it
    uint32_t number

ctypedef struct Cursor:  # in a run
    size_t at
    size_t end

cdef class Records:
    """A hash table with open addressing: slots with the numbers of entries, which are in the order of arrival.

    Order costs a write little, and a reader does not wait for it: each RUN of new entries is sorted when it is whole,
    and eight of these are merged. A page comes from all runs at once. The entries of a bucket are a chain.
    """

    cdef Entry *entries
    cdef uint32_t *slots  # the number of an entry, from 1 on; 0: a free slot
    cdef uint32_t *newest  # for each bucket likewise
    cdef uint32_t *order  # numbers of entries, from 0 on: those of each run, in the order of their keys
    cdef size_t mask, count, room, ordered
    cdef bint is_ordered

    def __cinit__(self, bint is_ordered=True):
        self.is_ordered = is_ordered
        self.newest = <uint32_t *>calloc(BUCKETS if is_ordered else 1, sizeof(uint32_t))
        if self.newest == NULL:
            raise MemoryError
        self.resize(SLOTS_MIN)

    def __dealloc__(self):
        cdef size_t number
        for number in range(self.count):
            Py_DECREF(<object>self.entries[number].key)
            Py_DECREF(<object>self.entries[number].record)
        free(self.entries)
        free(self.slots)
        free(self.newest)
        free(self.order)

    cdef int resize(self, size_t slots) except -1:
        cdef size_t number, at, mask = slots - 1, room = slots // 8 * 5
        cdef Entry *entries
        cdef uint32_t *taken
        cdef uint32_t *order
        if slots > 1 << 31:
            raise MemoryError
        order = <uint32_t *>realloc(self.order, (room if self.is_ordered else 1) * sizeof(uint32_t))
        if order == NULL:
            raise MemoryError
        self.order = order
        taken = <uint32_t *>calloc(slots, sizeof(uint32_t))
        if taken == NULL:
            raise MemoryError
        entries = <Entry *>realloc(self.entries, room * sizeof(Entry))
        if entries == NULL:
            free(taken)
            raise MemoryError
        for number in range(self.count):
            at = entries[number].hash & mask
            while taken[at]:
                at = (at + 1) & mask
            taken[at] = <uint32_t>(number + 1)
        free(self.slots)
        self.entries, self.slots, self.mask, self.room = entries, taken, mask, room
        return 0

    cdef int make_room(self) except -1:
        """Lets the next `put` succeed."""
        if self.count == self.room:
            self.resize((self.mask + 1) * 2)
        if self.is_ordered and self.count - self.ordered // RUN * RUN == RUN:
            self.bring_in_order()
        return 0

    cdef Entry *find(self, bytes key, Py_hash_t hash) noexcept:
        cdef size_t at = <size_t>hash & self.mask
        cdef Entry *entry
        while self.slots[at]:
            entry = self.entries + self.slots[at] - 1
            if entry.hash == <uint32_t>hash and equal(<bytes>entry.key, key):
                return entry
            at = (at + 1) & self.mask
        return NULL

    cdef bytes found(self, bytes key):
        cdef Entry *entry = self.find(key, PyObject_Hash(key))
        return <bytes>entry.record if entry != NULL else None

    cdef int put(self, bytes key, bytes record, size_t bucket) except -1:
        cdef Py_hash_t hash = PyObject_Hash(key)
        cdef Entry *entry = self.find(key, hash)
        cdef PyObject *before
        cdef size_t at
        if entry != NULL:
            before = entry.record
            Py_INCREF(record)
            entry.record = <PyObject *>record
            Py_DECREF(<object>before)
            return 0
        self.make_room()
        at = <size_t>hash & self.mask
        while self.slots[at]:
            at = (at + 1) & self.mask
        Py_INCREF(key)
        Py_INCREF(record)
        entry = self.entries + self.count
        entry.hash, entry.key, entry.record = <uint32_t>hash, <PyObject *>key, <PyObject *>record
        self.count += 1
        self.slots[at] = <uint32_t>self.count
        if self.is_ordered:
            entry.after = self.newest[bucket]
            self.newest[bucket] = <uint32_t>self.count
        return 0

    cdef int prefetch(self, list requests, Py_ssize_t first) except -1:
        """Has the memory fetched that the next look-ups need, for the keys in the second places of requests."""
        cdef Entry *ahead[TOGETHER]
        cdef Py_hash_t hashes[TOGETHER]
        cdef Py_ssize_t number = 0, count = min(len(requests) - first, TOGETHER)
        cdef uint32_t slot
        try:
            for number in range(count):
                hashes[number] = PyObject_Hash(requests[first + number][1])
                __builtin_prefetch(self.slots + (<size_t>hashes[number] & self.mask))
        except Exception:  # of what is no request: its turn has not come yet
            count = number
        for number in range(count):
            slot = self.slots[<size_t>hashes[number] & self.mask]
            ahead[number] = self.entries + slot - 1 if slot else NULL
            __builtin_prefetch(ahead[number])
        for number in range(count):
            if ahead[number] != NULL:
                __builtin_prefetch(ahead[number].key)
                __builtin_prefetch(<char *>ahead[number].key + 32)
                __builtin_prefetch(ahead[number].record)
                __builtin_prefetch(<char *>ahead[number].record + 64)
                __builtin_prefetch(<char *>ahead[number].record + 128)
        return 0

    def get(self, key, default=None):
        cdef Entry *entry = self.find(exact(key), PyObject_Hash(exact(key)))
        return <object>entry.record if entry != NULL else default

    def __getitem__(self, key):
        record = self.found(exact(key))
        if record is None:
            raise KeyError(key)
        return record

    def __setitem__(self, key, record):
        self.put(exact(key), exact(record), bucket_of(exact(key)))

    def __contains__(self, key):
        return self.found(exact(key)) is not None

    def __len__(self):
        return self.count

    def __iter__(self):
        cdef size_t number = 0
        while number < self.count:
            yield <object>self.entries[number].key
            number += 1

    def items(self):
        cdef size_t number = 0
        while number < self.count:
            yield <object>self.entries[number].key, <object>self.entries[number].record
            number += 1

    cdef int bring_in_order(self) except -1:
        """Makes the new entries a run, and with seven runs before them one long run."""
        cdef size_t first = self.ordered // RUN * RUN, number
        if not self.is_ordered:
            raise ValueError("no order")
        if self.ordered == self.count:
            return 0
        for number in range(self.ordered, self.count):
            self.order[number] = <uint32_t>number
        self.merge_stretches(self.ordered, self.count - self.ordered, 1)
        if first < self.ordered:
            self.merge_stretches(first, self.count - first, self.ordered - first)
        if not self.count % LONG_RUN:
            self.merge_stretches(self.count - LONG_RUN, LONG_RUN, RUN)
        self.ordered = self.count
        return 0

    cdef int merge_stretches(self, size_t first, size_t count, size_t width) except -1:
        """Makes one of stretches in order, of `width` entries each, the last one shorter."""
        cdef Item *items = <Item *>malloc(2 * count * sizeof(Item))
        cdef Item *source = items
        cdef Item *target
        cdef Item *one
        cdef Item *other
        cdef size_t number, at, middle, end, shared = KEY_BYTES_MAX
        cdef bytes key, least
        if items == NULL:
            raise MemoryError
        target = items + count
        least = self.key_at(first)
        for number in range(count):
            key = self.key_at(first + number)
            shared = min(shared, <size_t>PyBytes_GET_SIZE(key))
            if memcmp(data_of(key), data_of(least), shared):
                at = 0
                while data_of(key)[at] == data_of(least)[at]:
                    at += 1
                shared = at
        for number in range(count):
            items[number].number = self.order[first + number]
            items[number].head = head_of(self.key_at(first + number), shared)
        while width < count:
            at = 0
            while at < count:
                middle, end = min(at + width, count), min(at + 2 * width, count)
                one, other = source + at, source + middle
                for number in range(at, end):
                    if other == source + end or (one != source + middle and not self.is_below(other, one)):
                        target[number] = one[0]
                        one += 1
                    else:
                        target[number] = other[0]
                        other += 1
                at = end
            source, target = target, source
            width *= 2
        for number in range(count):
            self.order[first + number] = source[number].number
        free(items)
        return 0

    cdef inline bytes key_at(self, size_t place):
        return <bytes>self.entries[self.order[place]].key

    cdef inline bint is_below(self, Item *one, Item *other) noexcept:
        if one.head != other.head:
            return one.head < other.head
        return below(<bytes>self.entries[one.number].key, <bytes>self.entries[other.number].key)

    def prepare(self):
        return True

    def group(self):
        return True

    def bucket(self, Py_ssize_t bucket):
        require_bucket(bucket, BUCKETS if self.is_ordered else 0)
        cdef list keys = []
        cdef uint32_t number = self.newest[bucket]
        while number:
            keys.append(<object>self.entries[number - 1].key)
            number = self.entries[number - 1].after
        return keys

    def items_from(self, bytes low not None, bytes end, Py_ssize_t limit):
        cdef list items = []
        cdef size_t first = 0, last, middle, count = 0
        cdef Entry *entry
        self.bring_in_order()
        cdef Cursor *cursors = <Cursor *>malloc((self.count // LONG_RUN + LONG_RUN // RUN) * sizeof(Cursor))
        if cursors == NULL:
            raise MemoryError
        try:
            while first < self.count:
                last = first + LONG_RUN
                if last > self.count:
                    last = min(first + RUN, self.count)
                cursors[count].end = last
                cursors[count].at, first = first, last
                while cursors[count].at < last:
                    middle = (cursors[count].at + last) // 2
                    if below(self.key_at(middle), low):
                        cursors[count].at = middle + 1
                    else:
                        last = middle
                count += cursors[count].at < cursors[count].end
            for first in range(count, 0, -1):
                self.sift_down(cursors, first - 1, count)
            while count and len(items) < limit:
                entry = self.entries + self.order[cursors[0].at]
                if end is not None and not below(<bytes>entry.key, end):
                    break
                items.append((<object>entry.key, <object>entry.record))
                cursors[0].at += 1
                if cursors[0].at == cursors[0].end:
                    count -= 1
                    cursors[0] = cursors[count]
                self.sift_down(cursors, 0, count)
        finally:
            free(cursors)
        return items

    cdef void sift_down(self, Cursor *heap, size_t at, size_t count) noexcept:
        """Restores the heap, least key first, in which the cursor at `at` may have too large a key."""
        cdef size_t least
        while 2 * at + 1 < count:
            least = 2 * at + 1
            if least + 1 < count and below(self.key_at(heap[least + 1].at), self.key_at(heap[least].at)):
                least += 1
            if not below(self.key_at(heap[least].at), self.key_at(heap[at].at)):
                return
            heap[at], heap[least] = heap[least], heap[at]
            at = least

cdef inline size_t bucket_of(bytes key) noexcept:
    return XXH3_64bits(data_of(key), PyBytes_GET_SIZE(key)) >> 48

cdef inline uint64_t head_of(bytes key, size_t skipped) noexcept:
    cdef byte part[8]
    memset(part, 0, 8)
    memcpy(part, data_of(key) + skipped, min(<size_t>PyBytes_GET_SIZE(key) - skipped, 8))
    return load64(part)

cdef inline bint below(bytes one, bytes other) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(one), other_size = PyBytes_GET_SIZE(other)
    cdef int order = memcmp(data_of(one), data_of(other), min(size, other_size))
    return order < 0 or (not order and size < other_size)

cdef inline bint equal(bytes one, bytes other) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(one)
    return size == PyBytes_GET_SIZE(other) and not memcmp(data_of(one), data_of(other), size)

cdef inline bytes exact(data):
    """Bytes, whose hash is that of bytes."""
    if type(data) is bytes:
        return <bytes>data
    if not isinstance(data, bytes):
        raise TypeError("keys and records are bytes")
    return bytes.__new__(bytes, data)


# -- engine/put.py -----------------------------------------------------------------------------------------------------

cdef bytes older(table, bytes key, Records kept):
    """`Table.older`; with what the base has kept, the same for a client."""
    cdef bytes record
    for memtable in table.frozen:
        record = (<Records?>memtable.records).found(key)
        if record is not None:
            return record
    if kept is None:
        record = table.base.get(key)
    else:
        record = kept.found(key)
        if record is None:
            record = table.base.read(key)
    if record is not None and record < <bytes?>table.truncation:
        return None
    return record


def put_each(table, int op, items, bytes flags not None, bytes expiry not None, bint made, bint urgent):
    log, clock, active = table.log, table.clock, table.active
    cdef Records records = active.records
    cdef list pending = log.pending
    cdef Leaves leaves = table.tree.leaves
    cdef byte *changed = <byte *>PyByteArray_AS_STRING(leaves.changed)
    cdef bytes later = table.later, writer = clock.writer
    cdef Py_ssize_t room = log.urgent_room if urgent else log.room, size = log.pending_size
    cdef Py_ssize_t count = 0, grown = 0, live = 0, value_max = table.max_value_size
    cdef byte flag = data_of(flags)[0], old_flag
    cdef uint64_t timestamp = 0 if made else clock.now(), counter = clock.counter
    cdef Py_ssize_t before_value = 0, expiry_size = PyBytes_GET_SIZE(expiry), key_size, value_size, record_size, needed
    cdef bytes key, value, record, old, entry, before
    cdef bint in_active
    cdef byte *at
    cdef Leaf *leaf
    cdef list ahead = items if type(items) is list else []
    if made:
        before_value = OVERHEAD
    elif flag == EXPIRY and not expiry_size:
        before_value = EXPIRY_SIZE
    try:
        for _, item_key, item_value in items:
            if ahead and not count % TOGETHER:
                records.prefetch(ahead, count)
            key, value = exact(item_key), exact(item_value)
            key_size, value_size = PyBytes_GET_SIZE(key), PyBytes_GET_SIZE(value)
            if not 0 < key_size <= KEY_BYTES_MAX or value_size > value_max + before_value:
                table.require_sizes(key, value[before_value:])
            leaf = leaves.leaves + bucket_of(key)
            __builtin_prefetch(leaf)
            old = records.found(key)
            in_active = old is not None
            if not in_active:
                old = older(table, key, None)
            if old is not None and PyBytes_GET_SIZE(old) < VALUE_AT:
                old = old[:DIGEST_AT] + bytes(VALUE_AT - PyBytes_GET_SIZE(old)) + old[DIGEST_AT:]  # damaged
            if made:
                record = value
                if value_size < VALUE_AT:
                    raise ValueError("no record")
                flag = data_of(record)[FLAGS_AT]
            else:
                record = PyBytes_FromStringAndSize(NULL, VALUE_AT + expiry_size + value_size)
                at = data_of(record)
                counter = (counter + 1) & COUNTER_MASK
                store64(at, timestamp)
                memcpy(at + 8, data_of(writer), 12)
                store32(at + 20, counter)
                if old is not None and memcmp(at, data_of(old), FLAGS_AT) <= 0:
                    if not table.is_corrupt_version(key, old):
                        clock.counter = counter
                        before = clock.after(old)
                        memcpy(at, data_of(before), FLAGS_AT)
                        counter = clock.counter
                at[FLAGS_AT] = flag
                memcpy(at + VALUE_AT, data_of(expiry), expiry_size)
                memcpy(at + VALUE_AT + expiry_size, data_of(value), value_size)
                digest(at + DIGEST_AT, data_of(key), key_size, at, PyBytes_GET_SIZE(record))
            record_size = PyBytes_GET_SIZE(record)
            needed = size + ENTRY_SIZE + key_size + record_size
            if needed > room:
                log.reserve(needed, urgent)
                room = log.urgent_room if urgent else log.room
            entry = PyBytes_FromStringAndSize(NULL, ENTRY_SIZE + key_size + record_size)
            at = data_of(entry)
            at[0], at[1], at[2] = <byte>op, <byte>(key_size >> 8), <byte>key_size
            store32(at + 3, record_size)
            memcpy(at + ENTRY_SIZE, data_of(key), key_size)
            memcpy(at + ENTRY_SIZE + key_size, data_of(record), record_size)
            records.make_room()
            pending.append(entry)
            size = needed
            count += 1
            records.put(key, record, leaf - leaves.leaves)
            changed[leaf - leaves.leaves] = 1
            add_digest(leaf, data_of(record) + DIGEST_AT)
            if old is None:
                leaf.count += (flag & PURGED) == 0
                if not flag:
                    live += 1
                elif flag == EXPIRY and record[VALUE_AT:OVERHEAD] >= later:
                    live += 1
                    active.expiries.new.append(key)
                else:
                    table.count(key, record, 1)
            else:
                take_digest(leaf, data_of(old) + DIGEST_AT)
                old_flag = data_of(old)[FLAGS_AT]
                if flag or old_flag:
                    before = old[VALUE_AT:OVERHEAD]
                    if flag == EXPIRY and old_flag == EXPIRY and before >= later and record[VALUE_AT:OVERHEAD] >= later:
                        if not in_active or record[VALUE_AT:OVERHEAD] < before:
                            active.expiries.new.append(key)
                    else:
                        leaf.count += <uint64_t>((old_flag & PURGED) != 0) - <uint64_t>((flag & PURGED) != 0)
                        table.count(key, old, -1)
                        table.count(key, record, 1)
            if in_active:
                grown += record_size - PyBytes_GET_SIZE(old)
            else:
                grown += key_size + record_size + KEY_OVERHEAD
    finally:
        clock.counter = counter
        log.pending_size = size
        log.appended += count
        if op < REMOTE:
            log.sequence += count
        active.size += grown
        table.live_count += live


def get_each(table, list requests not None, Py_ssize_t room):
    cdef list values = []
    cdef Records records = table.records, kept = None
    cdef bytes now = b"", key, record, value
    cdef Py_ssize_t number
    cdef byte flag
    cdef bint is_locked = False
    lock = table.lock
    try:
        for number in range(len(requests)):
            if room < 0:
                break
            if not number % TOGETHER:
                records.prefetch(requests, number)
                if kept is not None:
                    kept.prefetch(requests, number)
            key = exact(requests[number][1])
            record = records.found(key)
            if record is None and 0 < len(key) <= KEY_BYTES_MAX:
                if not is_locked:  # from here on
                    lock.acquire()
                    is_locked = True
                    records, kept = table.active.records, table.base.kept
                    kept.prefetch(requests, number)
                    record = records.found(key)
                if record is None:
                    record = older(table, key, kept)
            if record is None:
                value = None
            elif PyBytes_GET_SIZE(record) < VALUE_AT:
                value = table.get(key)  # damaged
            else:
                flag = data_of(record)[FLAGS_AT]
                if not flag:
                    value = bytes_of(data_of(record) + VALUE_AT, PyBytes_GET_SIZE(record) - VALUE_AT)
                elif flag == EXPIRY and PyBytes_GET_SIZE(record) < OVERHEAD:
                    value = table.get(key)  # damaged
                elif flag == EXPIRY:
                    now = now or table.packed_now()
                    value = record[OVERHEAD:] if record[VALUE_AT:OVERHEAD] > now else None
                else:
                    value = None
            values.append(value)
            if value is not None:
                room -= PyBytes_GET_SIZE(value)
    finally:
        if is_locked:
            lock.release()
    return values


def sums(table, keys, long long amount, list totals not None):
    cdef Records records = table.active.records
    cdef bytes key, old, text
    cdef long long number
    for item in keys:
        key = exact(item)
        old = records.found(key)
        if old is None or PyBytes_GET_SIZE(old) < VALUE_AT or data_of(old)[FLAGS_AT]:
            old = table.shown(key)
        if old is None:
            number = 0
        elif data_of(old)[FLAGS_AT] or not read_number(
            data_of(old) + VALUE_AT, PyBytes_GET_SIZE(old) - VALUE_AT, &number
        ):
            return
        if __builtin_saddll_overflow(number, amount, &number):
            return
        text = number_text(number)
        totals.append(number)
        yield None, key, text


cdef bint read_number(const byte *text, Py_ssize_t size, long long *number) noexcept nogil:
    """`strict_integer`."""
    cdef bint is_negative = size > 1 and text[0] == c'-'
    cdef Py_ssize_t at = is_negative
    number[0] = 0
    if not 1 <= size - at <= 19 or (text[at] == c'0' and size > 1):
        return False
    for at in range(at, size):
        if not c'0' <= text[at] <= c'9':
            return False
        if __builtin_smulll_overflow(number[0], 10, number) or __builtin_ssubll_overflow(
            number[0], text[at] - c'0', number
        ):
            return False  # it is summed up below zero, where there is one number more
    return is_negative or not __builtin_ssubll_overflow(0, number[0], number)

cdef bytes number_text(long long number):
    cdef char text[24]
    return bytes_of(<byte *>text, snprintf(text, 24, "%lld", number))


# -- engine/log/segment.py ---------------------------------------------------------------------------------------------

def pack_frame(lsn, position, synced, sequence, local_count, entry_count, list entries not None):
    cdef Py_ssize_t size = 0
    cdef byte place[FRAME_PLACE]
    cdef XXH3_state_t state
    cdef bytes entry, frame
    for entry in entries:
        size += len(entry)  # which refuses None
    frame = PyBytes_FromStringAndSize(NULL, FRAME_HEADER + size)
    cdef byte *head = data_of(frame)
    cdef byte *at = head + FRAME_HEADER
    for entry in entries:
        memcpy(at, data_of(entry), PyBytes_GET_SIZE(entry))
        at += PyBytes_GET_SIZE(entry)
    memcpy(head, b"MKVF", 4)
    store32(head + 4, size)
    store64(head + 8, synced)
    store64(head + 16, sequence)
    store32(head + 24, local_count)
    store32(head + 28, entry_count)
    store64(place, lsn)
    store64(place + 8, position)
    XXH3_64bits_reset(&state)
    XXH3_64bits_update(&state, place, FRAME_PLACE)
    XXH3_64bits_update(&state, head, FRAME_HEADER - 8)
    XXH3_64bits_update(&state, head + FRAME_HEADER, size)
    store64(head + 32, XXH3_64bits_digest(&state))
    return frame


def note_each(data, Py_ssize_t at, Py_ssize_t end, unsigned short index, Records places not None):
    cdef list others = []
    cdef Py_buffer buffer
    cdef const byte *entry
    cdef Py_ssize_t key_size
    cdef uint32_t record_size
    cdef byte place[PLACE_SIZE]
    cdef bytes key
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        if at < 0 or end > buffer.len:
            raise IndexError(at, end)
        while at < end:
            entry = <const byte *>buffer.buf + at
            key_size = record_size = 0
            if at + ENTRY_SIZE <= end:
                key_size = entry[1] << 8 | entry[2]
                record_size = <uint32_t>entry[3] << 24 | entry[4] << 16 | entry[5] << 8 | entry[6]
            if ENTRY_SIZE + <uint64_t>key_size + record_size > <uint64_t>(end - at):
                raise ValueError("an entry reaches beyond its frame")
            key = bytes_of(entry + ENTRY_SIZE, key_size)
            if (entry[0] & ~REMOTE) in (TRUNCATE, ORIGIN, METADATA, REPAIR):
                others.append((entry[0], key, bytes_of(entry + ENTRY_SIZE + key_size, record_size)))
            else:
                place[0], place[1] = <byte>(index >> 8), <byte>index
                store64(place + 2, at + ENTRY_SIZE + key_size)
                store32(place + 10, record_size)
                places.put(key, bytes_of(place, PLACE_SIZE), bucket_of(key))
            at += ENTRY_SIZE + key_size + record_size
    finally:
        PyBuffer_Release(&buffer)
    return others


# -- histogram.py ------------------------------------------------------------------------------------------------------

cdef enum:
    DURATIONS = 40


cdef class Durations:
    cdef readonly double seconds
    cdef long long _counts[DURATIONS]

    def observe(self, double seconds, long long count=1):
        cdef double microseconds = seconds * 1e6
        cdef uint64_t whole = 0
        cdef int number = 0
        if microseconds >= 1:
            whole = <uint64_t>microseconds if microseconds < 1e18 else 1 << 60
            number = 64 - __builtin_clzll(whole)
        self._counts[number if number < DURATIONS else DURATIONS - 1] += count
        self.seconds += seconds * count

    def counts(self):
        cdef Py_ssize_t at
        return [self._counts[at] for at in range(DURATIONS)]

    def add(self, list counts not None, double seconds):
        cdef Py_ssize_t at
        if len(counts) != DURATIONS:
            raise IndexError("one count for each bucket")
        for at in range(DURATIONS):
            self._counts[at] += <long long>counts[at]
        self.seconds += seconds


# -- net/tick.py -------------------------------------------------------------------------------------------------------

cdef enum:
    EACH = 1024  # connections at a time
    GATHERED_MAX = 128  # see net/tick.py
    ALIKE_BYTES = 1 << 20
    FAILED = -2  # in the place of a descriptor

cdef class Channel:
    cdef public object entry, feed, find, last_active, replies
    cdef public int fd
    cdef public bint needs_attention
    cdef public Py_ssize_t pushed_bytes, unsent_bytes

    def __init__(self):
        self.fd = -1
        self.last_active = 0.0
        self.replies = []

cdef class Sockets:
    cdef byte *buffer
    cdef Py_ssize_t buffer_size

    def __cinit__(self, Py_ssize_t buffer_bytes):
        self.buffer_size = buffer_bytes
        self.buffer = <byte *>malloc(buffer_bytes)
        if self.buffer == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.buffer)

    def read_each(self, list events not None, dict connections not None, Py_ssize_t share, now,
                  dict batches not None, list pipelines not None, list odd not None, list ended not None):
        cdef list ready = []
        cdef PyObject *found
        cdef Py_ssize_t received = 0, done = 0
        for event in events:
            found = PyDict_GetItemWithError(connections, (<tuple?>event)[0])
            if found == NULL or <int>(<tuple>event)[1] != EPOLLIN or (<Channel?><object>found).needs_attention:
                odd.append(event)
            else:
                ready.append(<object>found)
        while done < len(ready):
            done, received = self._read_some(ready, done, received, share, now, batches, pipelines, ended)
        return received

    cdef (Py_ssize_t, Py_ssize_t) _read_some(
        self, list ready, Py_ssize_t first, Py_ssize_t received, Py_ssize_t share, now,
        dict batches, list pipelines, list ended
    ):
        cdef int fds[EACH]
        cdef Py_ssize_t sizes[EACH]
        cdef Py_ssize_t number, got, count = min(len(ready) - first, EACH, self.buffer_size // max(share, 1))
        cdef byte *at = self.buffer
        cdef byte *start
        cdef Channel connection
        if count < 1:
            raise ValueError("the buffer is smaller than one share")
        for number in range(count):
            fds[number] = (<Channel>ready[first + number]).fd
        with nogil:
            for number in range(count):
                got = recv(fds[number], at, share, MSG_DONTWAIT)
                while got < 0 and errno == EINTR:
                    got = recv(fds[number], at, share, MSG_DONTWAIT)
                sizes[number] = got if got >= 0 else -errno
                at += max(got, 0)
        at = self.buffer
        for number in range(count):
            connection, got, start = <Channel>ready[first + number], sizes[number], at
            if got == -EAGAIN:
                continue
            at += max(got, 0)  # before anything can fail
            try:
                if got > 0:
                    connection.last_active = now
                    data = bytes_of(start, got)
                    received += got
                    gather(connection, connection.feed(data), batches, pipelines)
                elif got == 0:
                    ended.append((connection, None))
                else:
                    raise OSError(-got, "recv")
            except Exception as problem:
                ended.append((connection, problem))
        return first + count, received

    def send_each(self, list connections not None, list looks not None):
        cdef Py_ssize_t given = 0, first = 0
        while first < len(connections):
            given += self._send_some(connections, first, looks)
            first += EACH
        return given

    cdef Py_ssize_t _send_some(self, list connections, Py_ssize_t first, list looks) except -1:
        cdef int fds[EACH]
        cdef const byte *starts[EACH]
        cdef Py_ssize_t sizes[EACH]
        cdef Py_ssize_t sent[EACH]
        cdef Py_ssize_t number, count = min(len(connections) - first, EACH), given = 0
        cdef list texts = [b""] * count  # which must live as long as what points into them
        cdef Channel connection
        for number in range(count):
            connection = <Channel?>connections[first + number]
            fds[number] = -1
            try:
                replies = connection.replies
                if replies:
                    text = texts[number] = replies[0] if len(replies) == 1 else b"".join(replies)
                    given += len(text)
                    replies.clear()
                    connection.pushed_bytes = 0
                    if connection.unsent_bytes:
                        connection.keep(text)
                    else:
                        if not isinstance(text, bytes):
                            raise TypeError("replies are bytes")
                        starts[number], sizes[number] = data_of(<bytes>text), len(text)
                        fds[number] = connection.fd
                        if fds[number] < 0:
                            raise OSError(EBADF, "send")
            except Exception as problem:
                fds[number] = FAILED
                looks.append((connection, problem))
        with nogil:
            for number in range(count):
                if fds[number] >= 0:
                    sent[number] = send(fds[number], starts[number], sizes[number], MSG_DONTWAIT | MSG_NOSIGNAL)
                    while sent[number] < 0 and errno == EINTR:
                        sent[number] = send(fds[number], starts[number], sizes[number], MSG_DONTWAIT | MSG_NOSIGNAL)
                    if sent[number] < 0:
                        sent[number] = -errno
        for number in range(count):
            if fds[number] == FAILED:
                continue
            connection = <Channel?>connections[first + number]
            try:
                if fds[number] >= 0 and sent[number] != sizes[number]:
                    if sent[number] >= 0:
                        connection.keep(memoryview(texts[number])[sent[number]:])
                    elif sent[number] == -EAGAIN:
                        connection.keep(texts[number])
                    else:
                        raise OSError(-sent[number], "send")
                if connection.needs_attention:
                    looks.append((connection, None))
            except Exception as problem:
                looks.append((connection, problem))
        return given

cdef int gather(Channel connection, list requests, dict batches, list pipelines) except -1:
    cdef PyObject *found
    cdef Py_ssize_t count = len(requests)
    if not count:
        return 0
    entry = connection.find(requests[0][0])
    if entry is None or not entry.batches or count > GATHERED_MAX or count_alike(requests, 0, count) < count:
        pipelines.append((connection, requests))
        return 0
    found = PyDict_GetItemWithError(batches, entry)
    if found == NULL:
        batches[entry] = ([connection] * count, requests)
        return 0
    senders, together = <list>(<tuple>found)[0], <list>(<tuple>found)[1]
    together.extend(requests)
    try:
        senders.extend([connection] * count)
    except BaseException:
        del together[len(senders):]  # or all that follow would be answered to another client
        raise
    return 0


def answer_each(entry, list connections not None, list replies not None, list answered not None):
    cdef Py_ssize_t size = 0, number
    cdef Channel connection
    for number in range(min(len(connections), len(replies))):
        connection, reply = <Channel?>connections[number], replies[number]
        given = connection.replies
        if not given:
            answered.append(connection)
        if type(given) is list:
            (<list>given).append(reply)
        else:
            given.append(reply)
        connection.entry = entry
        size += len(reply)
    return size


def alike(list requests not None, Py_ssize_t first, Py_ssize_t most):
    if not 0 <= first < len(requests):
        raise IndexError(first)
    return requests[first:first + count_alike(requests, first, most)]

cdef Py_ssize_t count_alike(list requests, Py_ssize_t first, Py_ssize_t most) except -1:
    cdef Py_ssize_t count = 0, size = 0
    one = requests[first]
    name, parts = one[0], len(one)
    for number in range(first, min(len(requests), first + most)):
        request = requests[number]
        if len(request) != parts or (request[0] is not name and request[0] != name):
            break
        size += len(request[parts - 1])
        if size > ALIKE_BYTES and count:
            break
        count += 1
    return count
