/* One vector of CS_VL floats, through the compiler's vector extension: the same source becomes SSE,
 * AVX, AVX-512 or NEON code. Included once for each instruction set, so everything is static. */
#ifndef CS_VEC_H
#define CS_VEC_H

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "cs.h"
#if defined(__SSE__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define CS_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define CS_UNROLL(n) _Pragma("clang loop unroll(full)")
#else
#define CS_PRAGMA(words) _Pragma(#words)
#define CS_UNROLL(n) CS_PRAGMA(GCC unroll n)
#endif
#define CS_CAT2(a, b) a##b
#define CS_CAT(a, b) CS_CAT2(a, b)

/* Keeps the compiler from computing a pointer's sums anew: dozens of addresses fill the registers. */
#define CS_OPAQUE(p) __asm__("" : "+r"(p))

/* aligned(4): numpy promises no more, and an unaligned load of aligned data costs nothing */
typedef float vf __attribute__((vector_size(4 * CS_VL), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * CS_VL), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * CS_VL), aligned(4), may_alias));

/* half of one */
typedef float vh __attribute__((vector_size(2 * CS_VL), aligned(4), may_alias));

CS_INLINE vf v_load(const float *p) { return *(const vf *)p; }
CS_INLINE void v_store(float *p, vf v) { *(vf *)p = v; }
/* Past the caches, for what is too large for them: p is aligned to whole vectors. */
CS_INLINE void v_stream(float *p, vf v) {
#if defined(__AVX512F__) && CS_VL == 16
    _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX__) && CS_VL == 8
    _mm256_stream_ps(p, (__m256)v);
#elif defined(__SSE__) && CS_VL == 4
    _mm_stream_ps(p, (__m128)v);
#else
    v_store(p, v);
#endif
}
CS_INLINE vf v_set(float x) { return x - (vf){0}; }
/* lanes of a where the mask is set, else of b */
CS_INLINE vf v_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
/* NaN stays NaN, as in NumPy's maximum */
CS_INLINE vf v_max(vf a, vf b) {
#if defined(__AVX512F__) && CS_VL == 16
    /* b where one is NaN: so only a's must be kept */
    const __mmask16 real = _mm512_cmp_ps_mask((__m512)a, (__m512)a, _CMP_ORD_Q);
    return (vf)_mm512_mask_max_ps((__m512)a, real, (__m512)a, (__m512)b);
#else
    return v_select((a >= b) | (a != a), a, b);
#endif
}
CS_INLINE vf v_abs(vf v) { return (vf)((vi)v & 0x7fffffff); }

/* v held within [low, high]. NaN stays NaN: x86 takes the second operand where one of
 * them is, NEON the NaN. */
CS_INLINE vf v_clip(vf v, vf low, vf high) {
#if defined(__AVX512F__) && CS_VL == 16
    return (vf)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)v));
#elif defined(__AVX__) && CS_VL == 8
    return (vf)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)v));
#elif defined(__SSE__) && CS_VL == 4
    return (vf)_mm_min_ps((__m128)high, _mm_max_ps((__m128)low, (__m128)v));
#elif defined(__ARM_NEON) && CS_VL == 4
    return (vf)vminq_f32((float32x4_t)high, vmaxq_f32((float32x4_t)low, (float32x4_t)v));
#else
    v = v_select(low > v, low, v);
    return v_select(high < v, high, v);
#endif
}

/* the first n < CS_VL floats at p, the other lanes from `rest` */
CS_INLINE vf v_load_part(const float *p, int64_t n, vf rest) {
    float lanes[CS_VL];
    v_store(lanes, rest);
    memcpy(lanes, p, sizeof(float) * n);
    return v_load(lanes);
}

/* the sum and the largest of all lanes, always in the same order */
CS_INLINE float v_total(vf v) {
    float lanes[CS_VL];
    v_store(lanes, v);
    for (int half = CS_VL / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lanes[i] += lanes[i + half];
    return lanes[0];
}

CS_INLINE float v_largest(vf v) {
    float top = v[0];
    for (int i = 1; i < CS_VL; i++)
        top = v[i] > top ? v[i] : top;
    return top;
}

/* lanes below n */
CS_INLINE vi v_first(int n) {
    vi lane;
    for (int i = 0; i < CS_VL; i++)
        lane[i] = i;
    return lane < n;
}

#endif
