/* Runs a plan on the process's team of threads. */
#ifndef CS_EXECUTOR_H
#define CS_EXECUTOR_H

#include "plan.h"

/* n images x float32[n][C][H][W] -> results[i] float32[n][...]. arenas: one a thread.
 *
 * Throughput: with as many images as threads or more, each thread takes a share of the batch
 * through the whole plan, and nobody waits. Latency: with fewer, the threads share each operation. */
void cs_plan_run(const cs_plan *plan, int64_t n, const float *x, float *const *results,
                 float *const *arenas, int threads);

#endif
