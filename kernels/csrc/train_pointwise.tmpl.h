/* Backward passes value by value, dropout, and the loss. */

CS_INLINE void activate_dx_of(const int curve, const cs_activation *f, int add, int64_t n,
                              const float *x, const float *dy, float *dx) {
    for (int64_t i = 0; i < n * CS_VL; i += CS_VL)
        put(add, dx + i, v_load(dy + i) * v_slope(curve, f, v_load(x + i)));
}

static void activate_dx(const cs_activation *f, int result, int add, int64_t n, const float *x,
                        const float *dy, float *dx) {
#define CS_AT(curve) activate_dx_of(curve, f, add, n, x, dy, dx)
    (void)result;   /* bounds and a slope have their derivative at both the same */
    CS_FOR_CURVE(f->curve, CS_AT)
#undef CS_AT
}

static void prelu_dx(const float *slopes, int add, int64_t n, const float *x, const float *dy, float *dx) {
    const vf s = v_load(slopes);
    for (int64_t i = 0; i < n * CS_VL; i += CS_VL) {
        const vf g = v_load(dy + i);
        put(add, dx + i, v_select(v_load(x + i) > (vf){0}, g, s * g));
    }
}

static void prelu_slopes(int64_t n, const float *x, const float *dy, double *sums) {
    for (int64_t first = 0; first < n; first += CS_SUM_PIXELS) {
        const int64_t end = n - first < CS_SUM_PIXELS ? n : first + CS_SUM_PIXELS;
        vf sum[2] = {{0}};
        for (int64_t i = first; i < end; i++) {
            const vf v = v_load(x + i * CS_VL);
            sum[i & 1] += v_select(v > (vf){0}, (vf){0}, v * v_load(dy + i * CS_VL));
        }
        add_to_doubles(sum[0] + sum[1], sums);
    }
}

static void scale_dx(float factor, int add, int64_t n, const float *dy, float *dx) {
    const vf a = v_set(factor);
    for (int64_t i = 0; i < n * CS_VL; i += CS_VL)
        put(add, dx + i, a * v_load(dy + i));
}

static void multiply_dx(int add, int64_t n, const float *dy, const float *r, int64_t r_px, float *dx) {
    for (int64_t i = 0; i < n; i++)
        put(add, dx + i * CS_VL, v_load(dy + i * CS_VL) * v_load(r + i * r_px));
}

static void sum(int64_t n, const float *dy, const float *r, float *total) {
    vf part[2] = {{0}};
    for (int64_t i = 0; i < n; i++) {
        vf g = v_load(dy + i * CS_VL);
        if (r)
            g *= v_load(r + i * CS_VL);
        part[i & 1] += g;
    }
    v_store(total, v_load(total) + (part[0] + part[1]));
}

static void fill(int64_t n, const float *v, float factor, int add, float *dx) {
    const vf value = v_load(v) * v_set(factor);
    for (int64_t i = 0; i < n * CS_VL; i += CS_VL)
        put(add, dx + i, value);
}

/* A bijection of 32 bits in which each bit of the result depends on all (C. Wellons, "Prospecting
 * for Hash Functions": lowbias32). */
CS_INLINE vu v_hash(vu h) {
    h ^= h >> 16;
    h *= 0x7feb352du;
    h ^= h >> 15;
    h *= 0x846ca68bu;
    return h ^ h >> 16;
}

static void dropout(float rate, const uint32_t key[2], uint32_t first, uint32_t lane_step, int add,
                    int64_t n, const float *x, float *y) {
    const vf kept = v_set(1.0f / (1.0f - rate)), least = v_set(rate);
    vu lane;
    for (int l = 0; l < CS_VL; l++)
        lane[l] = first + (uint32_t)l * lane_step + key[0];
    for (int64_t i = 0; i < n; i++) {
        const vu h = v_hash(v_hash(lane + (uint32_t)i) ^ key[1]);
        const vf u = __builtin_convertvector((vi)(h >> 8), vf) * v_set(0x1p-24f);
        put(add, y + i * CS_VL, v_select(u >= least, v_load(x + i * CS_VL) * kept, (vf){0}));
    }
}

static void softmax_dx(int64_t n, const float *y, const float *dy, int add, float *dx) {
    double dot = 0;
    for (int64_t i = 0; i < n; i++)
        dot += (double)y[i] * dy[i];
    for (int64_t i = 0; i < n; i++) {
        const float d = y[i] * (dy[i] - (float)dot);
        dx[i] = add ? dx[i] + d : d;
    }
}

static double cross_entropy(int64_t n, const float *x, const float *t, float factor, float *dx) {
    const float top = row_top(n, x);
    vf sum = {0};
    for (int64_t i = 0; i < n; i += CS_VL) {
        const int64_t left = n - i;
        vf e = v_exp(v_load(x + i) - v_set(top));   /* a row is whole vectors */
        if (left < CS_VL)
            e = v_select(v_first((int)left), e, (vf){0});
        v_store(dx + i, e);
        sum += e;
    }
    const double total = v_total(sum), log_total = log(total);
    double loss = 0, targets = 0;
    for (int64_t i = 0; i < n; i++) {
        if (t[i] != 0.0f)
            loss += t[i] * (log_total - ((double)x[i] - top));
        targets += t[i];
    }
    /* where the row's largest is not finite, neither is the loss */
    loss += (double)(top - top);
    const float each = (float)(targets / total);
    for (int64_t i = 0; i < n; i++)
        dx[i] = (dx[i] * each - t[i]) * factor;
    return loss;
}
