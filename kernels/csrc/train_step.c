#include "train_step.h"

#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#include "cpu.h"

typedef struct run {
    const cs_train_plan *plan;
    cs_train_batch *batch;
    cs_train_lane lanes[CS_MAX_LANES];
    int32_t lane_count;
    _Alignas(128) atomic_int segment;   /* the one that is being worked on */
} run;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void wait_for_segment(run *r, int segment) {
    for (int i = 0; atomic_load_explicit(&r->segment, memory_order_acquire) < segment; i++) {
        cs_pause();
        if (i > 4096)
            sched_yield();  /* the other thread may have lost its core */
    }
}

/* Groups of a lane are of equal size, as nearly as may be. */
static void walk_lane(cs_train_task *task, const cs_segment *s, int lane, int64_t *spent) {
    const int64_t first = cs_lane_first(task, lane), end = cs_lane_first(task, lane + 1);
    task->lane = lane;
    const int64_t groups = (end - first + s->group - 1) / s->group;
    for (int64_t g = 0; g < groups; g++) {
        task->first = first + (end - first) * g / groups;
        task->images = first + (end - first) * (g + 1) / groups - task->first;
        task->fresh = g == 0;
        for (int o = s->first; o < s->once; o++) {
            const int64_t start = spent ? now() : 0;
            cs_train_of_images(task, &task->plan->ops[o]);
            if (spent)
                spent[o] += now() - start;
        }
    }
}

static void do_part(cs_train_task *task, const cs_segment *s, int part, int64_t *spent) {
    int o = s->first;
    while (part >= task->plan->ops[o].part + task->plan->ops[o].parts)
        o++;
    const int64_t start = spent ? now() : 0;
    cs_train_of_part(task, &task->plan->ops[o], part - task->plan->ops[o].part);
    if (spent)
        spent[o] += now() - start;
}

/* A thread takes what nobody has taken yet, waits until all of the segment is done and goes on; one
 * that comes late begins with the segment that the others have reached. */
static void work(void *argument, int rank, int size) {
    (void)size;
    run *r = argument;
    const cs_train_plan *plan = r->plan;
    cs_train_task task = {.plan = plan, .batch = r->batch, .lanes = r->lanes, .lane_count = r->lane_count};
    task.local = r->batch->local[rank];
    task.scratch = task.local + r->batch->scratch;
    int64_t *spent = r->batch->spent ? r->batch->spent + (int64_t)rank * plan->op_count : NULL;
    const uint64_t mode = cs_flush_denormals();
    for (int i = atomic_load_explicit(&r->segment, memory_order_acquire); i < plan->segment_count; i++) {
        const cs_segment *s = &plan->segments[i];
        const int parts = s->parts ? s->parts : r->lane_count;
        wait_for_segment(r, i);
        int part;
        while ((part = atomic_fetch_add(&r->batch->progress[i].taken, 1)) < parts) {
            if (s->parts)
                do_part(&task, s, part, spent);
            else
                walk_lane(&task, s, part, spent);
            if (atomic_fetch_add(&r->batch->progress[i].done, 1) == parts - 1) {
                for (int o = s->once; o < s->end; o++)
                    cs_train_once(&task, &plan->ops[o]);
                atomic_store_explicit(&r->segment, i + 1, memory_order_release);
            }
        }
    }
    wait_for_segment(r, plan->segment_count);
    cs_restore_denormals(mode);
}

/* A function of the batch alone, so that the results are one too: at least two, so that two threads
 * have work. */
static int lanes(const cs_train_plan *plan, int64_t n) {
    int64_t count = (n + CS_LANE_IMAGES - 1) / CS_LANE_IMAGES;
    count = count < 2 ? 2 : count;
    count = count < plan->lanes ? count : plan->lanes;
    return (int)(count < n ? count : n);
}

void cs_train_run(const cs_train_plan *plan, cs_train_batch *batch, int threads,
                  void (*team)(int threads, void (*work)(void *argument, int rank, int size), void *argument)) {
    run r = {.plan = plan, .batch = batch};
    for (int i = 0; i < plan->segment_count; i++) {
        atomic_init(&batch->progress[i].taken, 0);
        atomic_init(&batch->progress[i].done, 0);
    }
    atomic_init(&r.segment, 0);
    r.lane_count = lanes(plan, batch->n);
    team(threads, work, &r);
    batch->loss = 0;
    batch->correct = 0;
    for (int lane = 0; lane < r.lane_count; lane++) {
        batch->loss += r.lanes[lane].loss;
        batch->correct += r.lanes[lane].correct;
    }
    batch->loss /= (double)batch->n;
}
