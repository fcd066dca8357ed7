/* Pooling over blocked tensors; windows are clipped to the input. */

CS_INLINE int clip_first(int start) { return start < 0 ? -start : 0; }
/* start + size may be beyond the ints, limit - start is not */
CS_INLINE int clip_end(int start, int size, int limit) { return size > limit - start ? limit - start : size; }

static void max_pool(const cs_pool *p, int block, int oh0, int oh1, const float *x, float *y) {
    x += block * p->x_plane;
    y += block * p->y_plane;
    for (int oh = oh0; oh < oh1; oh++) {
        const int h = oh * p->sh - p->pt;
        const int kh0 = clip_first(h), kh1 = clip_end(h, p->kh, p->h);
        for (int ow = 0; ow < p->ow; ow++) {
            const int w = ow * p->sw - p->pl;
            const int kw0 = clip_first(w), kw1 = clip_end(w, p->kw, p->w);
            vf best = v_load(x + (h + kh0) * p->x_row + (int64_t)(w + kw0) * CS_VL);
            for (int kh = kh0; kh < kh1; kh++)
                for (int kw = kw0; kw < kw1; kw++)
                    best = v_max(best, v_load(x + (h + kh) * p->x_row + (int64_t)(w + kw) * CS_VL));
            v_store(y + oh * p->y_row + (int64_t)ow * CS_VL, best);
        }
    }
}

static void avg_pool(const cs_pool *p, int block, int oh0, int oh1, const float *x, float *y) {
    x += block * p->x_plane;
    y += block * p->y_plane;
    for (int oh = oh0; oh < oh1; oh++) {
        const int h = oh * p->sh - p->pt;
        const int kh0 = clip_first(h), kh1 = clip_end(h, p->kh, p->h);
        for (int ow = 0; ow < p->ow; ow++) {
            const int w = ow * p->sw - p->pl;
            const int kw0 = clip_first(w), kw1 = clip_end(w, p->kw, p->w);
            vf sum = {0};
            for (int kh = kh0; kh < kh1; kh++)
                for (int kw = kw0; kw < kw1; kw++)
                    sum += v_load(x + (h + kh) * p->x_row + (int64_t)(w + kw) * CS_VL);
            const int rows = p->count_padding ? clip_end(h, p->kh, p->h + p->pb) : kh1 - kh0;
            const int columns = p->count_padding ? clip_end(w, p->kw, p->w + p->pr) : kw1 - kw0;
            v_store(y + oh * p->y_row + (int64_t)ow * CS_VL, sum / v_set((float)((int64_t)rows * columns)));
        }
    }
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
