/* What C has no words for: the pause of a spinning thread, denormals as zeros, stores past the caches. */
#ifndef CS_CPU_H
#define CS_CPU_H

#include <stdint.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

/* between two looks at what another thread will change */
static inline void cs_pause(void) {
#if defined(__SSE__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* What was stored past the caches is there for every thread that sees a later store of this one. */
static inline void cs_stream_end(void) {
#if defined(__SSE__)
    _mm_sfence();
#endif
}

/* Denormals are flushed to zero: on some CPUs each one costs a hundred cycles. Returns the calling
 * thread's mode before, for cs_restore_denormals. */
static inline uint64_t cs_flush_denormals(void) {
#if defined(__SSE__)
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);    /* results and operands */
    return before;
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(before));
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before | 1u << 24));
    return before;
#else
    return 0;
#endif
}

static inline void cs_restore_denormals(uint64_t before) {
#if defined(__SSE__)
    _mm_setcsr((unsigned)before);
#elif defined(__aarch64__)
    __asm__ __volatile__("msr fpcr, %0" : : "r"(before));
#else
    (void)before;
#endif
}

#endif
