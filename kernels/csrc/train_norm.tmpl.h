/* Batch norm in training, and the derivatives of activations. Sums of a row are floats for so many
 * pixels, then doubles: fast, and good to about a float's own precision for any number of images. */

#define CS_SUM_PIXELS 256

/* The derivative of an activation; at: where z comes from (enum cs_slope_at). */
CS_INLINE vf v_slope(const int curve, const cs_activation *f, vf z) {
    const vf zero = {0}, one = v_set(1.0f), a = v_set(f->a), b = v_set(f->b);
    vf s, t;
    switch (curve) {
    case CS_LEAKY_RELU:
        return v_select(z > zero, one, a);
    case CS_ELU:
        return v_select(z > zero, one, a * v_exp(z));
    case CS_SIGMOID:
        s = v_sigmoid(z);
        return s * (one - s);
    case CS_HARD_SIGMOID:
        t = a * z + b;
        return v_select((t > zero) & (t < one), a, zero);
    case CS_HARD_SWISH:
        t = v_set(1.0f / 3) * z + v_set(0.5f);
        return v_select(z <= v_set(-3.0f), zero, v_select(z >= v_set(3.0f), one, t));
    case CS_SILU:
        s = v_sigmoid(z);
        return s * (one + z * (one - s));
    case CS_GELU:
        t = v_clip(v_set(-0.5f) * z * z, v_set(-104.0f), zero);
        return v_normal(z) + z * v_set(0.398942280401432678f) * v_exp(t);
    case CS_GELU_TANH:
        s = v_sigmoid(v_set(1.59576912160573071f) * (z + v_set(0.044715f) * z * z * z));
        t = v_set(1.59576912160573071f) * (one + v_set(0.134145f) * z * z);
        return s + z * s * (one - s) * t;
    case CS_TANH:
        t = v_tanh(z);
        return one - t * t;
    default:
        return v_select((z > v_set(f->low)) & (z < v_set(f->high)), one, zero);
    }
}

/* calls macro(curve) with each curve as a constant, so that loops are made for each */
#define CS_FOR_CURVE(which, macro)                                                                 \
    switch (which) {                                                                               \
    case CS_LEAKY_RELU: macro(CS_LEAKY_RELU); break;                                               \
    case CS_ELU: macro(CS_ELU); break;                                                             \
    case CS_SIGMOID: macro(CS_SIGMOID); break;                                                     \
    case CS_HARD_SIGMOID: macro(CS_HARD_SIGMOID); break;                                           \
    case CS_HARD_SWISH: macro(CS_HARD_SWISH); break;                                               \
    case CS_SILU: macro(CS_SILU); break;                                                           \
    case CS_GELU: macro(CS_GELU); break;                                                           \
    case CS_GELU_TANH: macro(CS_GELU_TANH); break;                                                 \
    case CS_TANH: macro(CS_TANH); break;                                                           \
    default: macro(CS_NO_CURVE);                                                                   \
    }

CS_INLINE void put(int add, float *to, vf v) {
    if (add)
        v = v_load(to) + v;
    v_store(to, v);
}

CS_INLINE void add_to_doubles(vf v, double *sums) {
    for (int l = 0; l < CS_VL; l++)
        sums[l] += (double)v[l];
}

static void norm_statistics(int64_t n, const float *x, const float *shift, double *sums, double *squares) {
    const vf s = v_load(shift);
    for (int64_t first = 0; first < n; first += CS_SUM_PIXELS) {
        const int64_t end = n - first < CS_SUM_PIXELS ? n : first + CS_SUM_PIXELS;
        vf sum[4] = {{0}}, square[4] = {{0}};
        int64_t i = first;
        for (; i + 4 <= end; i += 4)
CS_UNROLL(4)
            for (int k = 0; k < 4; k++) {
                const vf d = v_load(x + (i + k) * CS_VL) - s;
                sum[k] += d;
                square[k] += d * d;
            }
        for (; i < end; i++) {
            const vf d = v_load(x + i * CS_VL) - s;
            sum[0] += d;
            square[0] += d * d;
        }
        add_to_doubles((sum[0] + sum[1]) + (sum[2] + sum[3]), sums);
        add_to_doubles((square[0] + square[1]) + (square[2] + square[3]), squares);
    }
}

