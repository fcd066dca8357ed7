/* NCHW <-> blocked, one block of channels at a time: squares of CS_VL pixels and channels by
 * transposition in registers, the last one of a row reaching back into the one before. Rows that
 * follow each other without a gap are one long row. */

/* Planes of so many floats, and what is fetched ahead of the place in larger ones. */
#define CS_PACK_SMALL 1024
#define CS_PACK_AHEAD 64

/* `count` pixels at y, of those that begin `skip` pixels after x */
CS_INLINE void pack_square(int channels, const float *x, int64_t x_c, int skip, int count, float *y,
                           int64_t y_px) {
    vf square[CS_VL];
    /* As many streams as channels are more than the processor foresees: what comes next of each is
     * fetched, or of small planes the next block. */
    const int64_t ahead = x_c <= CS_PACK_SMALL ? CS_VL * x_c : CS_PACK_AHEAD;
CS_UNROLL(16)
    for (int c = 0; c < CS_VL; c++)
        __builtin_prefetch(x + c * x_c + ahead);
CS_UNROLL(16)
    for (int c = 0; c < CS_VL; c++)
        square[c] = c < channels ? v_load(x + c * x_c) : (vf){0};
    v_transpose(square);
CS_UNROLL(16)
    for (int i = 0; i < CS_VL; i++)
        if (i >= skip && i < skip + count)
            v_store(y + (i - skip) * y_px, square[i]);
}

static void pack(int channels, int h0, int h1, int w, const float *x, int64_t x_c, int64_t x_h, int64_t x_w,
                 float *y, int64_t y_row, int64_t y_px) {
    if (x_w == 1 && x_h == w && y_row == w * y_px && h1 > h0) {
        x += h0 * x_h;
        y += h0 * y_row;
        w *= h1 - h0;
        h0 = 0;
        h1 = 1;
    }
    const int64_t start = h0 * x_h, end = (h1 - 1) * x_h + w;   /* of what may be read */
    for (int h = h0; h < h1; h++) {
        const int64_t row = h * x_h;
        float *yr = y + h * y_row;
        /* of a short row: the vector goes on into the next rows, or begins in those before */
        const int64_t skip = row + CS_VL > end ? row + CS_VL - end : 0;
        if (x_w == 1 && w >= CS_VL) {
            for (int first = 0; first < w; first += CS_VL) {
                const int j = first + CS_VL <= w ? first : w - CS_VL;
                pack_square(channels, x + row + j, x_c, 0, CS_VL, yr + j * y_px, y_px);
            }
        } else if (x_w == 1 && x_h >= w && row - skip >= start) {
            pack_square(channels, x + row - skip, x_c, (int)skip, w, yr, y_px);
        } else {
            for (int j = 0; j < w; j++)
                for (int c = 0; c < CS_VL; c++)
                    yr[j * y_px + c] = c < channels ? x[c * x_c + row + j * x_w] : 0.0f;
        }
    }
}

/* CS_VL pixels at x -> rows of `channels` planes */
CS_INLINE void unpack_square(const int far, int channels, const float *x, float *y, int64_t y_c) {
    vf square[CS_VL];
CS_UNROLL(16)
    for (int i = 0; i < CS_VL; i++)
        square[i] = v_load(x + i * CS_VL);
    v_transpose(square);
CS_UNROLL(16)
    for (int c = 0; c < CS_VL; c++)
        if (c < channels) {
            if (far)
                v_stream(y + c * y_c, square[c]);
            else
                v_store(y + c * y_c, square[c]);
        }
}

CS_INLINE void unpack_rows(const int far, int channels, int h0, int h1, int w, const float *x,
                           int64_t x_row, float *y, int64_t y_c, int64_t y_h) {
    if (x_row == (int64_t)w * CS_VL && y_h == w && h1 > h0) {
        x += h0 * x_row;
        y += h0 * y_h;
        w *= h1 - h0;
        h0 = 0;
        h1 = 1;
    }
    for (int h = h0; h < h1; h++) {
        const float *xr = x + h * x_row;
        float *yr = y + h * y_h;
        int j = 0;
        if (far && w >= 2 * CS_VL && y_c % CS_VL == 0) {
            const int before = (int)((uintptr_t)yr / sizeof(float) % CS_VL);
            if (before) {   /* up to the first whole vector */
                unpack_square(0, channels, xr, yr, y_c);
                j = CS_VL - before;
            }
            for (; j + CS_VL <= w; j += CS_VL)
                unpack_square(1, channels, xr + (int64_t)j * CS_VL, yr + j, y_c);
        }
        for (; w >= CS_VL && j < w; j += CS_VL) {
            const int start = j + CS_VL <= w ? j : w - CS_VL;
            unpack_square(0, channels, xr + (int64_t)start * CS_VL, yr + start, y_c);
        }
        for (int c = 0; w < CS_VL && c < channels; c++)
            for (int j = 0; j < w; j++)
                yr[c * y_c + j] = xr[(int64_t)j * CS_VL + c];
    }
}

static void unpack(int channels, int h0, int h1, int w, const float *x, int64_t x_row, float *y,
                   int64_t y_c, int64_t y_h) {
    unpack_rows(0, channels, h0, h1, w, x, x_row, y, y_c, y_h);
}

static void unpack_far(int channels, int h0, int h1, int w, const float *x, int64_t x_row, float *y,
                       int64_t y_c, int64_t y_h) {
    unpack_rows(1, channels, h0, h1, w, x, x_row, y, y_c, y_h);
}
