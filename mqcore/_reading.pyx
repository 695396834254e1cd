"""How a stream reads its source, and how whoever iterates it waits for the next outcome.

A message is read when the next outcome is asked for and there is none yet, and run at once.

An asynchronous source is read by a task of its own. So a source that waits keeps no outcome back, and `asyncio.timeout` and
the like in it mean itself, not whoever iterates the stream.
"""

import asyncio

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

from ._flow cimport Flow, Place, cancel_reader, close, close_source, new_flow
from ._hook cimport Hook
from ._message cimport Message
from .loop._call cimport ends_program, is_a, take_error
from .loop._reactor cimport PyThread_get_thread_ident, Reactor, has_budget, start_portion

cdef extern from "Python.h":
    PyObject *Py_None
    PyObject *PyIter_Next(object) except? NULL
    Py_ssize_t clamped "PyNumber_AsSsize_t"(object, PyObject *) except? -1

cdef object CANCELLED_ERROR = asyncio.CancelledError

cdef enum:
    MOST_IN_A_TURN = 4096    # messages; then the loop has a turn


# --------------------------------------------------------------------------------------------------------------- Reading

cdef int poll(Flow flow, PyObject **message, PyObject **outcome) noexcept:
    """Found: what there is to yield, or to wait for. Reads on where that is possible at once."""
    cdef PyObject *place
    cdef int found
    while True:
        if flow.closed:
            return OVER
        if flow.portion.entries >= MOST_IN_A_TURN or not has_budget(&flow.portion):
            return TURN
        place = flow.first_ended()
        if place != NULL:
            flow.take_out(<Place>place, message, outcome)
            return ONE
        if flow.source is None:
            return OVER if flow.in_flight == 0 else WAIT
        if flow.asynchronous or flow.in_flight >= flow.most:
            return WAIT
        found = (<int (*)(Flow, PyObject **, PyObject **) noexcept>read_one)(flow, message, outcome)
        if found < 0:
            source_raised(flow)
        elif found == ONE:
            return ONE


cdef void source_raised(Flow flow) noexcept:
    cdef PyObject *error = take_error()
    flow.source_failed(<object>error)
    Py_DECREF(<object>error)


cdef int read_one(Flow flow, PyObject **message, PyObject **outcome) except -1:
    """Read a message and run it: ONE when its outcome is to be yielded now, else NOTHING."""
    cdef PyObject *taken
    cdef PyObject *ended
    flow.reading = True
    taken = PyIter_Next(flow.source)
    flow.reading = False
    if flow.closed:  # while it was asked
        source, flow.source = flow.source, None
        if taken != NULL:
            Py_DECREF(<object>taken)
            close_source(source)
        return NOTHING
    if taken == NULL:
        flow.source = None
        return NOTHING
    candidate = <object>taken
    Py_DECREF(candidate)
    ended = flow.run(candidate)
    if ended == Py_None or flow.closed:
        return NOTHING
    if flow.ordered and flow.in_flight:
        flow.keep(<Message>candidate, <object>ended, False)
        return NOTHING
    Py_INCREF(candidate)
    message[0] = <PyObject *>candidate
    Py_INCREF(<object>ended)
    outcome[0] = ended
    return ONE


cdef int take(Flow flow, object candidate) except -1:
    """Run what an asynchronous source gave."""
    cdef PyObject *ended
    if flow.closed:
        return 0
    ended = flow.run(candidate)
    if ended != Py_None and not flow.closed:
        flow.keep(<Message>candidate, <object>ended, False)
        flow.wake()
    return 0


async def read(Flow flow, source):
    """Read an asynchronous source to its end: the task of a stream."""
    ended = False
    try:
        try:
            async for message in source:
                take(flow, message)
                message = None  # a held one is nobody's here
                while flow.in_flight >= flow.most and not flow.closed:
                    flow.room = room = flow.hook.runner.reactor.loop.create_future()
                    await room
                if flow.closed:
                    break
                if flow.reading_portion.entries >= MOST_IN_A_TURN or not has_budget(&flow.reading_portion):
                    await asyncio.sleep(0)
                    flow.reading_portion = start_portion(flow.hook.runner.reactor.state.uv)
            else:
                ended = True
        finally:
            aclose = None if ended else getattr(source, "aclose", None)
            if aclose is not None:
                await aclose()
    except BaseException as error:
        reading_failed(flow, error)
        if ends_program(error):
            raise
    finally:
        flow.source = None
        flow.wake()


cdef void reading_failed(Flow flow, object error) noexcept:
    if not flow.closed:
        flow.source_failed(error)
    elif not is_a(error, <PyObject *>CANCELLED_ERROR):
        if flow.left:
            flow.hook.runner.reactor.report(error, "the source of a stream that nobody iterates any more")
        else:
            flow.close_error = error


# --------------------------------------------------------------------------------------------------------------- Waiting

cdef object wait(Flow flow, bint turn):
    return waiting(flow, turn)


def waiting(Flow flow, bint turn):
    """Let the loop have a turn, or wait until there may be something to yield. Whoever is cancelled here cancels the rest.

    A generator, so that all that is made comes before what is waited for: where there is no memory for it, the stream can
    still be asked for the next one.
    """
    wakeup = None
    if not turn:
        if flow.asynchronous and flow.reader is None and flow.source is not None:
            start_reader(flow)
        waiter = flow.hook.runner.reactor.loop.create_future()
        wakeup = iter(waiter)
        flow.waiter = waiter
        flow.wake()  # what came while memory was made
    try:
        if turn:
            yield  # as asyncio.sleep(0) does
        else:
            yield from wakeup
    except GeneratorExit:
        flow.leave()
        raise
    except BaseException:
        yield from ending(flow).__await__()
        raise
    flow.portion = start_portion(flow.hook.runner.reactor.state.uv)


cdef int start_reader(Flow flow) except -1:
    flow.reading_portion = start_portion(flow.hook.runner.reactor.state.uv)
    flow.reader = asyncio.Task(
        read(flow, flow.source), loop=flow.hook.runner.reactor.loop, name=f"stream of {flow.hook.name}")
    return 0


cdef object end(Flow flow):
    return ending(flow)


async def ending(Flow flow):
    """Cancel the rest and close the source."""
    check_thread(flow)
    close(flow)
    while flow.cancel_some():
        await asyncio.sleep(0)
    reader = flow.reader
    if reader is not None:
        if reader is not asyncio.current_task():
            cancel_reader(flow)
            await asyncio.wait([reader])
            if not reader.cancelled():
                reader.exception()  # it has left through the loop
    elif flow.source is not None and not flow.reading:
        source, flow.source = flow.source, None
        if not flow.asynchronous:
            close_source(source)
        elif getattr(source, "aclose", None) is not None:
            await source.aclose()
    error, flow.close_error = flow.close_error, None
    if error is not None:
        raise error


cdef int check_thread(Flow flow) except -1:
    cdef Reactor reactor = flow.hook.runner.reactor
    if reactor.thread != PyThread_get_thread_ident() and (not reactor.closed or reactor.forked):
        reactor.check(flow.hook.name)
    return 0


cdef Flow flow_of(Hook hook, object messages, tuple args, object max_in_flight, bint ordered):
    cdef Py_ssize_t most = clamped(max_in_flight, NULL)
    cdef Flow flow
    if most < 1:
        raise ValueError(f"max_in_flight is a number of messages, at least 1, not {max_in_flight!r}")
    flow = new_flow(hook, args, most, ordered)
    flow.asynchronous = hasattr(type(messages), "__aiter__")
    flow.source = aiter(messages) if flow.asynchronous else iter(messages)
    return flow
