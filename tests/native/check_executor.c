/* The team of threads and the executor: many callers at a time, one image shared and batches dealt
 * out, a fork. Built with -fsanitize=thread it shows every unsynchronised access. */
#include "check.h"
#include "executor.h"

#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLERS = 4, THREADS = 3, CHANNELS = 5, SIDE = 6, IMAGES = 7, IMAGE = CHANNELS * SIDE * SIDE };

static int rounds = 300;
static cs_plan plan;
static cs_tensor tensors[4];
static cs_op ops[4];
static cs_pace pace;
static int64_t arena_floats;

static int tensor(int i, int planar, int level) {
    const int b = planar ? 1 : plan.kernels->block;
    cs_tensor *t = &tensors[i];
    *t = (cs_tensor){.channels = CHANNELS, .height = SIDE, .width = SIDE, .planar = planar,
                     .level = level, .px = b, .row = SIDE * b, .plane = SIDE * SIDE * b};
    t->image = t->plane * (planar ? CHANNELS : (CHANNELS + b - 1) / b);
    t->offset = arena_floats;
    arena_floats += t->image * plan.group[level];
    return i;
}

/* input -> blocked -> SiLU -> bounds -> output: two levels, so that groups nest */
static void make_plan(void) {
    const char *names[8];
    cs_available(names, 8);
    plan = (cs_plan){cs_kernels_for(names[0]), tensors, ops, 4, 2, {1, 3}, 0};
    tensor(0, 1, 0);
    tensors[0].offset = -1;
    arena_floats = 0;
    tensor(1, 0, 0);
    tensor(2, 0, 1);
    tensor(3, 0, 1);
    ops[0] = (cs_op){.kind = CS_STAGE, .level = 0, .x = 0, .r = -1, .y = 1};
    ops[1] = (cs_op){.kind = CS_ACTIVATE, .level = 0, .x = 1, .r = -1, .y = 2};
    ops[2] = (cs_op){.kind = CS_ACTIVATE, .level = 1, .x = 2, .r = -1, .y = 3};
    ops[3] = (cs_op){.kind = CS_OUTPUT, .level = 1, .x = 3, .r = -1, .y = -1};
    ops[1].as.activation = (cs_activation){0, 0, CS_SILU, 0, 0};
    ops[2].as.activation = (cs_activation){-0.1f, 0.5f, CS_NO_CURVE, 0, 0};
    plan.scratch = arena_floats;
}

static void run_plan(int64_t n, const float *x, float *y, int threads) {
    float *arenas[THREADS], *results[] = {y};
    const float *inputs[] = {x}, *tables[] = {NULL};
    for (int i = 0; i < THREADS; i++)
        arenas[i] = floats(arena_floats);
    cs_plan_run(&plan, &pace, n, inputs, tables, results, arenas, threads, NULL);
    for (int i = 0; i < THREADS; i++)
        free(arenas[i]);
}

typedef struct caller {
    const float *x, *expected;
    int wrong;
} caller;

static void *call_often(void *argument) {
    caller *c = argument;
    float *y = malloc(sizeof(float) * IMAGES * IMAGE);
    for (int i = 0; i < rounds; i++) {
        const int64_t n = i % IMAGES + 1;
        run_plan(n, c->x, y, 1 + i % THREADS);
        c->wrong += memcmp(y, c->expected, sizeof(float) * n * IMAGE) != 0;
    }
    free(y);
    return NULL;
}

static void check_callers(const float *x, const float *expected) {
    pthread_t threads[CALLERS];
    caller callers[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        callers[i] = (caller){x, expected, 0};
        if (pthread_create(&threads[i], NULL, call_often, &callers[i]))
            abort();
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
        check("executor", "answers that differ", callers[i].wrong, 0, 0);
    }
}

/* The child has no workers and must not wait for any. (ThreadSanitizer can't follow it.) */
static void check_fork(const float *x, const float *expected) {
    const pid_t child = fork();
    if (child == 0) {
        caller c = {x, expected, 0};
        alarm(60);
        rounds = 20;
        call_often(&c);
        _exit(c.wrong != 0);
    }
    int status = -1;
    waitpid(child, &status, 0);
    check("executor", "status of a forked child", status, 0, 0);
}

/* Denormals count as zeros while a plan runs, and in the caller's own sums as before. */
static void check_denormals(void) {
    volatile float tiny = 1e-40f, one = 1;
    float *x = floats(IMAGE), *y = floats(IMAGE);
    for (int i = 0; i < IMAGE; i++)
        x[i] = tiny;
    run_plan(1, x, y, 1);
    check("executor", "half of a denormal", y[0], 0, 0);
    check("executor", "a denormal times one", tiny * one, 1e-40f, 0);
    free(x);
    free(y);
}

/* check_executor [rounds [no-fork]] */
int main(int argc, char **argv) {
    if (argc > 1)
        rounds = atoi(argv[1]);
    make_plan();
    float *x = floats(IMAGES * IMAGE), *expected = floats(IMAGES * IMAGE);
    run_plan(IMAGES, x, expected, 1);
    for (int i = 0; i < IMAGES * IMAGE; i++) {
        const double v = x[i] / (1 + exp(-x[i]));
        check("executor", "value", expected[i], v < -0.1f ? -0.1f : v > 0.5f ? 0.5f : v, 1e-6);
    }
    check_denormals();
    check_callers(x, expected);
    if (argc <= 2)
        check_fork(x, expected);
    free(x);
    free(expected);
    return report("check_executor");
}
