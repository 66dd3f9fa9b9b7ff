/* Simulated time for a program that nobody changed: loaded before it (LD_PRELOAD), in place of
   the C library's clock and sleep. Its main thread runs up to a limit and waits there, until the
   other side of the socket RAPTOR_LOCKSTEP has flown on; -1 instead of a socket: without a limit.

   From the other side: the next limit, and how many packets of each kind must have been dealt
   with by then. To it: the time, when the limit is reached. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define COST 200            /* ns that looking at the clock takes */
#define STATE 144           /* bytes of the packets that are counted */
#define RECEIVER 40

typedef struct { uint64_t limit; uint32_t state, receiver; } order_t;

static _Atomic uint64_t now;
static order_t order;
static int link_fd = -2;
static uint32_t done_state, done_receiver;
static __thread long taken; /* bytes of the packet that this thread deals with */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;

static int is_main(void) { return getpid() == syscall(SYS_gettid); }

static void at_limit(void)
{
    uint64_t time = now;
    if (send(link_fd, &time, sizeof(time), MSG_NOSIGNAL) != sizeof(time)) _exit(0);
    if (recv(link_fd, &order, sizeof(order), 0) != sizeof(order)) _exit(0);
    pthread_mutex_lock(&lock);
    while (done_state < order.state || done_receiver < order.receiver)
        pthread_cond_wait(&more, &lock);
    pthread_mutex_unlock(&lock);
}

static void pass(uint64_t ns)
{
    if (!is_main()) return;
    if (link_fd == -2) link_fd = getenv("RAPTOR_LOCKSTEP") ? atoi(getenv("RAPTOR_LOCKSTEP")) : -1;
    now += ns;
    while (link_fd >= 0 && now >= order.limit) at_limit();
}

int clock_gettime(clockid_t clock, struct timespec *out)
{
    if (clock != CLOCK_MONOTONIC) return syscall(SYS_clock_gettime, clock, out);
    pass(COST);
    uint64_t time = now;
    out->tv_sec = time / 1000000000u;
    out->tv_nsec = time % 1000000000u;
    return 0;
}

int nanosleep(const struct timespec *how_long, struct timespec *left)
{
    if (!is_main()) return syscall(SYS_nanosleep, how_long, left);
    pass(how_long->tv_sec * 1000000000u + how_long->tv_nsec);
    return 0;
}

ssize_t recvfrom(int fd, void *data, size_t size, int flags, struct sockaddr *from, socklen_t *n)
{
    taken = syscall(SYS_recvfrom, fd, data, size, flags, from, n);
    return taken;
}

/* Where a thread waits for its next packet, it has dealt with the last one. */
int select(int n, fd_set *in, fd_set *out, fd_set *wrong, struct timeval *patience)
{
    static int (*real)(int, fd_set *, fd_set *, fd_set *, struct timeval *);
    if (!real) real = dlsym(RTLD_NEXT, "select");
    if (taken > 0) {
        pthread_mutex_lock(&lock);
        if (taken == STATE) done_state++;
        if (taken == RECEIVER) done_receiver++;
        pthread_cond_signal(&more);
        pthread_mutex_unlock(&lock);
        taken = 0;
    }
    return real(n, in, out, wrong, patience);
}
