# The system's epoll, where there is one.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <sys/ioctl.h>
    #include <unistd.h>

    #if defined(__linux__) && !defined(MQCORE_NO_EPOLL)
    #include <fcntl.h>
    #include <sys/epoll.h>
    #define MQCORE_EPOLL 1

    static inline int mqcore_epoll_ctl(int epoll, int operation, int fd, uint32_t events, uint64_t data)
    {
        struct epoll_event event = {.events = events, .data = {.u64 = data}};
        return epoll_ctl(epoll, operation, fd, &event);
    }

    static inline int mqcore_epoll_create(void)
    {
        return epoll_create1(EPOLL_CLOEXEC);
    }

    static inline int mqcore_replace_fd(int by, int fd)
    {
        return dup3(by, fd, O_CLOEXEC);
    }
    #else
    #define MQCORE_EPOLL 0
    enum { EPOLLIN = 1, EPOLLOUT = 4, EPOLLERR = 8, EPOLLHUP = 16, EPOLL_CTL_ADD = 1, EPOLL_CTL_DEL, EPOLL_CTL_MOD };
    struct epoll_event { uint32_t events; union { uint64_t u64; } data; };
    #define epoll_wait(epoll, events, most, timeout) 0
    #define mqcore_epoll_ctl(epoll, operation, fd, events, data) -1
    #define mqcore_epoll_create() -1
    #define mqcore_replace_fd(by, fd) -1
    #endif

    static inline int mqcore_set_nonblocking(int fd)
    {
        int on = 1;
        return ioctl(fd, FIONBIO, &on);
    }
    """
    bint HAS_EPOLL "MQCORE_EPOLL"
    uint32_t EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP
    int EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD
    ctypedef union epoll_data:
        uint64_t u64
    ctypedef struct epoll_event "struct epoll_event":
        uint32_t events
        epoll_data data
    int epoll_wait(int epoll, epoll_event *events, int most, int timeout) noexcept nogil
    int epoll_ctl "mqcore_epoll_ctl"(int epoll, int operation, int fd, uint32_t events, uint64_t data) noexcept nogil
    int epoll_create "mqcore_epoll_create"() noexcept nogil
    int replace_fd "mqcore_replace_fd"(int by, int fd) noexcept nogil
    int set_nonblocking "mqcore_set_nonblocking"(int fd) noexcept nogil
