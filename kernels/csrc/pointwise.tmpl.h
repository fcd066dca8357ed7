/* Per-pixel work on blocked tensors. */

static void scale_shift(const cs_pointwise *p, int block, int h0, int h1, const float *a,
                        const float *scale, const float *shift, float *y) {
    const vf s = v_load(scale), t = v_load(shift);
    const vf low = v_set(p->activation.low), high = v_set(p->activation.high);
    a += block * p->a_plane;
    y += block * p->y_plane;
    for (int h = h0; h < h1; h++) {
        const float *ar = a + h * p->a_row;
        float *yr = y + h * p->y_row;
        for (int64_t i = 0; i < (int64_t)p->w * CS_VL; i += CS_VL)
            v_store(yr + i, v_clip(v_load(ar + i) * s + t, low, high));
        follow_curve(&p->activation, p->w, yr, CS_VL);
    }
}

static void prelu(const cs_pointwise *p, int block, int h0, int h1, const float *a,
                  const float *slope, float *y) {
    const vf s = v_load(slope);
    a += block * p->a_plane;
    y += block * p->y_plane;
    for (int h = h0; h < h1; h++)
        for (int64_t i = 0; i < (int64_t)p->w * CS_VL; i += CS_VL) {
            const vf v = v_load(a + h * p->a_row + i);
            v_store(y + h * p->y_row + i, v_select(v > (vf){0}, v, s * v));
        }
}

CS_INLINE vf v_arithmetic(int arithmetic, vf a, vf b) {
    return arithmetic == CS_ADD ? a + b : arithmetic == CS_SUB ? a - b : a * b;
}

CS_INLINE void arithmetic_row(const int kind, const cs_pointwise *p, const float *a, const float *b,
                              float *y) {
    const vf low = v_set(p->activation.low), high = v_set(p->activation.high);
    for (int64_t i = 0; i < p->w; i++)
        v_store(y + i * CS_VL,
                v_clip(v_arithmetic(kind, v_load(a + i * p->a_px), v_load(b + i * p->b_px)), low, high));
}

static void arithmetic(const cs_pointwise *p, int block, int h0, int h1, const float *a,
                       const float *b, float *y) {
    a += block * p->a_plane;
    b += block * p->b_plane;
    y += block * p->y_plane;
    for (int h = h0; h < h1; h++) {
        const float *ar = a + h * p->a_row, *br = b + h * p->b_row;
        float *yr = y + h * p->y_row;
        if (p->arithmetic == CS_ADD)
            arithmetic_row(CS_ADD, p, ar, br, yr);
        else if (p->arithmetic == CS_SUB)
            arithmetic_row(CS_SUB, p, ar, br, yr);
        else
            arithmetic_row(CS_MUL, p, ar, br, yr);
        follow_curve(&p->activation, p->w, yr, CS_VL);
    }
}

/* The lanes of v, and of x by number where that is not negative. */
CS_INLINE vf v_merge(vf v, vf x, const int32_t *lanes) {
    const vi number = *(const vi *)lanes;
#if defined(__AVX512F__) && CS_VL == 16
    const __mmask16 real = _mm512_movepi32_mask((__m512i)~number);
    return (vf)_mm512_mask_permutexvar_ps((__m512)v, real, (__m512i)number, (__m512)x);
#elif defined(__AVX2__) && CS_VL == 8
    const __m256 moved = _mm256_permutevar8x32_ps((__m256)x, (__m256i)number);
    return (vf)_mm256_blendv_ps(moved, (__m256)v, (__m256)number);
#else
    for (int l = 0; l < CS_VL; l++)
        if (number[l] >= 0)
            v[l] = x[number[l]];
    return v;
#endif
}

static void rearrange(int w, int sources, const float *const *x, const int32_t *lanes, float *y) {
    int moved = sources != 1;
    for (int l = 0; l < CS_VL; l++)
        moved |= lanes[l] != l;
    if (!moved) {
        memcpy(y, x[0], sizeof(float) * w * CS_VL);
        return;
    }
    for (int64_t i = 0; i < (int64_t)w * CS_VL; i += CS_VL) {
        vf v = v_load(y + i);
        for (int s = 0; s < sources; s++)
            v = v_merge(v, v_load(x[s] + i), lanes + s * CS_VL);
        v_store(y + i, v);
    }
}
