# The way of mails from a source through the plugins to a sink.

from .._dispatcher cimport Dispatcher
from .._hook cimport Hook
from ._counts cimport Row
from ._deliverer cimport Deliverer
from ._hand cimport Hand
from ._histogram cimport Histogram
from ._mail cimport Mail
from ._settler cimport Settler
from ._spool cimport Memory
from ._transaction cimport Transaction
from ._writer cimport Writer

cdef class Gateway:
    cdef readonly Dispatcher dispatcher
    cdef readonly object source
    cdef readonly object sink
    cdef readonly object failed
    cdef readonly object report
    cdef readonly object refusals
    cdef readonly object ends_when
    cdef readonly Py_ssize_t in_flight  # mails that are with plugins or the sink
    cdef readonly Py_ssize_t bytes      # what they have
    cdef readonly Memory memory         # that changed mails take
    cdef readonly int processes         # of the run, of which this is one
    cdef readonly unsigned long long bytes_in   # of the transactions that came
    cdef readonly Histogram commit_seconds      # from here, of each group of a store that blocks, or each transaction of a sink
    cdef readonly Histogram group_mails
    cdef readonly bint is_draining      # no more is taken
    cdef readonly bint is_stopping      # and what is open has little time left
    cdef public object tracers          # who wants to see transactions (timeline.Tracers); None: nobody does
    cdef bint has_waiting_client        # see Source
    cdef bint settles_each              # likewise
    cdef bint is_queue                  # likewise
    cdef Hook hook
    cdef Writer writer
    cdef Deliverer deliverer
    cdef Settler settler
    cdef object returner                # a Returner
    cdef Row counts
    cdef readonly Hand hand             # where what is in flight is noted; None: nowhere
    cdef object patience                # a timer: for what is to run alone
    cdef object loop
    cdef object tasks                   # an asyncio.TaskGroup
    cdef set active                     # transactions
    cdef object waiting                 # a deque of transactions
    cdef object pending                 # a deque of mails of transactions that have begun and have many
    cdef object take                    # `_take`, made once
    cdef object change                  # an asyncio.Event
    cdef object timer
    cdef Py_ssize_t limit               # of `in_flight`
    cdef bint is_starting
    cdef bint is_portioned              # `pending` goes on in another turn
    cdef bint is_awaited                # `change` is
    cdef bint is_cut

    cdef int enter(self, Transaction transaction) except -1
    cdef int submit(self, Transaction transaction) except -1
    cpdef int turn_away(self, Py_ssize_t count, bint failed) except -1
    cpdef int count_discarded(self, Py_ssize_t count) except -1
    cdef int start(self) except -1
    cdef list begin(self)
    cdef int refuse_unseen(self, Transaction transaction, rejection) except -1
    cdef int be_patient(self) except -1
    cdef int run_portion(self) except -1
    cdef int ended(self, Mail mail, outcome) except -1
    cdef int run_steps(self, list mails) except -1
    cdef int run_step(self, Mail mail) except -1
    cdef int spool(self, Transaction transaction, Mail mail) except -1
    cdef int decide(self, Transaction transaction) except -1
    cdef int take_verdicts(self, Transaction transaction, list verdicts) except -1
    cdef int give_up(self, Transaction transaction) except -1
    cdef int route(self, Transaction transaction) except -1
    cdef int put_back(self, Transaction transaction) except -1
    cdef int write(self, Transaction transaction) except -1
    cdef int committed(self, Transaction transaction, bint set_aside, bint stored) except -1
    cdef int refuse(self, Transaction transaction, verdict) except -1
    cdef int settle(self, Transaction transaction, verdict) except -1
    cdef int release(self, Transaction transaction) except -1
    cdef int drop(self, Transaction transaction) except -1
    cdef int notify(self) except -1
