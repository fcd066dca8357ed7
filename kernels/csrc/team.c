#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#define TEAM_MAX 256
#define SPIN_NANOSECONDS 50000L   /* a sleeper's wake-up costs about as much */

static pthread_mutex_t taken = PTHREAD_MUTEX_INITIALIZER;   /* held by the caller whose call runs */
static pthread_mutex_t sleeping = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static int workers;                         /* threads started so far; guarded by `taken` */
static uint64_t first_seen[TEAM_MAX];       /* the value of `call` when a worker was started */

/* The number of the call << 16 | its size. A worker whose rank is not below the size touches
 * nothing else of the call, since nobody waits for it. */
static _Alignas(128) _Atomic uint64_t call;
static _Alignas(128) atomic_int running;    /* workers that have not finished the call */
static _Alignas(128) atomic_int sleepers;
static cs_team_work *current;
static void *current_argument;

static void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

/* Waits until `call` is no longer `seen`: spins, then sleeps. */
static uint64_t next_call(uint64_t seen) {
    const long start = nanoseconds();
    uint64_t value;
    for (int i = 1; (value = atomic_load_explicit(&call, memory_order_acquire)) == seen; i++) {
        pause_cpu();
        if (i % 64 == 0 && nanoseconds() - start > SPIN_NANOSECONDS) {
            pthread_mutex_lock(&sleeping);
            atomic_fetch_add(&sleepers, 1);
            while ((value = atomic_load(&call)) == seen)
                pthread_cond_wait(&wake, &sleeping);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&sleeping);
            return value;
        }
    }
    return value;
}

static void *worker(void *argument) {
    const int rank = (int)(intptr_t)argument;
    uint64_t seen = first_seen[rank];
    for (;;) {
        seen = next_call(seen);
        const int size = (int)(seen & 0xffff);
        if (rank < size) {
            current(current_argument, rank, size);
            atomic_fetch_sub_explicit(&running, 1, memory_order_release);
        }
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

/* Starts workers until there are `wanted`; returns how many there are. Signals stay with the
 * process's own threads. */
static int grow(int wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (workers < wanted) {
        pthread_t thread;
        const int rank = workers + 1;
        first_seen[rank] = atomic_load(&call);
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)rank))
            break;
        pthread_detach(thread);
        workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return workers;
}

void cs_team_run(int threads, cs_team_work *work, void *argument) {
    if (threads > TEAM_MAX)
        threads = TEAM_MAX;
    pthread_once(&once, watch_forks);
    if (threads <= 1 || pthread_mutex_trylock(&taken)) {
        work(argument, 0, 1);
        return;
    }
    const int available = 1 + (workers < threads - 1 ? grow(threads - 1) : workers);
    const int size = threads < available ? threads : available;
    current = work;
    current_argument = argument;
    atomic_store(&running, size - 1);
    atomic_store(&call, ((atomic_load(&call) >> 16) + 1) << 16 | (uint64_t)size);
    if (atomic_load(&sleepers)) {
        pthread_mutex_lock(&sleeping);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&sleeping);
    }
    work(argument, 0, size);
    for (int i = 0; atomic_load_explicit(&running, memory_order_acquire); i++) {
        if (i < 4096)
            pause_cpu();
        else
            sched_yield();   /* a worker may have lost its core */
    }
    pthread_mutex_unlock(&taken);
}
