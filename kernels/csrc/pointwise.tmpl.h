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

static void rearrange(int w, const int64_t *from, const float *x, float *y) {
    int kept = 0, in_order = 1;
    for (int l = 0; l < CS_VL; l++) {
        kept |= from[l] < 0;
        in_order &= from[l] == from[0] + l;
    }
    if (kept) {
        for (int l = 0; l < CS_VL; l++)
            if (from[l] >= 0)
                for (int64_t i = 0; i < w; i++)
                    y[i * CS_VL + l] = x[from[l] + i * CS_VL];
    } else if (in_order && from[0] % CS_VL == 0) {
        memcpy(y, x + from[0], sizeof(float) * w * CS_VL);
    } else {
        for (int64_t i = 0; i < w; i++)
CS_UNROLL(16)
            for (int l = 0; l < CS_VL; l++)
                y[i * CS_VL + l] = x[from[l] + i * CS_VL];
    }
}
