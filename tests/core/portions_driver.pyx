"""What waits in a dispatcher for its ticks; built by test_portions.py."""

from mqcore._dispatcher cimport Dispatcher
from mqcore.loop._list cimport after, first


def given_back(Dispatcher dispatcher not None):
    """Messages that were given back, and not collected yet."""
    return dispatcher.holds.lists.given_count


def ready(Dispatcher dispatcher not None):
    """Watches that a tick will call."""
    return dispatcher.reactor.state.ready_count[False]


def renewing(Dispatcher dispatcher not None):
    """Polls that a new epoll does not have yet."""
    count = 0
    link = dispatcher.reactor.state.renewing
    while link != NULL:
        count += 1
        link = after(&dispatcher.reactor.state.polls, link)
    return count


def unused(Dispatcher dispatcher not None):
    """Contexts of replaced plugins that the sweep will look at."""
    count = 0
    link = first(&dispatcher.active.replaced.unused)
    while link != NULL:
        count += 1
        link = after(&dispatcher.active.replaced.unused, link)
    return count
