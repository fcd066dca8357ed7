/* The only place that maps this CPU to a table of kernels. */
#include "cs.h"

#include <string.h>

extern const cs_kernels cs_kernels_base;
#ifdef CS_HAVE_AVX2
extern const cs_kernels cs_kernels_avx2;
#endif
#ifdef CS_HAVE_AVX512
extern const cs_kernels cs_kernels_avx512;
#endif

/* __builtin_cpu_supports also asks the OS (XCR0) whether it saves the wide registers */
int cs_available(const char **names, int room) {
    const cs_kernels *tables[3];
    int n = 0;
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_cpu_init();
#endif
#ifdef CS_HAVE_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("fma"))
        tables[n++] = &cs_kernels_avx512;
#endif
#ifdef CS_HAVE_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        tables[n++] = &cs_kernels_avx2;
#endif
    tables[n++] = &cs_kernels_base;
    for (int i = 0; i < n && i < room; i++)
        names[i] = tables[i]->isa;
    return n;
}

const cs_kernels *cs_kernels_for(const char *isa) {
    const char *names[3];
    int n = cs_available(names, 3);
    for (int i = 0; i < n; i++) {
        if (strcmp(names[i], isa) != 0)
            continue;
#ifdef CS_HAVE_AVX512
        if (strcmp(isa, "avx512") == 0)
            return &cs_kernels_avx512;
#endif
#ifdef CS_HAVE_AVX2
        if (strcmp(isa, "avx2") == 0)
            return &cs_kernels_avx2;
#endif
        return &cs_kernels_base;
    }
    return NULL;
}
