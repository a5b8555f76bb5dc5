/* Weights, packed as docs/format.md says and read by nothing of the code under test. */
#include "native_test.h"

const Form forms[FORMS] = {BF16, INT8, INT4};

const char *form_name(Form form) {
    return form == BF16 ? "bf16" : form == INT8 ? "int8" : form == INT4 ? "int4" : "fp32";
}

int is_integer(Form form) { return form == INT8 || form == INT4; }

double from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

uint16_t nearest_bf16(double value) {
    float rounded = (float)value;
    uint32_t bits;
    memcpy(&bits, &rounded, 4);
    uint16_t below = (uint16_t)(bits >> 16);
    double low = from_bf16(below), high = from_bf16((uint16_t)(below + 1));
    if (fabs(value - low) != fabs(high - value))
        return fabs(value - low) < fabs(high - value) ? below : (uint16_t)(below + 1);
    return (uint16_t)(below + (below & 1));
}

double from_fp16(uint16_t bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    double size = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return bits & 0x8000 ? -size : size;
}

/* Scales of either sign between a quarter and the whole of `size`, some zero or subnormal. */
static uint16_t random_scale(double size) {
    int kind = between(0, 63);
    uint16_t sign = (uint16_t)(random_bits() & 0x8000);
    if (kind == 0) return sign;
    if (kind == 1) return (uint16_t)(sign | between(1, 1023));
    int exponent = ilogb(size) + 15;
    exponent = exponent < 3 ? 3 : exponent > 30 ? 30 : exponent;
    return (uint16_t)(sign | between(exponent - 2, exponent - 1) << 10 | between(0, 1023));
}

/* Values of about `size`. */
Plain random_plain(Form form, int rows, int columns, double size) {
    size_t count = (size_t)rows * (size_t)columns;
    Plain plain = {.form = form, .rows = rows, .columns = columns};
    if (form == BF16) {
        plain.brains = exact(count * 2);
        for (size_t i = 0; i < count; i++) plain.brains[i] = nearest_bf16(normal() * size);
        return plain;
    }
    int least = form == INT4 ? -8 : -127, most = form == INT4 ? 7 : 127;
    plain.integers = exact(count);
    plain.scales = exact(count / 32 * 2);
    for (size_t i = 0; i < count; i++) plain.integers[i] = (int8_t)between(least, most);
    for (size_t i = 0; i < count / 32; i++) plain.scales[i] = random_scale(size * 4 / most);
    return plain;
}

static size_t place(const Plain *plain, int row, int column) {
    return (size_t)row * (size_t)plain->columns + (size_t)column;
}

double *plain_values(const Plain *plain) {
    size_t count = (size_t)plain->rows * (size_t)plain->columns;
    double *values = exact(count * sizeof *values);
    for (size_t i = 0; i < count; i++)
        values[i] = plain->form == BF16 ? from_bf16(plain->brains[i])
                                        : plain->integers[i] * from_fp16(plain->scales[i / 32]);
    return values;
}

size_t block_size(Form form, int columns) {
    return (size_t)columns * (form == INT4 ? 9 : form == INT8 ? 17 : 32);
}

static void put(uint8_t *out, uint32_t value, int bytes) {
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> 8 * i);
}

static uint32_t integer(const Plain *plain, int row, int column) {
    int q = row < plain->rows ? plain->integers[place(plain, row, column)] : 0;
    return (uint32_t)(q + (plain->form == INT4 ? 8 : 128));
}

static uint8_t *pack_words(const Plain *plain, int row, int column, int columns, uint8_t *out) {
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (int j = 0; j < columns / 8; j++)
        for (int r = 0; r < 16; r++, out += 4) {
            uint32_t word = 0;
            for (int i = 0; i < 8; i++)
                word |= integer(plain, row + r, column + 8 * j + order[i]) << 4 * i;
            put(out, word, 4);
        }
    return out;
}

static uint8_t *pack_bytes(const Plain *plain, int row, int column, int columns, uint8_t *out) {
    for (int j = 0; j < columns / 4; j++)
        for (int r = 0; r < 16; r++)
            for (int i = 0; i < 4; i++)
                *out++ = (uint8_t)integer(plain, row + r, column + 4 * j + i);
    return out;
}

/* Row block `block`; rows beyond the last one are zero, or are not there in bf16. */
void pack_block(const Plain *plain, int block, uint8_t *out) {
    const int row = block * 16;
    for (int r = row; plain->form == BF16 && r < row + 16 && r < plain->rows; r++)
        for (int c = 0; c < plain->columns; c++, out += 2)
            put(out, plain->brains[place(plain, r, c)], 2);
    if (plain->form == BF16) return;
    for (int c = 0, some; c < plain->columns; c += some) {
        some = plain->columns - c < 64 ? 32 : 64;
        out = (plain->form == INT4 ? pack_words : pack_bytes)(plain, row, c, some, out);
        for (int g = 0; g < some / 32; g++)
            for (int r = row; r < row + 16; r++, out += 2)
                put(out, r < plain->rows ? plain->scales[place(plain, r, c) / 32 + (size_t)g] : 0, 2);
    }
}

uint8_t *pack_matrix(const Plain *plain) {
    size_t pitch = block_size(plain->form, plain->columns);
    int blocks = (plain->rows + 15) / 16;
    uint8_t *data = exact(plain->form == BF16 ? (size_t)plain->rows * (size_t)plain->columns * 2
                                              : pitch * (size_t)blocks);
    for (int b = 0; b < blocks; b++) pack_block(plain, b, data + pitch * (size_t)b);
    return data;
}

void normed_line(const float *x, const float *norm, double eps, int columns, double *out) {
    double sum = 0;
    for (int k = 0; k < columns; k++) sum += (double)x[k] * x[k];
    double scale = (float)sum > 3.4028234e38f ? 0 : 1 / sqrt(sum / columns + eps);
    for (int k = 0; k < columns; k++) out[k] = norm[k] * (x[k] * scale);
}
