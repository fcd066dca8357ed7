/* One vector of CS_VL floats, through the compiler's vector extension: the same source becomes SSE,
 * AVX, AVX-512 or NEON code. Included once for each instruction set, so everything is static. */
#ifndef CS_VEC_H
#define CS_VEC_H

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "cs.h"

#define CS_INLINE static inline __attribute__((always_inline))
#define CS_CAT2(a, b) a##b
#define CS_CAT(a, b) CS_CAT2(a, b)

/* aligned(4): numpy promises no more, and an unaligned load of aligned data costs nothing */
typedef float vf __attribute__((vector_size(4 * CS_VL), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * CS_VL), aligned(4), may_alias));

CS_INLINE vf v_load(const float *p) { return *(const vf *)p; }
CS_INLINE void v_store(float *p, vf v) { *(vf *)p = v; }
CS_INLINE vf v_set(float x) { return x - (vf){0}; }
/* lanes of a where the mask is set, else of b */
CS_INLINE vf v_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
/* NaN stays NaN in both, as in NumPy's maximum */
CS_INLINE vf v_relu(vf v) { return (vf)((vi)v & ~(v <= (vf){0})); }
CS_INLINE vf v_max(vf a, vf b) { return v_select((a >= b) | (a != a), a, b); }

CS_INLINE vf v_activate(vf v, int activation) { return activation == CS_RELU ? v_relu(v) : v; }

#endif
