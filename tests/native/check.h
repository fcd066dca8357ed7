/* What the C checks share: reproducible numbers, blocked arrays, and a comparison that says what. */
#ifndef CHECK_H
#define CHECK_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int checks_done, checks_failed;

/* of a multiplicative congruential generator: within [-1, 1] */
static inline float number(void) {
    static _Thread_local uint64_t state = 12345;
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(int32_t)(state >> 32) / 2147483648.0f;
}

/* Exactly as long as asked for, so that a sanitizer sees what is read or written beyond. */
static inline float *floats(int64_t n) {
    float *p = malloc(sizeof(float) * (size_t)n);
    if (!p)
        abort();
    for (int64_t i = 0; i < n; i++)
        p[i] = number();
    return p;
}

static inline void check(const char *isa, const char *what, double got, double expected, double bound) {
    checks_done++;
    const int same = isnan(expected) ? isnan(got) : got == expected || fabs(got - expected) <= bound;
    if (!same && checks_failed++ < 20)
        printf("%s %s: got %.9g, expected %.9g within %.3g\n", isa, what, got, expected, bound);
}

static inline int report(const char *program) {
    printf("%s: %d values checked, %d wrong\n", program, checks_done, checks_failed);
    return checks_failed != 0 || checks_done == 0;
}

#endif
