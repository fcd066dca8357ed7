/* exp, log and their relatives on vectors: about one unit in the last place for exp, expm1 and log,
 * a few for what is made of them. Polynomials are least in the largest relative error over the
 * reduced range. Results below the smallest normal number may be zero. NaN stays NaN. */

#define CS_LOG2E 1.44269504088896341f
#define CS_LN2_HIGH 0.693145751953125f  /* few enough bits for n * CS_LN2_HIGH to be exact */
#define CS_LN2_LOW 1.42860682030941723e-6f
#define CS_ROUND 12582912.0f            /* 1.5 * 2^23: what is added to it is rounded */

/* 2^n; n from -126 to 127, as the low bits of CS_ROUND + n */
CS_INLINE vf v_power_of_two(vi n) { return (vf)(((vu)n + 127) << 23); }

/* (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2 */
CS_INLINE vf v_exp_polynomial(vf r) {
    vf q = v_set(0.0013814610f);
    q = q * r + v_set(0.0083687110f);
    q = q * r + v_set(0.0416683890f);
    q = q * r + v_set(0.1666652113f);
    return q * r + v_set(0.4999999404f);
}

/* exp(x + rest) for x from -104 to 89 (or NaN) and a small rest */
CS_INLINE vf v_exp_sum(vf x, vf rest) {
    const vf t = x * v_set(CS_LOG2E) + v_set(CS_ROUND), n = t - v_set(CS_ROUND);
    const vf r = (x - n * v_set(CS_LN2_HIGH) - n * v_set(CS_LN2_LOW)) + rest;
    const vf p = r * r * v_exp_polynomial(r) + r + v_set(1.0f);
    /* in two steps, since 2^n alone may be beyond the exponents */
    const vi k = (vi)((vu)t - (vu)v_set(CS_ROUND)), half = k >> 1;
    return p * v_power_of_two(half) * v_power_of_two(k - half);
}

CS_INLINE vf v_exp(vf x) { return v_exp_sum(v_clip(x, v_set(-104.0f), v_set(89.0f)), (vf){0}); }

/* exp(x) - 1 for x <= 0, without cancellation; what is above 0 counts as 0 */
CS_INLINE vf v_expm1(vf x) {
    x = v_clip(x, v_set(-87.0f), (vf){0});
    const vf t = x * v_set(CS_LOG2E) + v_set(CS_ROUND), n = t - v_set(CS_ROUND);
    const vf r = x - n * v_set(CS_LN2_HIGH) - n * v_set(CS_LN2_LOW);
    const vf scale = v_power_of_two((vi)((vu)t - (vu)v_set(CS_ROUND)));
    return (r * r * v_exp_polynomial(r) + r) * scale + (scale - v_set(1.0f));
}

/* log(x) for normal x > 0; infinity counts as 2^128 */
CS_INLINE vf v_log(vf x) {
    /* x = m 2^n, m from sqrt(1/2) to sqrt(2); log m = 2 s + s^3 (2/3 + ...), s = (m - 1) / (m + 1) */
    const vi bits = (vi)x - 0x3f3504f3;
    const vf m = (vf)((bits & 0x7fffff) + 0x3f3504f3);
    const vf n = __builtin_convertvector(bits >> 23, vf);
    const vf s = (m - v_set(1.0f)) / (m + v_set(1.0f)), z = s * s;
    vf q = v_set(0.2987172902f);
    q = q * z + v_set(0.3997754157f);
    q = q * z + v_set(0.6666677594f);
    const vf log_m = v_set(2.0f) * s + s * z * q;
    return v_select(x != x, x, n * v_set(CS_LN2_HIGH) + (n * v_set(CS_LN2_LOW) + log_m));
}

CS_INLINE vf v_sigmoid(vf x) {
    const vf e = v_exp(-v_abs(x));
    return v_select(x >= (vf){0}, v_set(1.0f), e) / (v_set(1.0f) + e);
}

CS_INLINE vf v_tanh(vf x) {
    const vf t = v_expm1(v_set(-2.0f) * v_abs(x));
    const vf size = v_abs(t) / (v_set(2.0f) + t);
    return (vf)((vi)size | ((vi)x & INT32_MIN));
}

/* the normal distribution's share below x */
CS_INLINE vf v_normal(vf x) {
    const vf a = v_clip(v_abs(x), (vf){0}, v_set(16.0f));
    /* the share above a, exp(-a^2 / 2) g(a): a^2 in two parts, or its rounding would show */
    const vf high = (vf)((vi)a & ~0xfff);
    const vf e = v_exp_sum(v_clip(v_set(-0.5f) * high * high, v_set(-104.0f), (vf){0}),
                           v_set(-0.5f) * (a - high) * (a + high));
    const vf t = v_set(1.0f) / (v_set(1.0f) + v_set(0.36f) * a);
    vf g = v_set(0.0110660320f);
    g = g * t + v_set(-0.0870351344f);
    g = g * t + v_set(0.2643965781f);
    g = g * t + v_set(-0.3773894608f);
    g = g * t + v_set(0.2237326205f);
    g = g * t + v_set(-0.0562249795f);
    g = g * t + v_set(0.1129503474f);
    g = g * t + v_set(0.1209051237f);
    g = g * t + v_set(0.1439943165f);
    g = g * t + v_set(0.1436045468f);
    const vf above = e * g * t;
    return v_select(x > (vf){0}, v_set(1.0f) - above, above);
}

CS_INLINE vf v_gelu(vf x) { return x * v_normal(x); }

CS_INLINE vf v_gelu_tanh(vf x) {
    /* (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3) */
    const vf u = x + v_set(0.044715f) * x * x * x;
    return x * v_sigmoid(v_set(1.59576912160573071f) * u);
}
