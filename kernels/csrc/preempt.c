#define _GNU_SOURCE
#include "preempt.h"
#include "threads.h"

#include <stddef.h>

#ifdef __linux__

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_NAMES = 8, NAME = 16, MAX_THREADS = 64 };

static const long US = 1000, MS = 1000000;
static const int64_t SECOND = 1000000000;

/* Periods: while the process does next to nothing, while it works, and while it interrupts. */
#define QUIET (50 * MS)
#define LOOK (4 * MS)
#define TICK (300 * US)
#define WORKING 0.02 /* the share of a core that the process takes when it works */
/* A thread has kept the core if it ran for so long in all, and so long at a stretch on average,
 * from one look to the next. */
#define LONG_RUN (3 * MS)
#define LONG_STRETCH (500 * US)
#define AGAIN (1 * SECOND) /* twice within this time: they are moved */
#define STAY (5 * SECOND)
#define SCAN (10 * SECOND) /* threads come and go: how often they are looked up anew */

typedef struct {
    int id, file; /* of /proc/self/task/ID/schedstat */
    int64_t ran, stretches;
} thread_t;

struct cs_preempt {
    pthread_t thread;
    atomic_int home, closed;
    atomic_long times;
    char names[MAX_NAMES][NAME];
    int name_count, count;
    thread_t threads[MAX_THREADS];
};

static int64_t now_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void bind_thread(int id, int core) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    sched_setaffinity(id, sizeof cores, &cores); /* it may have ended, or the core be taken away */
}

/* The next core that the process may use, `home` itself if it is the only one. The main thread is
 * never bound. */
static int other_core(int home) {
    cpu_set_t cores;
    if (sched_getaffinity(getpid(), sizeof cores, &cores)) return home;
    for (int n = 1; n < CPU_SETSIZE; n++) {
        int core = (home + n) % CPU_SETSIZE;
        if (CPU_ISSET(core, &cores)) return core;
    }
    return home;
}

/* Of the calling thread; 0: the system's own. glibc has no function for it. */
static void set_slice(uint64_t ns) {
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } attributes = {.size = sizeof attributes, .runtime = ns};
    attributes.nice = getpriority(PRIO_PROCESS, 0); /* as it is */
#ifdef SYS_sched_setattr
    syscall(SYS_sched_setattr, 0, &attributes, 0); /* refused: interrupts when it is its turn */
#endif
}

static int read_text(const char *folder, const char *file, char *text, int room, int *keep) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%.12s/%s", folder, file);
    int descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return 0;
    ssize_t size = read(descriptor, text, room - 1);
    text[size > 0 ? size : 0] = 0;
    if (keep && size > 0)
        *keep = descriptor;
    else
        close(descriptor);
    return size > 0;
}

static void forget(cs_preempt *p) {
    for (int n = 0; n < p->count; n++) close(p->threads[n].file);
    p->count = 0;
}

static void scan(cs_preempt *p) {
    forget(p);
    DIR *folder = opendir("/proc/self/task");
    if (!folder) return;
    struct dirent *entry;
    while (p->count < MAX_THREADS && (entry = readdir(folder))) {
        char text[64];
        if (entry->d_name[0] == '.' || !read_text(entry->d_name, "comm", text, sizeof text, NULL))
            continue;
        for (int n = 0; n < p->name_count; n++) {
            if (strncmp(text, p->names[n], strlen(p->names[n]))) continue;
            thread_t *t = &p->threads[p->count];
            if (!read_text(entry->d_name, "schedstat", text, sizeof text, &t->file)) break;
            t->id = atoi(entry->d_name);
            t->ran = t->stretches = -1;
            p->count++;
            break;
        }
    }
    closedir(folder);
}

/* Whether one of the threads has kept its core since the last look. */
static int look(cs_preempt *p) {
    int found = 0;
    for (int n = 0; n < p->count; n++) {
        thread_t *t = &p->threads[n];
        char text[64];
        long long ran, waited, stretches;
        ssize_t size = pread(t->file, text, sizeof text - 1, 0);
        if (size <= 0) continue; /* it has ended */
        text[size] = 0;
        if (sscanf(text, "%lld %lld %lld", &ran, &waited, &stretches) != 3) continue;
        if (t->ran >= 0) {
            int64_t run = ran - t->ran, times = stretches - t->stretches;
            found |= run >= LONG_RUN && run >= LONG_STRETCH * (times > 1 ? times : 1);
        }
        t->ran = ran;
        t->stretches = stretches;
    }
    return found;
}

static void move(cs_preempt *p, int from, int to) {
    scan(p);
    for (int n = 0; n < p->count; n++)
        if (cs_is_bound(p->threads[n].id, from)) bind_thread(p->threads[n].id, to);
    bind_thread(0, to);
}

/* Keeps the threads on another core for a while, and interrupts what runs there. */
static void relieve(cs_preempt *p) {
    int home = p->home, other = other_core(home);
    int64_t until = now_ns(CLOCK_MONOTONIC) + STAY;
    const struct timespec tick = {0, TICK};
    atomic_fetch_add(&p->times, 1);
    move(p, home, other);
    set_slice(100 * US);
    prctl(PR_SET_TIMERSLACK, 1);
    while (!p->closed && now_ns(CLOCK_MONOTONIC) < until)
        clock_nanosleep(CLOCK_MONOTONIC, 0, &tick, NULL);
    prctl(PR_SET_TIMERSLACK, 0); /* the usual one */
    set_slice(0);
    move(p, other, p->home);
}

static void *run(void *argument) {
    cs_preempt *p = argument;
    prctl(PR_SET_NAME, "preemption");
    bind_thread(0, p->home);
    set_slice(0);
    int64_t scanned = -SCAN, seen = -AGAIN, looked = 0, used = 0;
    while (!p->closed) {
        int64_t now = now_ns(CLOCK_MONOTONIC), use = now_ns(CLOCK_PROCESS_CPUTIME_ID);
        int works = use - used > (now - looked) * WORKING;
        looked = now;
        used = use;
        if (works && now - scanned > SCAN) {
            scan(p);
            scanned = now;
        }
        if (works && look(p)) {
            if (now - seen < AGAIN) {
                relieve(p);
                scanned = -SCAN;
                seen = -AGAIN;
                continue;
            }
            seen = now;
        }
        const struct timespec pause = {0, works ? LOOK : QUIET};
        clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
    }
    forget(p);
    return NULL;
}

cs_preempt *cs_preempt_start(const char *const *names, int home) {
    cs_preempt *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->home = home;
    for (; *names && p->name_count < MAX_NAMES; names++)
        snprintf(p->names[p->name_count++], NAME, "%s", *names);
    if (pthread_create(&p->thread, NULL, run, p)) {
        free(p);
        return NULL;
    }
    return p;
}

void cs_preempt_follow(cs_preempt *p, int home) { p->home = home; }

long cs_preempt_times(const cs_preempt *p) { return p->times; }

void cs_preempt_stop(cs_preempt *p) {
    p->closed = 1;
    pthread_join(p->thread, NULL);
    free(p);
}

#else

cs_preempt *cs_preempt_start(const char *const *names, int home) { return NULL; }
void cs_preempt_follow(cs_preempt *p, int home) {}
long cs_preempt_times(const cs_preempt *p) { return 0; }
void cs_preempt_stop(cs_preempt *p) {}

#endif
