# cython: nonecheck=False
# (As in `_holds`: some of what is looked at may be dead, and is not to be counted for a check.)
"""Looking at what is held, from the oldest on: all at once, or in portions.

While messages are looked at no memory is made, so nobody's code runs and none of them goes; what is told of them comes after.
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from ._holds cimport HoldTable, next_in_bucket
from ._message cimport HELD, HoldLists, Message, TimeoutBucket, message_at
from .loop._list cimport first, is_empty

cdef extern from "Python.h":
    PyObject *Py_None
    int PyUnicode_Compare(PyObject *, PyObject *) noexcept
    Py_ssize_t references "Py_REFCNT"(PyObject *) noexcept  # of one that may be dead: no `object`, which would be counted


cdef list oldest(HoldTable table, Py_ssize_t limit, str plugin, str hook):
    """Held messages, oldest first: at most `limit`, of one plugin or hook where these are not None, as tuples of message,
    plugin, hook and when the hold began. O(limit x log of the timeouts), and as much again for what is filtered out."""
    cdef Py_ssize_t most = <Py_ssize_t>table.lists.steps.held
    cdef Py_ssize_t found = 0
    cdef PyObject **messages
    if limit >= 0 and limit < most:
        most = limit
    if most == 0:
        return []
    messages = <PyObject **>malloc(most * sizeof(PyObject *))
    if messages == NULL:
        raise MemoryError()
    found = collect_oldest(&table.lists, messages, most, <PyObject *>plugin, <PyObject *>hook)
    if found < 0:
        free(messages)
        raise MemoryError()
    return described(messages, found, None)


cdef dict oldest_of_each(HoldTable table, Py_ssize_t among):
    """By (plugin, hook), when the oldest hold began, as far as it is one of so many oldest ones."""
    cdef dict found = {}
    for _, plugin, hook, since in oldest(table, among, None, None):
        found.setdefault((plugin, hook), since)
    return found


cdef void begin_scan(HoldTable table, uint64_t until, Py_ssize_t most) noexcept:
    """Of what is held since `until` or before, the first `most` of each bucket that are wanted; -1: all. There is one scan
    at a time: whoever began another one before begins again."""
    table.scanned_until = until
    table.scanned_most = most
    scan_bucket(table, table.lists.buckets)


cdef void scan_bucket(HoldTable table, TimeoutBucket *bucket) noexcept:
    """Go on with this one; NULL: the scan is over."""
    table.scanned = bucket
    table.scanned_left = table.scanned_most
    table.lists.cursor = NULL if bucket == NULL else bucket.held.ends.next


cdef list scan(HoldTable table, Py_ssize_t steps, str plugin, object match):
    """Those of the next `steps` held messages, bucket by bucket, that the plugin holds and that `match` is true for, where
    these are not None: as `oldest` has them. None when the scan is over. Its place moves on as messages come and go."""
    cdef Py_ssize_t found = 0
    cdef PyObject **messages
    cdef PyObject *each
    if table.scanned == NULL:
        return None
    messages = <PyObject **>malloc(steps * sizeof(PyObject *))
    if messages == NULL:
        raise MemoryError()
    while steps > 0 and table.scanned != NULL:
        steps -= 1
        each = message_at(table.lists.cursor)
        if (table.lists.cursor == &table.scanned.held.ends or table.scanned_left == 0
                or (<Message>each).since > table.scanned_until):
            scan_bucket(table, table.scanned.next)
            continue
        table.lists.cursor = table.lists.cursor.next
        if is_wanted(each, <PyObject *>plugin, Py_None):
            Py_INCREF(<Message>each)
            messages[found] = each
            found += 1
            table.scanned_left -= 1
    return described(messages, found, match)


cdef list described(PyObject **messages, Py_ssize_t count, object match):
    """As tuples of message, plugin, hook and since when it is held: those that `match` is true for, unless it is None. Frees
    `messages`, and steals the references in it."""
    cdef Py_ssize_t index
    cdef list result = []
    try:
        for index in range(count):  # now memory may be made: by that a message may go on, and then it is left out
            if match is not None and not match(<Message>messages[index]) or (<Message>messages[index]).state != HELD:
                continue
            by = <str>(<Message>messages[index]).entry.plugin
            where = <str>(<Message>messages[index]).entry.hook
            since = (<Message>messages[index]).since
            result.append((<Message>messages[index], by, where, since))
    finally:
        for index in range(count):
            Py_DECREF(<Message>messages[index])
        free(messages)
    return result


# -------------------------------------------------------------------------------------------------------------- By age

cdef inline bint is_wanted(PyObject *message, PyObject *plugin, PyObject *hook) noexcept:
    return (references(message) > 0 and (<Message>message).state == HELD
            and (plugin == Py_None or PyUnicode_Compare((<Message>message).entry.plugin, plugin) == 0)
            and (hook == Py_None or PyUnicode_Compare((<Message>message).entry.hook, hook) == 0))


cdef void sift_down(PyObject **heap, Py_ssize_t count, Py_ssize_t place) noexcept:
    """Put heap[place] where it belongs in a binary heap by `since`."""
    cdef PyObject *moved = heap[place]
    cdef Py_ssize_t child = 2 * place + 1
    while child < count:
        if child + 1 < count and (<Message>heap[child + 1]).since < (<Message>heap[child]).since:
            child += 1
        if (<Message>moved).since <= (<Message>heap[child]).since:
            break
        heap[place] = heap[child]
        place = child
        child = 2 * place + 1
    heap[place] = moved


cdef Py_ssize_t collect_oldest(
        HoldLists *lists, PyObject **messages, Py_ssize_t most, PyObject *plugin, PyObject *hook) noexcept:
    """Merge the buckets, each of which is in order, by a heap of their heads. How many were found, each with a reference; -1:
    there is no memory. No Python code runs."""
    cdef Py_ssize_t count = 0
    cdef Py_ssize_t found = 0
    cdef Py_ssize_t place
    cdef TimeoutBucket *bucket = lists.buckets
    cdef PyObject *each
    cdef PyObject **heap
    while bucket != NULL:
        count += 1
        bucket = bucket.next
    heap = <PyObject **>malloc((count + 1) * sizeof(PyObject *))
    if heap == NULL:
        return -1
    count = 0
    bucket = lists.buckets
    while bucket != NULL:
        if not is_empty(&bucket.held):
            heap[count] = message_at(first(&bucket.held))
            count += 1
        bucket = bucket.next
    for place in range(count // 2 - 1, -1, -1):
        sift_down(heap, count, place)
    while count > 0 and found < most:
        each = heap[0]
        if is_wanted(each, plugin, hook):
            Py_INCREF(<Message>each)
            messages[found] = each
            found += 1
        heap[0] = next_in_bucket(each)
        if heap[0] == NULL:
            count -= 1
            heap[0] = heap[count]
        if count > 0:
            sift_down(heap, count, 0)
    free(heap)
    return found
