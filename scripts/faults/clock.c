/* Shifts the wall clock of processes that preload this library, by the seconds in the file that CLOCK_SHIFT names.
 *
 * Only CLOCK_REALTIME moves, as when NTP or a person sets a machine's clock. libfaketime cannot do that: where it leaves
 * the monotonic clock alone, clock_nanosleep with TIMER_ABSTIME, which time.sleep of Python 3.11 calls, fails with EINVAL.
 * Waits until a point of wall-clock time are moved back, because the kernel measures them by its own clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long *shift;

__attribute__((constructor)) static void map_file(void) {
    const char *path = getenv("CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) shift = found;
    close(file);
}

static long seconds(void) { return shift ? *shift : 0; }

static struct timespec earlier(const struct timespec *until) {
    struct timespec moved = *until;
    moved.tv_sec -= seconds();
    if (moved.tv_sec < 0) moved.tv_sec = 0;
    return moved;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = next(clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec found;
    if (clock_gettime(CLOCK_REALTIME, &found)) return -1;
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (out) *out = found.tv_sec;
    return found.tv_sec;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    static int (*next)(sem_t *, const struct timespec *);
    if (!next) next = dlsym(RTLD_NEXT, "sem_timedwait");
    struct timespec moved = earlier(until);
    return next(semaphore, &moved);
}

/* abseil, which gRPC and Ray use, waits for futexes until a point of wall-clock time. */
long syscall(long number, ...) {
    static long (*next)(long, ...);
    if (!next) next = dlsym(RTLD_NEXT, "syscall");
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long), d = va_arg(list, long),
         e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    struct timespec moved;
    if (number == SYS_futex && (b & FUTEX_CLOCK_REALTIME) && d) {
        moved = earlier((const struct timespec *)d);
        d = (long)&moved;
    }
    return next(number, a, b, c, d, e, f);
}
