/* Faults for one process, preloaded (LD_PRELOAD). VIGILD_FAULT says which:

     short        every write to a file under VIGILD_FAULT_IN writes half of what it was given
     half:N       the N-th write there writes half, then the process is killed
     before:N     the N-th fdatasync is not done, the process is killed instead
     no syncs     fsync and fdatasync do nothing and say that they did

   VIGILD_CLOCK names a file that begins with a number of seconds (64 bits, native order): that much the wall clock is
   ahead, from the moment it is written there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const char *fault(void) {
    const char *value = getenv("VIGILD_FAULT");
    return value ? value : "";
}

static long number(const char *kind) {
    size_t length = strlen(kind);
    return strncmp(fault(), kind, length) ? 0 : atol(fault() + length);
}

static int concerned(int descriptor) {
    char link[64], path[4096];
    const char *place = getenv("VIGILD_FAULT_IN");
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0 || !place) return 0;
    path[size] = 0;
    return !strncmp(path, place, strlen(place));
}

static long short_writes, writes, syncs;

__attribute__((destructor)) static void tell(void) {
    if (short_writes) fprintf(stderr, "%ld short writes\n", short_writes);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "write");
    if (!concerned(descriptor)) return real(descriptor, data, size);
    if (!strcmp(fault(), "short") && size > 1) {
        short_writes++;
        return real(descriptor, data, size / 2);
    }
    if (number("half:") && ++writes == number("half:")) {
        real(descriptor, data, size / 2);
        kill(getpid(), SIGKILL);
    }
    return real(descriptor, data, size);
}

int fdatasync(int descriptor) {
    static int (*real)(int);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "fdatasync");
    if (number("before:") && ++syncs == number("before:")) kill(getpid(), SIGKILL);
    return strcmp(fault(), "no syncs") ? real(descriptor) : 0;
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "fsync");
    return strcmp(fault(), "no syncs") ? real(descriptor) : 0;
}

static volatile long *ahead;

__attribute__((constructor)) static void open_clock(void) {
    const char *path = getenv("VIGILD_CLOCK");
    int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    void *page = mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, descriptor, 0);
    if (page != MAP_FAILED) ahead = page;
    close(descriptor);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (ahead && clock == CLOCK_REALTIME) now->tv_sec += *ahead;
    return result;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    *now = (struct timeval){found.tv_sec, found.tv_nsec / 1000};
    return 0;
}
