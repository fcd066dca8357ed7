/* Per-pixel work on blocked tensors, and on contiguous rows. */

static void scale_shift(const cs_pointwise *p, int block, int h0, int h1, const float *a,
                        const float *scale, const float *shift, float *y) {
    const vf s = v_load(scale), t = v_load(shift);
    a += block * p->a_plane;
    y += block * p->y_plane;
    for (int h = h0; h < h1; h++)
        for (int64_t i = 0; i < (int64_t)p->w * CS_VL; i += CS_VL)
            v_store(y + h * p->y_row + i, v_activate(v_load(a + h * p->a_row + i) * s + t, p->activation));
}

static void add(const cs_pointwise *p, int block, int h0, int h1, const float *a, const float *b, float *y) {
    a += block * p->a_plane;
    b += block * p->b_plane;
    y += block * p->y_plane;
    for (int h = h0; h < h1; h++)
        for (int64_t i = 0; i < (int64_t)p->w * CS_VL; i += CS_VL)
            v_store(y + h * p->y_row + i,
                    v_activate(v_load(a + h * p->a_row + i) + v_load(b + h * p->b_row + i), p->activation));
}

static void softmax(int64_t n, const float *x, float *y) {
    /* the largest of all but NaN; a NaN then spreads over the row through the sum */
    float top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        top = x[i] > top ? x[i] : top;
    for (int64_t i = 0; i < n; i++) {
        y[i] = expf(x[i] - top);
        sum += y[i];
    }
    for (int64_t i = 0; i < n; i++)
        y[i] /= sum;
}
