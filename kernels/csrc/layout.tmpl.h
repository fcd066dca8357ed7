/* NCHW <-> blocked, one block of channels at a time. */

static void pack(int channels, int h0, int h1, int w, const float *x, int64_t x_c, int64_t x_h, int64_t x_w,
                 float *y, int64_t y_row, int64_t y_px) {
    for (int h = h0; h < h1; h++)
        for (int j = 0; j < w; j++) {
            const float *xp = x + h * x_h + j * x_w;
            float *yp = y + h * y_row + j * y_px;
            if (channels == CS_VL) {
CS_UNROLL(16)
                for (int c = 0; c < CS_VL; c++)
                    yp[c] = xp[c * x_c];
            } else {
                for (int c = 0; c < CS_VL; c++)
                    yp[c] = c < channels ? xp[c * x_c] : 0.0f;
            }
        }
}

static void unpack(int channels, int h0, int h1, int w, const float *x, int64_t x_row,
                   float *y, int64_t y_c, int64_t y_h) {
    for (int h = h0; h < h1; h++)
        for (int c = 0; c < channels; c++) {
            const float *xp = x + h * x_row + c;
            float *yp = y + c * y_c + h * y_h;
            for (int j = 0; j < w; j++)
                yp[j] = xp[(int64_t)j * CS_VL];
        }
}
