# One doubly linked list for all. The links stand inside of what is linked: nothing is allocated, and each step is O(1).
#
# No Python, and no GIL. Whoever has a list calls these functions one at a time.

cdef struct Link:
    # A place in a list; zeroed, or with `next` NULL, in none.
    Link *next
    Link *previous

cdef struct List:
    # A ring through `ends`, which is no element: to unlink, one need not know the list. Must not move in memory.
    Link ends

cdef inline void init_list(List *list) noexcept nogil:
    list.ends.next = &list.ends
    list.ends.previous = &list.ends

cdef inline bint is_empty(List *list) noexcept nogil:
    return list.ends.next == &list.ends

cdef inline bint is_linked(Link *link) noexcept nogil:
    return link.next != NULL

cdef inline Link *first(List *list) noexcept nogil:
    """NULL when the list is empty."""
    return NULL if list.ends.next == &list.ends else list.ends.next

cdef inline Link *last(List *list) noexcept nogil:
    """NULL when the list is empty."""
    return NULL if list.ends.next == &list.ends else list.ends.previous

cdef inline Link *after(List *list, Link *link) noexcept nogil:
    """NULL after the last."""
    return NULL if link.next == &list.ends else link.next

cdef inline void append(List *list, Link *link) noexcept nogil:
    """Put `link`, which must be in no list, at the end."""
    cdef Link *last = list.ends.previous
    link.next = &list.ends
    link.previous = last
    last.next = link
    list.ends.previous = link

cdef inline void unlink(Link *link) noexcept nogil:
    """Take `link` out of the list that it is in."""
    link.previous.next = link.next
    link.next.previous = link.previous
    link.next = NULL

cdef inline void replace(Link *link, Link *other) noexcept nogil:
    """Put `other`, which must be in no list, where `link` is."""
    other.next = link.next
    other.previous = link.previous
    other.previous.next = other
    other.next.previous = other
    link.next = NULL

cdef inline void append_all(List *list, List *others) noexcept nogil:
    """Move all of `others` to the end, in order. In O(1), however many they are."""
    cdef Link *last = list.ends.previous
    if is_empty(others):
        return
    last.next = others.ends.next
    last.next.previous = last
    list.ends.previous = others.ends.previous
    list.ends.previous.next = &list.ends
    init_list(others)
