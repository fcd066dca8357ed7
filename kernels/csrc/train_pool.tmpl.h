/* Backward passes of pooling, one block of an image. */

static void clear(const cs_pool *p, int64_t row, float *dx) {
    for (int h = 0; h < p->h; h++)
        memset(dx + h * row, 0, sizeof(float) * p->w * CS_VL);
}

/* Windows side by side that cover all of the input: each pixel is written once. */
static int tiled(const cs_pool *p) {
    return p->kh == p->sh && p->kw == p->sw && p->pt == 0 && p->pl == 0 &&
           (int64_t)p->oh * p->sh == p->h && (int64_t)p->ow * p->sw == p->w;
}

/* A window's gradient to its first largest value; `fresh`: nothing was stored there before. */
CS_INLINE void max_window(const int rows, const int columns, int fresh, const cs_pool_rows *r, vf top,
                          vf g, const float *x, float *dx) {
    vi open = top == top;
    for (int h = 0; h < rows; h++)
        for (int w = 0; w < columns; w++) {
            const vi here = (v_load(x + h * r->x + (int64_t)w * CS_VL) == top) & open;
            put(!fresh, dx + h * r->dx + (int64_t)w * CS_VL, v_select(here, g, (vf){0}));
            open &= ~here;
        }
}

static void max_pool_dx(const cs_pool *p, const cs_pool_rows *r, const cs_activation *f, int add,
                        const float *x, const float *y, const float *dy, float *dx) {
    const int fresh = tiled(p) && !add;
    const vf low = v_set(f->low), high = v_set(f->high);
    if (!fresh && !add)
        clear(p, r->dx, dx);
    for (int oh = 0; oh < p->oh; oh++) {
        const int h = oh * p->sh - p->pt, kh0 = clip_first(h), rows = clip_end(h, p->kh, p->h) - kh0;
        for (int ow = 0; ow < p->ow; ow++) {
            const int w = ow * p->sw - p->pl, kw0 = clip_first(w), columns = clip_end(w, p->kw, p->w) - kw0;
            const vf top = v_load(y + oh * r->y + (int64_t)ow * CS_VL);
            const vf g = v_select((top > low) & (top < high), v_load(dy + oh * r->dy + (int64_t)ow * CS_VL), (vf){0});
            const int64_t at = (int64_t)(w + kw0) * CS_VL;
            const float *xw = x + (h + kh0) * r->x + at;
            float *dxw = dx + (h + kh0) * r->dx + at;
            if (rows == 2 && columns == 2)
                max_window(2, 2, fresh, r, top, g, xw, dxw);
            else
                max_window(rows, columns, fresh, r, top, g, xw, dxw);
        }
    }
}

static void avg_pool_dx(const cs_pool *p, const cs_pool_rows *r, int add, const float *dy, float *dx) {
    if (!add)
        clear(p, r->dx, dx);
    for (int oh = 0; oh < p->oh; oh++) {
        const int h = oh * p->sh - p->pt, kh0 = clip_first(h), rows = clip_end(h, p->kh, p->h) - kh0;
        const int counted = p->count_padding ? clip_end(h, p->kh, p->h + p->pb) : rows;
        for (int ow = 0; ow < p->ow; ow++) {
            const int w = ow * p->sw - p->pl, kw0 = clip_first(w), columns = clip_end(w, p->kw, p->w) - kw0;
            const int wide = p->count_padding ? clip_end(w, p->kw, p->w + p->pr) : columns;
            const vf g = v_load(dy + oh * r->dy + (int64_t)ow * CS_VL) / v_set((float)((int64_t)counted * wide));
            for (int i = 0; i < rows; i++)
                for (int j = 0; j < columns; j++) {
                    float *to = dx + (h + kh0 + i) * r->dx + (int64_t)(w + kw0 + j) * CS_VL;
                    v_store(to, v_load(to) + g);
                }
        }
    }
}

static void global_max_dx(int64_t n, const float *x, const float *largest, const float *dy,
                          int32_t *done, int add, float *dx) {
    const vf top = v_load(largest), g = v_load(dy);
    vi open = ~*(const vi *)done;
    for (int64_t i = 0; i < n * CS_VL; i += CS_VL) {
        const vi here = (v_load(x + i) == top) & open;
        put(add, dx + i, v_select(here, g, (vf){0}));
        open &= ~here;
    }
    *(vi *)done = ~open;
}
