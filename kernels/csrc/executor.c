#include "executor.h"

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "cpu.h"
#include "team.h"

/* Sense-reversing: the last to arrive lets the others go on. */
struct cs_barrier {
    _Alignas(128) atomic_int arrived;
    _Alignas(128) atomic_int round;
};

typedef struct run {
    const cs_plan *plan;
    int64_t n;
    const float *const *inputs, *const *tables;
    float *const *results;
    float *const *arenas;
    int64_t *spent;                         /* as for cs_plan_run */
    int64_t parts;                          /* 0: threads share each operation */
    _Alignas(128) _Atomic int64_t next;     /* part of the batch that no thread has taken yet */
    struct cs_barrier barrier;
} run;

void cs_wait(const cs_task *task) {
    if (task->size == 1)
        return;
    struct cs_barrier *b = task->barrier;
    const int round = atomic_load_explicit(&b->round, memory_order_relaxed);
    if (atomic_fetch_add(&b->arrived, 1) == task->size - 1) {
        atomic_store_explicit(&b->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&b->round, round + 1, memory_order_release);
        return;
    }
    for (int i = 0; atomic_load_explicit(&b->round, memory_order_acquire) == round; i++) {
        cs_pause();
        if (i > 10000)
            sched_yield();  /* the other thread may have lost its core */
    }
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* All operations up to `level` for images first .. first + images. */
static void run_level(cs_task *task, int level, int64_t first, int64_t images) {
    const cs_plan *plan = task->plan;
    task->group_start[level] = first;
    if (level > 0) {
        const int64_t group = plan->group[level - 1];
        for (int64_t done = 0; done < images; done += group)
            run_level(task, level - 1, first + done, images - done < group ? images - done : group);
    }
    task->first = first;
    task->images = images;
    for (int o = 0; o < plan->op_count; o++)
        if (plan->ops[o].level == level) {
            const int64_t start = task->spent ? now() : 0;
            cs_execute(task, &plan->ops[o]);
            cs_wait(task);
            if (task->spent)
                task->spent[o] += now() - start;
        }
}

static void work(void *argument, int rank, int size) {
    run *r = argument;
    const cs_plan *plan = r->plan;
    cs_task task = {.plan = plan, .inputs = r->inputs, .tables = r->tables, .results = r->results,
                    .batch = r->n, .size = 1, .barrier = &r->barrier};
    task.scratch = r->arenas[rank] + plan->scratch;
    task.shared_scratch = r->arenas[0] + plan->scratch;
    if (r->spent)
        task.spent = r->spent + (int64_t)rank * plan->op_count;
    const uint64_t mode = cs_flush_denormals();
    if (r->parts) {
        task.arena = r->arenas[rank];
        for (;;) {
            const int64_t part = atomic_fetch_add(&r->next, 1);
            if (part >= r->parts)
                break;
            const int64_t first = r->n * part / r->parts;
            run_level(&task, plan->levels - 1, first, r->n * (part + 1) / r->parts - first);
        }
    } else {
        task.arena = r->arenas[0];
        task.rank = rank;
        task.size = size;
        run_level(&task, plan->levels - 1, 0, r->n);
    }
    cs_stream_end();
    cs_restore_denormals(mode);
}

enum { SMALL_PART = 8 };    /* images that are computed as fast as more of them would be */

/* Sharing a single image pays only while the threads keep their cores: on a machine that is busy
 * otherwise each wait may last a time slice. So both ways are timed, the better one is taken, and
 * the other is tried again now and then, first soon, then more rarely. Alone an image takes always
 * about the same time; sharing becomes the better way as soon as the other work has gone, so it is
 * tried more often, and a few times in a row, since the first one may have to wake a thread. The
 * results are the same bits. */
enum { FIRST_TRIAL = 4, RAREST_TRIAL_ALONE = 1024, RAREST_TRIAL_SHARED = 32, TRIALS_SHARED = 3 }; /* runs */

static int may_share(cs_pace *pace) {
    const int64_t alone = atomic_load_explicit(&pace->mean[0], memory_order_relaxed);
    const int64_t shared = atomic_load_explicit(&pace->mean[1], memory_order_relaxed);
    if (!alone || !shared)
        return alone != 0;  /* not yet known: first alone, then shared */
    const int better = shared < alone;
    if (atomic_fetch_sub_explicit(&pace->until_trial, 1, memory_order_relaxed) > 0)
        return better;
    return !better;
}

static void learn(cs_pace *pace, int shared, int64_t nanoseconds) {
    int64_t mean = atomic_load_explicit(&pace->mean[shared], memory_order_relaxed);
    const int64_t other = atomic_load_explicit(&pace->mean[!shared], memory_order_relaxed);
    const int was_better = mean < other;
    if (mean && nanoseconds > 2 * mean)
        nanoseconds = 2 * mean;     /* one lost time slice says little */
    /* a fast run shows what is possible, a slow one may have been bad luck */
    mean = mean && nanoseconds > mean ? mean + (nanoseconds - mean) / 4 : nanoseconds;
    atomic_store_explicit(&pace->mean[shared], mean, memory_order_relaxed);
    const int better = mean < other, turned = better != was_better;
    const int32_t left = atomic_load_explicit(&pace->until_trial, memory_order_relaxed);
    /* runs of a trial: those with until_trial at 0 or below, one less after each */
    if (!turned && (left >= 0 || (shared && left > -TRIALS_SHARED)))
        return;
    /* a trial is over, or the order has changed */
    const int32_t rarest = better == shared ? RAREST_TRIAL_ALONE : RAREST_TRIAL_SHARED;
    int32_t interval = atomic_load_explicit(&pace->interval, memory_order_relaxed);
    interval = turned || !interval ? FIRST_TRIAL : 2 * interval;
    interval = interval < rarest ? interval : rarest;
    atomic_store_explicit(&pace->interval, interval, memory_order_relaxed);
    atomic_store_explicit(&pace->until_trial, interval, memory_order_relaxed);
}

void cs_plan_run(const cs_plan *plan, cs_pace *pace, int64_t n, const float *const *inputs,
                 const float *const *tables, float *const *results, float *const *arenas,
                 int threads, int64_t *spent) {
    const int64_t chunk = plan->group[plan->levels - 1];
    run r = {.plan = plan, .n = n, .inputs = inputs, .tables = tables, .results = results,
             .arenas = arenas, .spent = spent};
    atomic_init(&r.next, 0);
    atomic_init(&r.barrier.arrived, 0);
    atomic_init(&r.barrier.round, 0);
    if (threads > 1 && n == 1) {
        const int shared = may_share(pace);
        const int64_t start = now();
        if (shared) {
            /* long work is worth waiting for a thread that has to wake up first */
            const int64_t alone = atomic_load_explicit(&pace->mean[0], memory_order_relaxed) / 8;
            cs_team_run_together(threads, alone < 20000 ? 20000 : alone > 1000000 ? 1000000 : alone,
                                 work, &r);
        } else {
            r.parts = 1;
            work(&r, 0, 1);
        }
        learn(pace, shared, now() - start);
        return;
    }
    /* Equal parts, the same number for each thread. Several of them where that costs nothing: a
     * thread whose core does other work besides leaves some to the others. */
    r.parts = (n + threads * chunk - 1) / (threads * chunk) * threads;
    while (r.parts < 4 * threads && n >= 2 * r.parts * SMALL_PART)
        r.parts *= 2;
    if (r.parts > n)
        r.parts = n;
    cs_team_run(threads, work, &r);
}