static void norm(const cs_norm_block *p, int64_t n, const float *x, const float *r, float *y) {
    const vf s = v_load(p->scale), t = v_load(p->shift);
    const vf low = v_set(p->activation->low), high = v_set(p->activation->high);
    if (r)
        for (int64_t i = 0; i < n * CS_VL; i += CS_VL)
            v_store(y + i, v_clip(v_load(x + i) * s + t + v_load(r + i), low, high));
    else
        for (int64_t i = 0; i < n * CS_VL; i += CS_VL)
            v_store(y + i, v_clip(v_load(x + i) * s + t, low, high));
    follow_curve(p->activation, n, y, CS_VL);
}

CS_INLINE vf norm_gradient(const int at, const int curve, const cs_norm_block *p, vf x, vf y, vf dy) {
    if (at == CS_SLOPE_NONE)
        return dy;
    vf z = y;
    if (at == CS_SLOPE_AT_INPUT)
        z = x * v_load(p->scale) + v_load(p->shift);
    if (curve == CS_NO_CURVE)
        return v_select((z > v_set(p->activation->low)) & (z < v_set(p->activation->high)), dy, (vf){0});
    return dy * v_slope(curve, p->activation, z);
}

CS_INLINE void norm_sums_of(const int at, const int curve, const cs_norm_block *p, int64_t n, const float *x,
                            const float *y, const float *dy, float *dr, double *sums, double *products) {
    const vf mean = v_load(p->mean);
    for (int64_t first = 0; first < n; first += CS_SUM_PIXELS) {
        const int64_t end = n - first < CS_SUM_PIXELS ? n : first + CS_SUM_PIXELS;
        vf sum[2] = {{0}}, product[2] = {{0}};
        for (int64_t i = first; i < end; i++) {
            const vf xv = v_load(x + i * CS_VL);
            vf yv = {0};
            if (at == CS_SLOPE_AT_RESULT)
                yv = v_load(y + i * CS_VL);
            const vf g = norm_gradient(at, curve, p, xv, yv, v_load(dy + i * CS_VL));
            if (dr)
                v_store(dr + i * CS_VL, g);
            sum[i & 1] += g;
            product[i & 1] += g * (xv - mean);
        }
        add_to_doubles(sum[0] + sum[1], sums);
        add_to_doubles(product[0] + product[1], products);
    }
}

static void norm_sums(const cs_norm_block *p, int64_t n, const float *x, const float *y,
                      const float *dy, float *dr, double *sums, double *products) {
#define CS_RESULT(curve) norm_sums_of(CS_SLOPE_AT_RESULT, curve, p, n, x, y, dy, dr, sums, products)
#define CS_INPUT(curve) norm_sums_of(CS_SLOPE_AT_INPUT, curve, p, n, x, y, dy, dr, sums, products)
    if (p->slope_at == CS_SLOPE_NONE)
        norm_sums_of(CS_SLOPE_NONE, CS_NO_CURVE, p, n, x, y, dy, dr, sums, products);
    else if (p->slope_at == CS_SLOPE_AT_RESULT && p->activation->curve == CS_LEAKY_RELU)
        CS_RESULT(CS_LEAKY_RELU);
    else if (p->slope_at == CS_SLOPE_AT_RESULT)
        CS_RESULT(CS_NO_CURVE);
    else
        CS_FOR_CURVE(p->activation->curve, CS_INPUT)
#undef CS_RESULT
#undef CS_INPUT
}

CS_INLINE void norm_dx_of(const int at, const int curve, const cs_norm_block *p, int64_t n, const float *x,
                          const float *dy, float *dx) {
    const vf a = v_load(p->of_dy), b = v_load(p->of_x), c = v_load(p->offset), mean = v_load(p->mean);
    for (int64_t i = 0; i < n * CS_VL; i += CS_VL) {
        const vf xv = v_load(x + i);
        const vf g = norm_gradient(at, curve, p, xv, (vf){0}, v_load(dy + i));
        const vf d = a * g + (b * (xv - mean) + c);
        put(p->add, dx + i, d);
    }
}

static void norm_dx(const cs_norm_block *p, int64_t n, const float *x, const float *dy, float *dx) {
#define CS_INPUT(curve) norm_dx_of(CS_SLOPE_AT_INPUT, curve, p, n, x, dy, dx)
    if (p->slope_at == CS_SLOPE_AT_INPUT)
        CS_FOR_CURVE(p->activation->curve, CS_INPUT)
    else
        norm_dx_of(CS_SLOPE_NONE, CS_NO_CURVE, p, n, x, dy, dx);
#undef CS_INPUT
}
