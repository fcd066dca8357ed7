/* Pooling over blocked tensors; windows are clipped to the input. */

CS_INLINE int clip_first(int start) { return start < 0 ? -start : 0; }
/* start + size may be beyond the ints, limit - start is not */
CS_INLINE int clip_end(int start, int size, int limit) { return size > limit - start ? limit - start : size; }

CS_INLINE vf pool_join(const int largest, vf a, vf b) {
    if (largest)
        return v_max(a, b);
    return a + b;
}

CS_INLINE void pool_store(const int largest, vf v, vf count, float *y) {
    if (!largest)
        v = v / count;
    v_store(y, v);
}

/* Windows of a row whose columns all lie in the input, np of them: first the columns, which windows
 * share, then the windows. taps, step: of the columns; rows: how many of the input. */
CS_INLINE void pool_tile(const int largest, const int np, const int taps, const int step, int rows,
                         int64_t x_row, vf count, const float *x, float *y) {
    vf column[(4 - 1) * 2 + 3];
CS_UNROLL(16)
    for (int j = 0; j < (np - 1) * step + taps; j++)
        column[j] = v_load(x + j * CS_VL);
    for (int h = 1; h < rows; h++)
CS_UNROLL(16)
        for (int j = 0; j < (np - 1) * step + taps; j++)
            column[j] = pool_join(largest, column[j], v_load(x + h * x_row + j * CS_VL));
CS_UNROLL(4)
    for (int i = 0; i < np; i++) {
        vf v = column[i * step];
CS_UNROLL(4)
        for (int kw = 1; kw < taps; kw++)
            v = pool_join(largest, v, column[i * step + kw]);
        pool_store(largest, v, count, y + i * CS_VL);
    }
}

/* any window of a row, clipped to the input */
CS_INLINE void pool_window(const int largest, const cs_pool *p, int rows, int w, vf count,
                           const float *x, float *y) {
    const int kw0 = clip_first(w), kw1 = clip_end(w, p->kw, p->w);
    vf v = {0};
    if (largest)
        v = v_load(x + (int64_t)(w + kw0) * CS_VL);
    for (int h = 0; h < rows; h++)
        for (int kw = kw0; kw < kw1; kw++)
            v = pool_join(largest, v, v_load(x + h * p->x_row + (int64_t)(w + kw) * CS_VL));
    pool_store(largest, v, count, y);
}

CS_INLINE void pool_row(const int largest, const int taps, const int step, const cs_pool *p,
                        int rows, int counted_rows, const float *x, float *y) {
    const vf whole = v_set((float)((int64_t)counted_rows * p->kw));
    for (int ow = 0; ow < p->ow;) {
        const int w = ow * p->sw - p->pl;
        if (taps && w >= 0 && ow + 4 <= p->ow && p->w - w >= 3 * step + taps) {
            pool_tile(largest, 4, taps, step, rows, p->x_row, whole, x + (int64_t)w * CS_VL,
                      y + (int64_t)ow * CS_VL);
            ow += 4;
        } else {
            const int columns = p->count_padding ? clip_end(w, p->kw, p->w + p->pr)
                                                 : clip_end(w, p->kw, p->w) - clip_first(w);
            const vf count = v_set((float)((int64_t)counted_rows * columns));
            pool_window(largest, p, rows, w, count, x, y + (int64_t)ow * CS_VL);
            ow++;
        }
    }
}

CS_INLINE void pool(const int largest, const cs_pool *p, int block, int oh0, int oh1,
                    const float *x, float *y) {
    x += block * p->x_plane;
    y += block * p->y_plane;
    for (int oh = oh0; oh < oh1; oh++) {
        const int h = oh * p->sh - p->pt;
        const int kh0 = clip_first(h), rows = clip_end(h, p->kh, p->h) - kh0;
        const int counted = p->count_padding ? clip_end(h, p->kh, p->h + p->pb) : rows;
        const float *xr = x + (h + kh0) * p->x_row;
        float *yr = y + oh * p->y_row;
        if (p->kw == 3 && p->sw == 1)
            pool_row(largest, 3, 1, p, rows, counted, xr, yr);
        else if (p->kw == 3 && p->sw == 2)
            pool_row(largest, 3, 2, p, rows, counted, xr, yr);
        else if (p->kw == 2 && p->sw == 2)
            pool_row(largest, 2, 2, p, rows, counted, xr, yr);
        else
            pool_row(largest, 0, 0, p, rows, counted, xr, yr);
    }
}

static void max_pool(const cs_pool *p, int block, int oh0, int oh1, const float *x, float *y) {
    pool(1, p, block, oh0, oh1, x, y);
}

static void avg_pool(const cs_pool *p, int block, int oh0, int oh1, const float *x, float *y) {
    pool(0, p, block, oh0, oh1, x, y);
}

static void global_max_pool(int h, int w, int64_t row, const float *x, float *y) {
    vf best = v_load(x);
    for (int i = 0; i < h; i++)
        for (int j = 0; j < w; j++)
            best = v_max(best, v_load(x + i * row + (int64_t)j * CS_VL));
    v_store(y, best);
}

static void global_avg_pool(int h, int w, int64_t row, const float *x, float *y) {
    vf sum = {0};
    for (int i = 0; i < h; i++)
        for (int j = 0; j < w; j++)
            sum += v_load(x + i * row + (int64_t)j * CS_VL);
    v_store(y, sum / v_set((float)((int64_t)h * w)));
}
