#define _GNU_SOURCE
#include "team.h"

#include "cpu.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#define TEAM_MAX 256
#define SPIN_NANOSECONDS 50000L     /* a sleeper's wake-up costs about as much */

static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER;   /* held by the caller whose call runs */
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int workers;                         /* threads started so far; guarded by `taken` */
static uint64_t first_seen[TEAM_MAX];       /* the number of the call when a worker was started */

/* The call's number << 32 | closed << 31 | places << 16 | workers that have joined. A worker reads
 * the rest of a call only once it has joined, since only then the caller waits for it. */
static _Alignas(128) _Atomic uint64_t call;
static _Alignas(128) atomic_int finished;   /* workers that are done with the call */
static _Alignas(128) atomic_int size;       /* of the call; 0 until it may start */
static _Alignas(128) atomic_int sleepers;
static cs_team_work *current;
static void *current_argument;

#define CLOSED (1ull << 31)
#define NUMBER(value) ((value) >> 32)
#define PLACES(value) ((int)((value) >> 16 & 0x7fff))
#define JOINED(value) ((int)((value) & 0xffff))

/* likewise where the other thread may have lost its core */
static void wait_a_little(int round) {
    if (round < 4096)
        cs_pause();
    else
        sched_yield();
}

static long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* Waits until the call's number is no longer `seen`: spins, then sleeps. */
static uint64_t next_call(uint64_t seen) {
    const long start = nanoseconds();
    uint64_t value;
    for (int i = 1; NUMBER(value = atomic_load_explicit(&call, memory_order_acquire)) == seen; i++) {
        cs_pause();
        if (i % 64 == 0 && nanoseconds() - start > SPIN_NANOSECONDS) {
            pthread_mutex_lock(&sleeping);
            atomic_fetch_add(&sleepers, 1);
            while (NUMBER(value = atomic_load(&call)) == seen)
                pthread_cond_wait(&wake, &sleeping);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&sleeping);
            break;
        }
    }
    return NUMBER(value);
}

/* The rank of the worker in this call, or 0 if it is too late or all places are taken. */
static int join_call(uint64_t number) {
    uint64_t value = atomic_load(&call);
    while (NUMBER(value) == number && !(value & CLOSED) && JOINED(value) < PLACES(value))
        if (atomic_compare_exchange_weak(&call, &value, value + 1))
            return JOINED(value) + 1;
    return 0;
}

/* Whoever started the thread may be bound to a core and wait there until others sleep. A worker has
 * the cores of the process, and its policy unless somebody has chosen one. */
static void run_anywhere(void) {
#ifdef __linux__
    const struct sched_param none = {0};
    cpu_set_t cores;
    if (sched_getaffinity(getpid(), sizeof cores, &cores) == 0)
        sched_setaffinity(0, sizeof cores, &cores);
    if (sched_getscheduler(getpid()) == SCHED_OTHER)
        sched_setscheduler(0, SCHED_OTHER, &none);
#endif
}

static void *worker(void *argument) {
    run_anywhere();
    uint64_t seen = first_seen[(intptr_t)argument];
    for (;;) {
        seen = next_call(seen);
        const int rank = join_call(seen);
        if (!rank)
            continue;
        int threads;
        for (int i = 0; !(threads = atomic_load_explicit(&size, memory_order_acquire)); i++)
            wait_a_little(i);
        if (rank < threads)
            current(current_argument, rank, threads);
        atomic_fetch_add_explicit(&finished, 1, memory_order_release);
    }
    return NULL;
}

/* The child of a fork has only the thread that forked. */
static void forget_workers(void) {
    pthread_mutex_init(&taken, NULL);
    pthread_mutex_init(&sleeping, NULL);
    pthread_cond_init(&wake, NULL);
    workers = 0;
    atomic_store(&sleepers, 0);
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_workers); }

/* Starts workers until there are `wanted`, if it can. Signals stay with the process's own threads. */
static void grow(int wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (workers < wanted) {
        pthread_t thread;
        first_seen[workers] = NUMBER(atomic_load(&call));
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)workers))
            break;
        pthread_detach(thread);
        workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Opens a call to `places` workers; `threads`: 0 if it shall not start yet. */
static void open_call(int places, int threads, cs_team_work *work, void *argument) {
    current = work;
    current_argument = argument;
    atomic_store(&finished, 0);
    atomic_store(&size, threads);
    atomic_store(&call, (NUMBER(atomic_load(&call)) + 1) << 32 | (uint64_t)places << 16);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&sleeping);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleeping);
    }
}

/* Lets nobody else join; returns how many workers have. */
static int close_call(void) { return JOINED(atomic_fetch_or(&call, CLOSED)); }

static void wait_for(int joined) {
    for (int i = 0; atomic_load_explicit(&finished, memory_order_acquire) < joined; i++)
        wait_a_little(i);
}

/* Whether the team is this caller's now. */
static int take(int threads) {
    pthread_once(&once, watch_forks);
    if (threads <= 1 || pthread_mutex_trylock(&taken))
        return 0;
    if (workers < threads - 1)
        grow(threads - 1);
    return 1;
}

void cs_team_run(int threads, cs_team_work *work, void *argument) {
    if (threads > TEAM_MAX)
        threads = TEAM_MAX;
    if (!take(threads)) {
        work(argument, 0, 1);
        return;
    }
    open_call(threads - 1, threads, work, argument);
    work(argument, 0, threads);
    wait_for(close_call());
    pthread_mutex_unlock(&taken);
}

void cs_team_run_together(int threads, long patience, cs_team_work *work, void *argument) {
    if (threads > TEAM_MAX)
        threads = TEAM_MAX;
    if (!take(threads)) {
        work(argument, 0, 1);
        return;
    }
    open_call(threads - 1, 0, work, argument);
    const long start = nanoseconds();
    for (int i = 1; JOINED(atomic_load_explicit(&call, memory_order_acquire)) < threads - 1; i++) {
        cs_pause();
        if (i % 64 == 0 && nanoseconds() - start > patience)
            break;
    }
    const int joined = close_call();
    atomic_store_explicit(&size, joined + 1, memory_order_release);
    work(argument, 0, joined + 1);
    wait_for(joined);
    pthread_mutex_unlock(&taken);
}
