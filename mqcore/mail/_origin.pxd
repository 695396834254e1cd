# Where a mail is from, made for each message.

cdef object new_origin(bytes mime, str id, number, envelope=*, received=*, recipient=*, bint comes_again=*, bint is_traced=*,
                       loops=*, hops=*, utf8=*, from_line=*, sort_time=*)
