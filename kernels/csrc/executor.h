/* Runs a plan on the process's team of threads. */
#ifndef CS_EXECUTOR_H
#define CS_EXECUTOR_H

#include "plan.h"

/* What a plan has learned of running one image alone and shared; zero to begin with. */
typedef struct cs_pace {
    _Atomic int64_t mean[2];        /* nanoseconds a run on one thread, and on all: moving averages */
    _Atomic int32_t until_trial;    /* runs before the slower way is tried again */
    _Atomic int32_t interval;       /* between the last trials */
} cs_pace;

/* n images, inputs[i] float32[n][...] -> results[i] float32[n][...]. arenas: one a thread.
 * tables[i]: NULL, or float32[C][256] where inputs[i] is uint8[n][C][H][W]: what a byte stands for.
 * spent: int64[threads][op_count], to which each thread adds the nanoseconds that it spent on each
 * operation, or NULL.
 *
 * Throughput: each thread takes a share of the batch through the whole plan, and nobody waits.
 * Latency: for a single image the threads share each operation. */
void cs_plan_run(const cs_plan *plan, cs_pace *pace, int64_t n, const float *const *inputs,
                 const float *const *tables, float *const *results, float *const *arenas, int threads, int64_t *spent);

#endif
